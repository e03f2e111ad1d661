"""The cost of metrics: what the metrics pages of driver and writer take of their CPU, idle and in a run."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
import timeit
import urllib.request
from typing import Any

from rig import Rig, cpu, end, wait_ready
from tables import Table

IDLE_S, RATE_HZ, RUNS = 10.0, 20_000.0, 5
SERVICES = ("std_det_driver", "std_det_writer")
# Runs a service that measures the time in its page, and writes that to a file at its end.
MEASURED = """
import json, sys, time
from importlib.metadata import entry_points
from stddaq.daemon.metrics_page import MetricsPage
original, clock, calls = MetricsPage.publish_if_due, time.thread_time_ns, []
def publish_if_due(self):
    begin = clock()
    original(self)
    calls.append(clock() - begin)
MetricsPage.publish_if_due = publish_if_due
_, service, path, *arguments = sys.argv
(script,) = entry_points(group="console_scripts", name=service)
begin = time.monotonic()
sys.argv = [service, *arguments]
script.load()()
seconds = time.monotonic() - begin
empty = sorted(-clock() + clock() for _ in range(10_001))[5000]
with open(path, "w") as file:
    spent = (sum(calls) - len(calls) * empty) / 1e9
    json.dump({"spent": spent, "n": len(calls), "seconds": seconds}, file)
"""


class _MeasuredRig(Rig):
    """A driver and a writer that measure their pages."""

    def start(self, service: str, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", MEASURED, service, self.files / f"{service}.json", self.config_path]
        process = subprocess.Popen(list(map(str, [*command, *arguments])), stdout=subprocess.PIPE, text=True)
        self._stack.callback(end, process)
        return process

    def measured(self) -> dict[str, Any]:
        """End the services, and return what each has measured."""
        for process in (self.driver, *self.writers):
            end(process)
        return {name: json.loads((self.files / f"{name}.json").read_text()) for name in SERVICES}


def cost() -> Table:
    """Measure metrics pages of idle and busy services, and `stddaq-rest`, which reads them."""
    n_images = int(RATE_HZ) * RUNS
    table = Table(
        "metrics",
        "Metrics",
        f"CPU of the metrics pages: of a core over {IDLE_S:g} s without a run, and per image in {RUNS} runs "
        f"of {RATE_HZ:g} images of 16x16 in a second. Counting an image costs a "
        "`self.n += 1` for each counter. "
        "Of `stddaq-rest`, all CPU while it is asked for `/metrics` once a second. "
        "Targets: 0.5 us per image, 1 % of a core.",
        ["service", "idle %", "us per call", "us/image", "one count us"],
    )
    with _MeasuredRig("none") as rig:
        time.sleep(IDLE_S)
        idle = rig.measured()
    with _MeasuredRig("none") as rig:
        rig.fill_ring(rig.config.n_slots)
        for _ in range(RUNS):
            rig.clear(0)
            rig.record(int(RATE_HZ), RATE_HZ)
        busy = rig.measured()
    for name in SERVICES:
        share = idle[name]["spent"] / idle[name]["seconds"] * 100
        per_call, per_image = (busy[name]["spent"] / n * 1e6 for n in (busy[name]["n"], n_images))
        table.add(name, share, per_call, per_image, _one_count())
    table.add("stddaq-rest", _exporter_share() * 100, "", "", "")
    return table


def _one_count() -> float:
    """Return us for one increment of an attribute."""

    class Counter:
        n = 0

    counter, n = Counter(), 1_000_000
    empty = min(timeit.repeat("pass", number=n))
    return (min(timeit.repeat("counter.n += 1", globals={"counter": counter}, number=n)) - empty) / n * 1e6


def _exporter_share() -> float:
    with Rig("none") as rig:
        rest = rig.start("stddaq-rest", "--port", 0)
        url = wait_ready(rest) + "/metrics"
        shares = []
        for _ in range(int(IDLE_S)):
            before, begin = cpu([rest]), time.monotonic()
            urllib.request.urlopen(url, timeout=20).read()
            time.sleep(1)
            shares.append((cpu([rest]) - before) / (time.monotonic() - begin))
    return statistics.mean(shares[1:])
