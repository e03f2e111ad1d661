"""Stand-ins for std_daq services (C++), which keep to the std_daq contract.

They use no cursor segment, no protobuf field above 99, no SWMR and no socket options. Run as a program this
is a writer: `cpp_services.py CONFIG WRITER_ID`.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zmq

from stddaq.closing import Closing
from stddaq.wire.std_daq import image_metadata_pb2 as images_pb
from stddaq.wire.std_daq import writer_action_pb2 as pb

METADATA = np.dtype([("image_id", "<u8"), ("status", "<u8")])
# The size of a C++ driver's receive buffer.
MAX_RESPONSE_BYTES = 512
# Files grow by this number of images; the driver reports a new count after as many.
BLOCK_IMAGES = 64
DTYPE_CODES = {8: 1, 16: 2, 32: 4}


def rows_left(n_images: int) -> int:
    """Return the metadata rows of a closed file: C++ writers leave a whole chunk beside a single image."""
    return 1048576 if n_images == 1 else n_images


class Names:
    """Sizes and names that follow from the configuration."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.detector_name: str = config["detector_name"]
        self.shape = (config["image_pixel_height"], config["image_pixel_width"])
        self.dtype = np.dtype(f"<u{config['bit_depth'] // 8}")
        self.dtype_code = DTYPE_CODES[config["bit_depth"]]
        self.image_bytes = self.shape[0] * self.shape[1] * self.dtype.itemsize
        self.n_slots = max(1000, config.get("ram_buffer_gb", 0) * 2**30 // self.image_bytes)
        self.number_of_writers: int = config["number_of_writers"]

    def endpoint(self, name: str) -> str:
        return f"ipc://{os.environ.get('STDDAQ_IPC_DIR', '/tmp')}/{self.detector_name}-{name}"


class CppRing:
    """The ring buffer, mapped without locks or checks."""

    def __init__(self, names: Names, suffix: str = "image") -> None:
        self._names = names
        self._path = Path("/dev/shm") / f"{names.detector_name}-{suffix}"
        size = -(-names.image_bytes * names.n_slots // 2**21) * 2**21
        self._created = not self._path.exists()
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o777)
        os.ftruncate(fd, size)
        self._map = mmap.mmap(fd, size)
        os.close(fd)

    def write(self, image_id: int, content: bytes) -> None:
        """Put pixels, or what a compressor made of them, into the slot of an image."""
        start = image_id % self._names.n_slots * self._names.image_bytes
        self._map[start : start + len(content)] = content

    def slot(self, image_id: int) -> np.ndarray:
        """Return the slot of an image, not copied. Release it before `close`."""
        start = image_id % self._names.n_slots * self._names.image_bytes
        slot = memoryview(self._map)[start : start + self._names.image_bytes]
        return np.frombuffer(slot, self._names.dtype).reshape(self._names.shape)

    def read(self, image_id: int) -> np.ndarray:
        start = image_id % self._names.n_slots * self._names.image_bytes
        content = self._map[start : start + self._names.image_bytes]
        return np.frombuffer(content, self._names.dtype).reshape(self._names.shape)

    def remove(self) -> None:
        """Unmap the ring and remove its name, even if others use it."""
        self._map.close()
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._created:
            self.remove()
        else:
            self._map.close()


class CppRawFile:
    """The file of one writer, which grows in blocks; the unused part is removed at the end."""

    def __init__(self, path: Path, names: Names) -> None:
        height, width = names.shape
        self._rows: list[tuple[int, int]] = []
        self._file = h5py.File(path, "w", libver="earliest")
        group = self._file.create_group(names.detector_name)
        self._data = group.create_dataset(
            "data",
            (0, height, width),
            maxshape=(None, height, width),
            chunks=(4, height, width),
            dtype=names.dtype,
        )
        self._metadata = group.create_dataset("metadata", (0,), METADATA, maxshape=(None,), chunks=(64,))

    def write(self, image: images_pb.ImageMetadata, pixels: np.ndarray) -> None:
        row = len(self._rows)
        if row == self._data.shape[0]:
            self._data.resize(row + BLOCK_IMAGES, axis=0)
        self._data[row] = pixels
        self._rows.append((image.image_id, image.status))

    def close(self) -> None:
        self._data.resize(len(self._rows), axis=0)
        self._metadata.resize(rows_left(len(self._rows)), axis=0)
        self._metadata[: len(self._rows)] = np.array(self._rows, METADATA)
        self._file.close()


class CppSource(Closing):
    """Publishes images, as a detector or as a compressor; a context manager."""

    def __init__(self, config: Mapping[str, Any], suffix: str = "image") -> None:
        self._names, self._suffix = Names(config), suffix
        self.ring = CppRing(self._names, suffix)
        self._context = zmq.Context()
        # A subscriber sees no difference between XPUB and PUB; XPUB lets the test wait for the subscription.
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.sndhwm = 0
        # `wait_for_subscriber` returns once for each of them.
        self._socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        self._endpoint = self._names.endpoint(suffix)
        self._socket.bind(self._endpoint)

    def wait_for_subscriber(self) -> None:
        assert self._socket.poll(60_000), "no subscription"
        self._socket.recv()

    def publish(self, image_id: int, pixels: np.ndarray, status: int = 1) -> None:
        self.ring.write(image_id, pixels.tobytes())
        self.announce(self.message(image_id, status))

    def publish_compressed(
        self, image_id: int, content: bytes, compression: int, of: images_pb.ImageMetadata | None = None
    ) -> None:
        """`of`: the message of the image that was compressed, whose unknown fields protobuf passes on."""
        self.ring.write(image_id, content)
        message = of or self.message(image_id)
        message.size, message.compression = len(content), compression  # pyright: ignore[reportAttributeAccessIssue]
        self.announce(message)

    def message(self, image_id: int, status: int = 1) -> images_pb.ImageMetadata:
        return images_pb.ImageMetadata(
            image_id=image_id,
            height=self._names.shape[0],
            width=self._names.shape[1],
            size=self._names.image_bytes,
            dtype=self._names.dtype_code,  # pyright: ignore[reportArgumentType]
            status=status,  # pyright: ignore[reportArgumentType]
            gf=images_pb.GFImageMetadata(scan_id=3, frame_timestamp=image_id * 1000),
        )

    def remake_ring(self) -> None:
        """Remove the ring, as a C++ service does at its end, and make another, as a restarted source does."""
        self.ring.remove()
        self.ring = CppRing(self._names, self._suffix)

    def announce(self, message: images_pb.ImageMetadata | bytes) -> None:
        self._socket.send(message if isinstance(message, bytes) else message.SerializeToString())

    def close(self) -> None:
        self._context.destroy(linger=1000)
        Path(self._endpoint.removeprefix("ipc://")).unlink(missing_ok=True)
        self.ring.close()


class CppDriver(Closing):
    """Sends actions to writers, and divides images by arrival; a context manager."""

    def __init__(self, config: Mapping[str, Any], with_metadata_writer: bool = False) -> None:
        names = Names(config)
        self._context = zmq.Context()
        self._writers = [str(i) for i in range(names.number_of_writers)]
        self.peers = [*self._writers, *(["meta"] if with_metadata_writer else [])]
        self._actions = {name: self._context.socket(zmq.PUSH) for name in self.peers}
        self._responses = {name: self._context.socket(zmq.PULL) for name in self.peers}
        self._bound = [names.endpoint(f"driver-{name}") for name in self.peers]
        for name, endpoint in zip(self.peers, self._bound, strict=True):
            self._actions[name].bind(endpoint)
            self._responses[name].connect(names.endpoint(f"writer-{name}"))
        self._stream = self._context.socket(zmq.SUB)
        self._stream.rcvhwm = 0
        self._stream.subscribe(b"")
        self._stream.connect(names.endpoint("image"))

    def create(self, directory: Path, prefix: str = "file", uid: int = 0) -> None:
        """Make the writers create their files."""
        for name in self.peers:
            path = str(directory / f"{prefix}{name.capitalize()}.h5")
            self._send(name, pb.WriterAction(create_file=pb.CreateWriterFile(path=path, writer_id=uid)))
        self.expect_success()

    def forward(self, n_images: int) -> None:
        """Forward the next images of the metadata stream."""
        for position in range(n_images):
            assert self._stream.poll(60_000), f"{position} of {n_images} images came"
            record = pb.RecordImage()
            record.image_metadata.ParseFromString(self._stream.recv())
            for name in {self._writers[position % len(self._writers)], *self.peers[len(self._writers) :]}:
                self._send(name, pb.WriterAction(record_image=record))

    def finish(self) -> None:
        """Make the writers confirm their last images and close their files."""
        self.broadcast(pb.WriterAction(confirm_last_image=pb.ConfirmLastImage()))
        self.expect_success()
        self.broadcast(pb.WriterAction(close_file=pb.CloseWriterFile()))
        self.expect_success()

    def broadcast(self, action: pb.WriterAction) -> None:
        for name in self.peers:
            self._send(name, action)

    def _send(self, name: str, action: pb.WriterAction) -> None:
        assert self._actions[name].poll(60_000, zmq.POLLOUT), f"writer {name} is not connected"
        self._actions[name].send(action.SerializeToString())

    def expect_success(self) -> None:
        """Receive a successful response from each writer."""
        for name in self.peers:
            response = self.response(name)
            assert response.code == pb.SUCCESS, f"writer {name}: {response.reason}"

    def response(self, name: str) -> pb.WriterResponse:
        """Return the next response of a writer, which must have no field above 99."""
        assert self._responses[name].poll(60_000), f"writer {name} does not answer"
        message = self._responses[name].recv()
        assert len(message) <= MAX_RESPONSE_BYTES
        response = pb.WriterResponse.FromString(message)
        plain = pb.WriterResponse(code=response.code, reason=response.reason)
        assert response == plain, f"a C++ driver does not expect {response}"
        return response

    def close(self) -> None:
        self._context.destroy(linger=1000)
        for endpoint in self._bound:
            Path(endpoint.removeprefix("ipc://")).unlink(missing_ok=True)


class CppWriter:
    """Answers its requests in order, and writes an HDF5 file."""

    def __init__(self, config: Mapping[str, Any], writer: int) -> None:
        names = Names(config)
        self._names = names
        self._context = zmq.Context()
        self._actions = self._context.socket(zmq.PULL)
        self._actions.rcvhwm = 0
        self._responses = self._context.socket(zmq.PUSH)
        self._endpoint = names.endpoint(f"writer-{writer}")
        self._responses.bind(self._endpoint)
        self._actions.connect(names.endpoint(f"driver-{writer}"))
        self._file: CppRawFile | None = None

    def serve(self) -> None:
        ring = CppRing(self._names)
        print("ready", flush=True)
        try:
            while True:
                action = pb.WriterAction.FromString(self._actions.recv())
                kind = action.WhichOneof("action")
                if kind == "record_image":
                    self._record(action.record_image.image_metadata, ring)
                elif kind in ("create_file", "confirm_last_image", "close_file"):
                    self._act(kind, action)
        finally:
            self._context.destroy(linger=200)
            Path(self._endpoint.removeprefix("ipc://")).unlink(missing_ok=True)
            ring.close()

    def _act(self, kind: str, action: pb.WriterAction) -> None:
        if kind == "create_file":
            self._create(action.create_file.path)
        elif kind == "close_file":
            self._close()
        self._responses.send(pb.WriterResponse(code=pb.SUCCESS).SerializeToString())

    def _create(self, path: str) -> None:
        self._close()
        self._file = CppRawFile(Path(path), self._names)

    def _record(self, metadata: images_pb.ImageMetadata, ring: CppRing) -> None:
        if self._file is not None:
            self._file.write(metadata, ring.read(metadata.image_id))

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def main(argv: Sequence[str]) -> None:
    """Run the writer until SIGTERM."""

    def end(_signal: int, _frame: object) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
    config = json.loads(Path(argv[0]).read_text())
    CppWriter(config, int(argv[1])).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
