"""The ring buffer of a test, and its other users as processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from support.processes import ring_processes
from support.processes.deployment import SHM_DIRECTORY

from stddaq.config import DetectorConfig
from stddaq.dataplane.ring_buffer import RingBuffer
from stddaq.dataplane.ring_layout import RingGeometry

# Returned by the fixture `make`.
MakeConfig = Callable[..., DetectorConfig]


class RingProcess:
    """A process of `support.processes.ring_processes`, which exits at the end of the block."""

    def __init__(
        self, role: str, config: DetectorConfig, *arguments: object, within: Sequence[str] = ()
    ) -> None:
        """`within`: a command that runs the process."""
        configuration = () if role == "map" else (json.dumps(config.as_json()),)
        command = (ring_processes.__file__, role, *configuration, *map(str, arguments))
        self._process = subprocess.Popen(
            (*within, sys.executable, *command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def wait_until_ready(self) -> RingProcess:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"
        return self

    def go(self) -> None:
        """Send a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(60)

    def __enter__(self) -> RingProcess:
        return self

    def __exit__(self, *_: object) -> None:
        # Close the pipes, which makes the process exit, and wait for it.
        self._process.__exit__(None, None, None)


def other_process(role: str, config: DetectorConfig, *arguments: object) -> RingProcess:
    """Return a process in that role which is ready."""
    return RingProcess(role, config, *arguments).wait_until_ready()


def segments(config: DetectorConfig) -> list[str]:
    """Return the names of the segments of the detector, without its name."""
    return sorted(
        path.name.removeprefix(config.detector_name)
        for path in SHM_DIRECTORY.glob(f"{config.detector_name}*")
    )


def put(ring: RingBuffer, image_id: int) -> int:
    """Write an image without pixels. Returns its sequence number."""
    ring.begin(image_id)
    return ring.commit(image_id)


def make_cpp_ring(config: DetectorConfig) -> Path:
    """Make a ring as a C++ source does: no cursor, no lock."""
    path = SHM_DIRECTORY / f"{config.detector_name}-image"
    path.touch(0o777)
    os.truncate(path, RingGeometry.of(config).segment_bytes)
    return path
