"""What Bluesky plans cost with our detector device: time per point of a count, documents of a fly scan.

Real daemons and a real RunEngine; the camera is the simulator, with a software trigger. The limit for a point
is `ophyd.sim.det` in the same RunEngine, which records nothing.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bluesky import RunEngine
from bluesky.plans import count
from ophyd.sim import hw
from rig import Rig, end, wait_ready
from tables import Table, spread

from stddaq_ophyd import SimulatedCamera, StdDaqDetector

N_POINTS = 200
ROUNDS = 5
STDDAQ = Path(sys.executable).parent / "stddaq"


def points() -> Table:
    """Milliseconds per point of `count`, beside `ophyd.sim.det`."""
    table = Table(
        "points",
        "Time per point of a count with software trigger",
        f"`RE(count([det], {N_POINTS}))`, median of {ROUNDS} rounds (min-max), images of 16x16 pixels, "
        "2 writers; at most 10 ms more than `ophyd.sim.det` in the same run.",
        ("images per point", "ophyd.sim.det ms", "our device ms", "more, ms"),
    )
    with ExitStack() as stack:
        rig = stack.enter_context(Rig("none", n_writers=2, with_source=False))
        simulator = simulate(rig, "--trigger")
        stack.callback(end, simulator)
        engine = RunEngine({}, context_managers=[])
        simulated_signal = hw().det
        camera = SimulatedCamera(rig.config.detector_name, name="camera")
        stack.callback(camera.destroy)
        det = StdDaqDetector(rig.url, name="det", paths=rig.files, trigger=camera)
        for n_images in (1, 5):
            det.images_per_trigger.put(n_images)
            theirs, ours = [], []
            for _ in range(ROUNDS):
                theirs.append(seconds_per_point(engine, simulated_signal))
                ours.append(seconds_per_point(engine, det))
            more = [(b - a) * 1e3 for a, b in zip(theirs, ours, strict=True)]
            table.add(
                n_images,
                statistics.median(theirs) * 1e3,
                statistics.median(ours) * 1e3,
                spread(more),
            )
    return table


def seconds_per_point(engine: RunEngine, detector: Any) -> float:
    """From the second event of a count to the last, per point, so that staging does not count."""
    times: list[float] = []

    def note(name: str, doc: Any) -> None:
        if name == "event":
            times.append(time.perf_counter())

    engine(count([detector], N_POINTS), note)
    return (times[-1] - times[0]) / (N_POINTS - 1)


def simulate(rig: Rig, *options: object) -> subprocess.Popen[str]:
    """Start the simulator of a rig without a source of its own."""
    command = [str(STDDAQ), "simulate", str(rig.config_path), *map(str, options)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_ready(process)
    return process


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.parse_args(argv)
    points()
    return 0


if __name__ == "__main__":
    sys.exit(main())
