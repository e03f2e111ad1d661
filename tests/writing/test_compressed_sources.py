"""Compressed images are stored as they come: the very bytes, which HDF5's own filters can read."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import hdf5plugin
import numpy as np
import pytest
import zmq
from support.peers.cpp_services import DTYPE_CODES
from support.processes.deployment import Deployment
from support.processes.recording import Image, MakeRig, assert_saved, image_of

from stddaq.config import DetectorConfig
from stddaq.dataplane.connections import bind, open_socket, unbind
from stddaq.dataplane.endpoints import metadata_stream
from stddaq.dataplane.metadata import COMPRESSION_OF_SUFFIX, ImageMetadata
from stddaq.dataplane.ring_buffer import RingBuffer

FILTERS = {
    "h5bitshuffle-lz4": hdf5plugin.Bitshuffle(cname="lz4"),
    "blosc2": hdf5plugin.Blosc2(),
}


def compress(images: Sequence[Image], suffix: str) -> list[bytes]:
    """What the filter makes of each image."""
    with tempfile.TemporaryDirectory() as directory, h5py.File(Path(directory) / "c.h5", "w") as file:
        shape = images[0].pixels.shape
        data = file.create_dataset(
            "data",
            data=np.stack([image.pixels for image in images]),
            chunks=(1, *shape),
            **FILTERS[suffix],
        )
        return [bytes(data.id.read_direct_chunk((i, 0, 0))[1]) for i in range(len(images))]


class Compressor:
    """The stage after acquisition, of which only the output counts; a context manager."""

    def __init__(self, deployment: Deployment, suffix: str) -> None:
        config = DetectorConfig.parse(deployment.config)
        self._compression = COMPRESSION_OF_SUFFIX[suffix]
        self._height, self._width = config.image_shape
        self._context = zmq.Context()
        self._stream = open_socket(self._context, zmq.XPUB)
        self._endpoint = metadata_stream(config.detector_name, suffix)
        bind(self._stream, self._endpoint)
        self._ring = RingBuffer(config, suffix)

    def wait_for_subscriber(self) -> None:
        assert self._stream.poll(5000)

    def publish(self, image_id: int, content: bytes, size: int | None = None) -> None:
        self._ring.begin(image_id)[: len(content)] = content
        message = ImageMetadata(
            image_id=image_id,
            height=self._height,
            width=self._width,
            size=len(content) if size is None else size,
            dtype=DTYPE_CODES[16],  # pyright: ignore[reportArgumentType]
            status=1,  # pyright: ignore[reportArgumentType]
            compression=self._compression,  # pyright: ignore[reportArgumentType]
            sequence=self._ring.commit(image_id),
        )
        self._stream.send(message.SerializeToString())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        unbind(self._stream, self._endpoint)
        self._context.destroy(linger=200)
        self._ring.close()


@pytest.mark.parametrize("suffix", sorted(FILTERS))
def test_compressed_images_are_stored_byte_by_byte_and_read_back_by_filters(make_rig: MakeRig, suffix: str):
    rig = make_rig(driver=["-s", suffix], writers=False)
    for i in range(2):
        rig.deployment.start("std_det_writer", i, "-s", suffix)
    # Smooth and noisy ones: their compressed sizes differ.
    noise = np.random.default_rng(5).integers(0, 40, (32, 48)).astype("<u2")
    images = [image_of(i) if i % 3 else Image(i, noise + np.uint16(i)) for i in range(15)]
    contents = compress(images, suffix)
    assert len({len(content) for content in contents}) > 1
    compressor = rig.enter(Compressor(rig.deployment, suffix))
    compressor.wait_for_subscriber()
    rig.client.start(rig.directory, n_image=15)
    rig.client.wait_until_ready(5)
    compressor.publish(99, contents[0], size=0)  # Says nothing of its length: no image.
    for image, content in zip(images, contents, strict=True):
        compressor.publish(image.image_id, content)
    account = rig.end()
    assert_saved(account, images)
    assert (account["source"], account["n_malformed"]) == (suffix, 1)
    for writer in range(2):
        with h5py.File(rig.path(f"file{writer}.h5")) as file:
            data: Any = file[f"{rig.config.detector_name}/data"]
            assert data.chunks == (1, 32, 48)
            for row in range(data.shape[0]):
                mask, stored = data.id.read_direct_chunk((row, 0, 0))
                assert bytes(stored) == contents[row * 2 + writer]
                assert mask == 0


def test_overwritten_compressed_images_have_no_pixels(make_rig: MakeRig):
    suffix = "h5bitshuffle-lz4"
    rig = make_rig(driver=["-s", suffix], writers=False, number_of_writers=1)
    writer = rig.deployment.start("std_det_writer", 0, "-s", suffix)
    old, new = image_of(0), image_of(1000)
    (old_content,), (new_content,) = compress([old], suffix), compress([new], suffix)
    compressor = rig.enter(Compressor(rig.deployment, suffix))
    compressor.wait_for_subscriber()
    rig.client.start(rig.directory, n_image=2)
    rig.client.wait_until_ready(5)
    writer.send(signal.SIGSTOP)
    compressor.publish(0, old_content)
    compressor.publish(1000, new_content)
    rig.client.wait_for(lambda status: status.n_received == 2, 5)
    writer.send(signal.SIGCONT)
    account = rig.end()
    assert account["overwritten_ids"] == [0]
    assert_saved(account, [Image(0, np.zeros_like(old.pixels), 3), new])
