"""A process in place of the C++ std_det_driver and its writers, which keeps to the std_daq contract.

Clients receive only `status`, `count` and `reason`, ten times a second; existing files are replaced. Files
are HDF5 without attributes, readable only after they are closed; `data` and `metadata` of writer i hold its
images, divided by id or by arrival. `start_cpp_driver` starts it for a test.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zmq
from support.peers.basic_driver import BasicDriver
from support.peers.cpp_services import BLOCK_IMAGES, CppRawFile, CppRing, Names
from support.processes.deployment import Deployment, Service

from stddaq.wire.std_daq import image_metadata_pb2 as images_pb

POLL_MS = 20


def start_cpp_driver(deployment: Deployment, *args: object) -> tuple[Service, str]:
    """Start the driver on a free port. Return it and its WebSocket url."""
    driver = deployment.run(
        *(sys.executable, "-m", "support.peers.cpp_driver", deployment.config_path, *args),
        cwd=Path(__file__).parents[2],
        ready=None,
    )
    return driver, driver.wait_for_line(r"listening on (ws://\S+)")[1]


class RecordingCppDriver(BasicDriver):
    """Driver and writers in one; a context manager."""

    def __init__(self, config: dict[str, Any], port: int, by_arrival: bool) -> None:
        super().__init__(port=port)
        self._names = Names(config)
        self._by_arrival = by_arrival
        self._files: list[CppRawFile] = []
        self._ring = CppRing(self._names)
        self._context = zmq.Context()
        self._stream = self._context.socket(zmq.SUB)
        self._stream.rcvhwm = 0
        self._stream.subscribe(b"")
        self._stream.connect(self._names.endpoint("image"))

    async def _create_files(self, command: dict[str, Any]) -> None:
        prefix = Path(command["path"]) / command.get("file_prefix", "file")
        for writer in range(self._names.number_of_writers):
            self._files.append(CppRawFile(Path(f"{prefix}{writer}.h5"), self._names))
        while self._stream.poll(0):  # Images from before the run are not recorded.
            self._stream.recv()

    async def _count(self, n_image: int) -> int:
        count = 0
        while count < n_image and not self._stop.is_set():
            block = min(BLOCK_IMAGES, n_image - count)
            taken = await asyncio.to_thread(self._record_images, count, block)
            count += taken
            if count:
                self._state = {"status": "recording", "count": count}
        return count

    def _record_images(self, first: int, limit: int) -> int:
        """Write up to `limit` images, from image `first` of the run on. Return their number."""
        for taken in range(limit):
            if not self._stream.poll(0 if taken else POLL_MS):
                return taken
            image = images_pb.ImageMetadata.FromString(self._stream.recv())
            key = first + taken if self._by_arrival else image.image_id
            self._files[key % len(self._files)].write(image, self._ring.read(image.image_id))
        return limit

    async def _close_files(self) -> None:
        while self._files:
            self._files.pop().close()

    async def _close(self) -> None:
        self._stop.set()
        if self._run is not None:
            await asyncio.wait([self._run])
        await super()._close()
        await self._close_files()
        self._context.destroy(linger=0)
        self._ring.close()


def main(argv: Sequence[str]) -> None:
    """Run the driver until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--by-arrival", action="store_true", help="divide images by arrival, not by id")
    args = parser.parse_args(argv)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    config = json.loads(args.config.read_text())
    with RecordingCppDriver(config, args.port, args.by_arrival) as driver:
        print(f"listening on {driver.url}", flush=True)
        signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main(sys.argv[1:])
