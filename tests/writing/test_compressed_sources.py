"""Compressed images are stored byte for byte, and HDF5's own filters can read them."""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import bitshuffle
import blosc2
import h5py
import hdf5plugin  # noqa: F401  (registers the filters)
import numpy as np
import pytest
import zmq
from support.assertions.faults import wait_for_error
from support.data.raw_files import compressed_image
from support.peers import c_blosc2
from support.peers.cpp_services import DTYPE_CODES, CppSource
from support.processes.deployment import Deployment
from support.processes.recording import Image, MakeRig, Rig, assert_saved, image_of
from support.tools.fault_table import Seen

from stddaq.closing import Closing
from stddaq.config import DetectorConfig
from stddaq.dataplane.connections import open_socket
from stddaq.dataplane.endpoints import metadata_stream
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.dataplane.ipc_sockets import Binding
from stddaq.dataplane.metadata import COMPRESSION_OF_SUFFIX, ImageMetadata
from stddaq.dataplane.ring_buffer import RingBuffer

SUFFIXES = ["blosc2", "h5bitshuffle-lz4"]


def compress(images: Sequence[Image], suffix: str) -> list[bytes]:
    """What a std_daq compressor (C++) makes of each image."""
    return [compress_image(image.pixels, suffix) for image in images]


def compress_image(pixels: np.ndarray, suffix: str) -> bytes:
    if suffix == "blosc2":
        return c_blosc2.compress(pixels)
    # C++ announces the default of the library as a block size of 0.
    return struct.pack(">qi", pixels.nbytes, 0) + bitshuffle.compress_lz4(pixels).tobytes()


class Compressor(Closing):
    """Publishes blobs as a compressor does; a context manager."""

    def __init__(self, deployment: Deployment, suffix: str) -> None:
        config = DetectorConfig.parse(deployment.config)
        self._compression = COMPRESSION_OF_SUFFIX[suffix]
        self._height, self._width = config.image_shape
        self._context = zmq.Context()
        self._stream = open_socket(self._context, zmq.XPUB)
        self._binding = Binding(self._stream, metadata_stream(config.detector_name, suffix))
        self._ring = RingBuffer(config, suffix)

    def wait_for_subscriber(self) -> None:
        assert self._stream.poll(60_000)

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

    def close(self) -> None:
        self._binding.close()
        self._context.destroy(linger=200)
        self._ring.close()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_compressed_images_are_stored_byte_for_byte_and_read_by_filters(make_rig: MakeRig, suffix: str):
    rig = make_rig(driver=["-s", suffix], writers=False)
    for i in range(2):
        rig.deployment.start("std_det_writer", i, "-s", suffix)
    # Smooth and noisy images, whose compressed sizes differ.
    noise = np.random.default_rng(5).integers(0, 40, (32, 48)).astype("<u2")
    images = [image_of(i) if i % 3 else Image(i, noise + np.uint16(i)) for i in range(15)]
    contents = compress(images, suffix)
    assert len({len(content) for content in contents}) > 1
    compressor = rig.enter(Compressor(rig.deployment, suffix))
    compressor.wait_for_subscriber()
    rig.client.start(rig.directory, n_image=15)
    rig.client.wait_until_ready(60)
    compressor.publish(99, contents[0], size=0)  # A message without a size is not an image.
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
                assert compressed_image(stored, suffix) == contents[row * 2 + writer]
                assert mask == 0


def test_overwritten_compressed_images_have_no_pixels(make_rig: MakeRig):
    suffix = "h5bitshuffle-lz4"
    rig = make_rig(driver=["-s", suffix], writers=False, tolerant=True, number_of_writers=1)
    writer = rig.deployment.start("std_det_writer", 0, "-s", suffix)
    old, new = image_of(0), image_of(1000)
    (old_content,), (new_content,) = compress([old], suffix), compress([new], suffix)
    compressor = rig.enter(Compressor(rig.deployment, suffix))
    compressor.wait_for_subscriber()
    rig.client.start(rig.directory, n_image=2)
    rig.client.wait_until_ready(60)
    writer.send(signal.SIGSTOP)
    compressor.publish(0, old_content)
    compressor.publish(1000, new_content)
    rig.client.wait_for(lambda status: status.n_received == 2, 60)
    writer.send(signal.SIGCONT)
    account = rig.end()
    assert account["overwritten_ids"] == [0]
    assert_saved(account, [Image(0, np.zeros_like(old.pixels), 3), new])


# Another process, with nothing of this package, reads pixel sums with HDF5's filters.
READ = """
import json, sys, h5py, hdf5plugin
with h5py.File(sys.argv[1], locking=False) as file:
    print(json.dumps([int(image.sum()) for image in file["/entry/data/data"]]))
"""
# And one that has not registered these filters itself.
OPEN = """
import json, sys, stddaq
print(json.dumps([int(image.sum()) for image in stddaq.open_run(sys.argv[1]).images]))
"""


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_a_cpp_compressor_makes_is_stored_readably(make_rig: MakeRig, suffix: str):
    rig, compressor = cpp_compressor(make_rig, suffix)
    noise = np.random.default_rng(1).integers(0, 2**16, (32, 48), "u2").astype("<u2")
    images = [*(image_of(i) for i in range(18)), Image(18, np.zeros((32, 48), "<u2"))]
    for image in images:
        compressor.publish_compressed(
            image.image_id, compress_image(image.pixels, suffix), COMPRESSION_OF_SUFFIX[suffix]
        )
    compressor.publish(19, noise)
    images.append(Image(19, noise))
    account = rig.end()
    assert_saved(account, images)
    master = account["files"]["master"]
    for code in (READ, OPEN):
        read = subprocess.run(
            [sys.executable, "-c", code, master], capture_output=True, text=True, check=True, timeout=60
        )
        assert json.loads(read.stdout) == [int(image.pixels.sum()) for image in images]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_images_of_a_cpp_compressor_that_passes_sequence_numbers_on_are_recorded(
    make_rig: MakeRig, suffix: str
):
    rig, compressor = cpp_compressor(make_rig, suffix)
    images = [image_of(i) for i in range(20)]
    with ImagePublisher(rig.config) as source:
        for image in images:
            number = source.publish(image.image_id, image.pixels)
            compressor.publish_compressed(
                image.image_id,
                compress_image(image.pixels, suffix),
                COMPRESSION_OF_SUFFIX[suffix],
                of=ImageMetadata.FromString(source.metadata.SerializeToString()),
            )
            assert source.metadata.sequence == number
        assert_saved(rig.end(), images)


@pytest.mark.fault(
    fault="compressor publishes another format than its stream's (Blosc2 frames instead of chunks)",
    state="recording",
    promise="refused at the first image, which is named; never `file_saved`",
)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_image_that_hdf5_could_not_read_is_never_saved(make_rig: MakeRig, suffix: str, seen: Seen):
    rig, compressor = cpp_compressor(make_rig, suffix)
    image = image_of(0)
    options: Any = {"contiguous": True, "data": image.pixels, "cparams": blosc2.CParams(typesize=2)}
    frame = blosc2.SChunk(**options)
    compressor.publish_compressed(0, frame.to_cframe(), COMPRESSION_OF_SUFFIX[suffix])
    account, _seconds = wait_for_error(rig, within=5.0)
    assert "file0.h5: image 0: " in account["reason"]
    assert (account["n_good"], account["failed_ids"]) == (0, [0])
    seen(f"error, 1 of 1 image failed: {account['reason'].split('image 0: ')[1]}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_image_cut_off_in_mid_run_fails_and_those_before_it_are_readable(make_rig: MakeRig, suffix: str):
    rig, compressor = cpp_compressor(make_rig, suffix, number_of_writers=1)
    compression = COMPRESSION_OF_SUFFIX[suffix]
    for image in map(image_of, range(5)):
        compressor.publish_compressed(image.image_id, compress_image(image.pixels, suffix), compression)
    compressor.publish_compressed(5, compress_image(image_of(5).pixels, suffix)[:11], compression)
    account, _seconds = wait_for_error(rig, within=5.0)
    assert "file0.h5: image 5: " in account["reason"]
    assert (account["n_good"], account["failed_ids"]) == (5, [5])
    with h5py.File(rig.path("file0.h5"), locking=False) as file:
        data: Any = file[f"{rig.config.detector_name}/data"]
        np.testing.assert_array_equal(data[:], [image_of(i).pixels for i in range(5)])


def cpp_compressor(make_rig: MakeRig, suffix: str, number_of_writers: int = 2) -> tuple[Rig, CppSource]:
    """A run that waits for the images of a compressor in C++."""
    rig = make_rig(driver=["-s", suffix], writers=False, number_of_writers=number_of_writers)
    for i in range(number_of_writers):
        rig.deployment.start("std_det_writer", i, "-s", suffix)
    compressor = rig.enter(CppSource(rig.deployment.config, suffix))
    compressor.wait_for_subscriber()
    rig.client.start(rig.directory, n_image=20)
    rig.client.wait_until_ready(60)
    return rig, compressor
