"""`make chaos`: random harm to real services, after which every image that is called good is compared.

An episode is one deployment of real services. Each of its rounds is a run with random harm, after which the
services are continued or restarted, and a run without harm, which must be perfect. After each run, the
images that files, account and live stream call good are compared with the published ones, by pixels and
ids. A seed chooses the services, the harm and its times.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from support.chaos.checks import RunChecks
from support.chaos.harm import HARM_S, Harm, HarmedRun, Step
from support.chaos.services import ChaosServices
from support.chaos.truth import Findings, Viewer

from stddaq.client import DriverError
from stddaq.closing import Closing, exit_at_signals

ROUNDS = 5
# How soon a harmed run must end after all services were continued.
END_S = 60.0
# Within this time services notice and replace removed files.
HEAL_S = 3.0
N_CLEAN = 100


class Episode(Closing):
    """One deployment, its rounds and their findings; a context manager."""

    def __init__(self, directory: Path, seed: str, quiet: tuple[str, ...] = ()) -> None:
        """Start all services. Harm whose name is in `quiet` is left out."""
        self.seed, self.findings = seed, Findings()
        self.findings.where = f"seed {seed}, start"
        self.n_runs = 0
        self.harm: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._directory = directory / "files"
        self._directory.mkdir()
        with ExitStack() as stack:
            self._services = stack.enter_context(ChaosServices(directory, self._random, self.findings))
            viewer = stack.enter_context(Viewer(self._services.live_stream_address))
            self._harm = stack.enter_context(Harm(self._services, self._random, quiet))
            self._checks = RunChecks(self._services, viewer, self.findings)
            self._stack = stack.pop_all()

    @property
    def n_good(self) -> int:
        """Return the number of good images that were compared."""
        return self._checks.n_good

    def round(self) -> None:
        """Do a run with harm, and one without."""
        run = self._new_run("harmed")
        plan = self._harm.plan(run)
        self.harm.update(name for _, name, _ in plan)
        names = ", ".join(f"{name} at {at:.2f} s" for at, name, _ in plan)
        chain, n_writers = self._services.chain, self._services.n_writers
        self.findings.where = f"seed {self.seed}, run {self.n_runs} ({chain}, {n_writers} writers; {names})"
        account = self._harmed_run(run, plan)
        self._heal({name for _, name, _ in plan})
        self._checks.check(run, account)
        run = self._new_run("clean")
        self.findings.where = f"seed {self.seed}, run {self.n_runs} ({chain}, without harm, after {names})"
        if not self._clean_run(run):
            self._services.restart_everything()

    def _new_run(self, kind: str) -> HarmedRun:
        self.n_runs += 1
        run = HarmedRun(self._directory / f"{kind}{self.n_runs}")
        run.directory.mkdir()
        return run

    def _harmed_run(self, run: HarmedRun, plan: list[Step]) -> dict[str, Any] | None:
        services = self._services
        n_image = self._random.choice([50, 300, 10**6])
        begin = time.monotonic()
        started = self._random.random() < 0.8
        if started:  # Otherwise harm starts before the run.
            with contextlib.suppress(DriverError):
                services.new_client().start(run.directory, n_image=n_image)
        for at, _, do in plan:
            time.sleep(max(0.0, begin + at - time.monotonic()))
            do()
        if not started:
            with contextlib.suppress(DriverError):
                services.new_client().start(run.directory, n_image=n_image, timeout=3)
        time.sleep(max(0.0, begin + HARM_S / 2 - time.monotonic()))
        services.go_on_all()
        run.release()
        with contextlib.suppress(DriverError):
            services.new_client().stop(timeout=3)
        return self._wait_for_idle()

    def _wait_for_idle(self) -> dict[str, Any] | None:
        """Wait until the driver is idle. Return the account of its last run."""
        services = self._services
        if services.running["driver"].returncode is not None:
            return None
        deadline = time.monotonic() + END_S
        state = "not reachable"
        while time.monotonic() < deadline:
            try:
                client = services.client
                state = client.status(timeout=2).status
                if state == "idle":
                    return client.last_result(timeout=2)
                if state in ("waiting_for_first_image", "recording"):
                    client.stop(timeout=2)
            except DriverError as error:
                state = str(error)
                if services.running["driver"].returncode is not None:
                    return None
                services.close_client()
            time.sleep(0.05)
        tail = services.tail("driver")
        self.findings.note("hangs", f"the driver is still {state} after {END_S:g} s\n{tail}")
        return None

    def _heal(self, harm: set[str]) -> None:
        """Continue and restart services, as an operator does. Services must repair the rest themselves."""
        services = self._services
        services.order(0)
        services.restart_ended()
        if services.chain == "third-party" and harm & {"remove ring", "rename ring"}:
            # A std_daq source (C++) does not notice that its ring was removed.
            services.end("source", signal.SIGTERM)
            services.restart("source")
        was_removed = any("remove" in name or name == "rename ring" for name in harm)
        time.sleep(HEAL_S if was_removed else 0.3)

    def _clean_run(self, run: HarmedRun) -> bool:
        """Do a run that must be perfect. Return whether it was."""
        n_before = len(self.findings)
        try:
            client = self._services.new_client()
            client.start(run.directory, n_image=N_CLEAN)
            client.wait_until_saved(END_S)
            account = client.last_result()
        except (DriverError, OSError) as error:
            self.findings.note("not perfect", f"{type(error).__name__}: {error}")
            account = self._wait_for_idle()
        else:
            if account is None or (account["n_good"], account["n_skipped"]) != (N_CLEAN, 0):
                self.findings.note("not perfect", f"{account}")
        serials = self._checks.check(run, account)
        if len(self.findings) == n_before and np.any(np.diff(sorted(serials)) != 1):
            missing = f"images between those of the run are missing: {sorted(serials)}"
            self.findings.note("not perfect", missing)
        return len(self.findings) == n_before

    def close(self) -> None:
        self.findings.where = f"seed {self.seed}, end ({self._services.chain}; {dict(self.harm)})"
        self._stack.close()


def run_episode(seed: str, rounds: int = ROUNDS, quiet: tuple[str, ...] = ()) -> Episode:
    """Run one episode in a directory of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="stddaq-chaos-") as directory,
        Episode(Path(directory), seed, quiet) as episode,
    ):
        for _ in range(rounds):
            episode.round()
    return episode


def main(argv: Sequence[str] | None = None) -> int:
    """Run episodes and print the findings. Return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(
        description="Random harm to real services: no wrong image is called good."
    )
    parser.add_argument("--runs", type=int, default=100, help="minimum number of runs (default 100)")
    parser.add_argument("--minutes", type=float, default=10.0, help="time limit (default 10)")
    parser.add_argument(
        "--seed", default=str(time.time_ns() % 2**32), help="seed of all episodes, or of one (N:M)"
    )
    parser.add_argument("--without", action="append", default=[], metavar="HARM", help="leave this harm out")
    args = parser.parse_args(argv)
    exit_at_signals()
    print(f"--seed {args.seed}", flush=True)
    deadline = time.monotonic() + args.minutes * 60
    n_runs = n_good = 0
    found: Counter[str] = Counter()
    harm: Counter[str] = Counter()
    seeds = iter([args.seed]) if ":" in args.seed else (f"{args.seed}:{i}" for i in range(10**6))
    for seed in seeds:
        if n_runs >= args.runs or time.monotonic() > deadline:
            break
        episode = run_episode(seed, quiet=tuple(args.without))
        n_runs += episode.n_runs
        n_good += episode.n_good
        harm.update(episode.harm)
        for finding in episode.findings:
            found[finding.kind] += 1
            print(f"\n{finding}", flush=True)
        print(f"{n_runs} runs, {n_good} good images compared, findings: {dict(found)}", flush=True)
    print(f"harm: {dict(harm)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
