"""HDF5's filters and the libraries themselves read the output of the compressors."""

from __future__ import annotations

import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitshuffle
import h5py
import hdf5plugin
import numpy as np
import pytest
from support.peers import c_blosc2
from support.peers.cpp_services import CppSource
from support.processes.deployment import SHM_DIRECTORY, Deployment, Service, make_config, wait_until
from support.processes.machine import assert_within
from support.processes.recording import Image, image_of, images_of
from support.processes.sources import refusal
from support.processes.stream_readers import ReceivedImage, StreamReader

from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.dataplane.metadata import COMPRESSION_OF_SUFFIX
from stddaq.files.compressed_chunks import ChunkMaker
from stddaq.processing import compressors
from stddaq.processing.codecs import Blosc2
from stddaq.wire.blosc2_chunk import decompress_chunk_into
from stddaq.wire.compression import compress_bitshuffle_lz4, decompress_bitshuffle_lz4

SERVICES = {
    "h5bitshuffle-lz4": "std_data_compress_h5bitshuffle_lz4",
    "blosc2": "std_data_compress_blosc2",
}
SUFFIXES = sorted(SERVICES)
MakeDeployment = Callable[..., Deployment]


def start_compressor(deployment: Deployment, suffix: str, *args: object, threads: int = 2) -> Service:
    return deployment.start(SERVICES[suffix], "-t", threads, *args)


def decoded(image: ReceivedImage, suffix: str, config: DetectorConfig) -> np.ndarray:
    """Return the pixels as decoded by the library that defines the format."""
    if suffix == "blosc2":
        return c_blosc2.decompress(image.content, config.image_shape, config.dtype)
    total, block_bytes = struct.unpack_from(">qi", image.content)
    assert total == config.image_bytes
    return bitshuffle.decompress_lz4(
        np.frombuffer(image.content, np.uint8, offset=12),
        config.image_shape,
        config.dtype,
        block_bytes // config.dtype.itemsize,
    )


def noise_of(image_id: int, config: DetectorConfig) -> Image:
    """Return an incompressible image."""
    bytes_ = np.random.default_rng(image_id).bytes(config.image_bytes)
    return Image(image_id, np.frombuffer(bytes_, config.dtype).reshape(config.image_shape))


def publish(source: ImagePublisher, images: list[Image]) -> None:
    for image in images:
        source.publish(image.image_id, image.pixels, image.status)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"detector_type": "eiger", "bit_depth": 8, "image_pixel_height": 31, "image_pixel_width": 37},
        {"detector_type": "eiger", "bit_depth": 32},
        {"detector_type": "jungfrau-converted", "bit_depth": 32},
    ],
    ids=["u2", "u1-odd", "u4", "f4"],
)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_compressed_images_are_those_of_the_source_in_order(
    make_deployment: MakeDeployment, suffix: str, overrides: dict[str, Any]
):
    deployment = make_deployment(**overrides)
    config = DetectorConfig.parse(deployment.config)
    with ImagePublisher(config) as source:
        start_compressor(deployment, suffix, threads=3)
        assert source.wait_for_subscribers(1, 20)
        with StreamReader(deployment, suffix) as reader:
            how = {"shape": config.image_shape, "dtype": config.dtype.str}
            images = [image_of(i, status=1 + i % 2, **how) for i in range(5, 500, 3)]
            publish(source, images)
            received = reader.receive(len(images))
    assert [(image.image_id, image.status) for image in received] == [(i.image_id, i.status) for i in images]
    sequences = [image.metadata.sequence for image in received]
    assert sequences == list(range(sequences[0], sequences[0] + len(images)))
    for image, original in zip(received, images, strict=True):
        assert image.is_held
        metadata = image.metadata
        assert (metadata.compression, metadata.size) == (COMPRESSION_OF_SUFFIX[suffix], len(image.content))
        assert metadata.dtype == source.metadata.dtype
        np.testing.assert_array_equal(decoded(image, suffix, config), original.pixels)


def test_compressed_images_keep_their_detector_fields(deployment: Deployment):
    config = DetectorConfig.parse(deployment.config)
    with ImagePublisher(config) as source:
        start_compressor(deployment, "blosc2")
        assert source.wait_for_subscribers(1, 20)
        with StreamReader(deployment, "blosc2") as reader:
            source.metadata.gf.scan_id = 17
            publish(source, images_of(range(3)))
            assert [image.metadata.gf.scan_id for image in reader.receive(3)] == [17, 17, 17]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_incompressible_images_are_stored_without_compression(deployment: Deployment, suffix: str):
    config = DetectorConfig.parse(deployment.config)
    images = [noise_of(0, config), image_of(1), noise_of(2, config), image_of(3)]
    with ImagePublisher(config) as source:
        service = start_compressor(deployment, suffix)
        assert source.wait_for_subscribers(1, 20)
        with StreamReader(deployment, suffix) as reader:
            publish(source, images)
            received = reader.receive(4)
    for image, original in zip(received, images, strict=True):
        is_compressed = image.metadata.compression != 0
        assert is_compressed == (image.image_id % 2 == 1)
        pixels = decoded(image, suffix, config) if is_compressed else image.pixels
        np.testing.assert_array_equal(pixels, original.pixels)
    service.wait_for_count("n_uncompressed_images", 2)


def test_blob_has_blocks_of_the_requested_size(deployment: Deployment):
    config = DetectorConfig.parse(deployment.config)
    image = image_of(0)
    with ImagePublisher(config) as source:
        start_compressor(deployment, "h5bitshuffle-lz4", "-b", 256)
        assert source.wait_for_subscribers(1, 20)
        with StreamReader(deployment, "h5bitshuffle-lz4") as reader:
            publish(source, [image])
            (received,) = reader.receive(1)
    assert struct.unpack_from(">qi", received.content) == (config.image_bytes, 512)
    assert received.content[12:] == bitshuffle.compress_lz4(image.pixels, 256).tobytes()


def test_levels_of_blosc2_differ_in_size(deployment: Deployment):
    sizes = {}
    config = DetectorConfig.parse(deployment.config)
    image = Image(0, np.random.default_rng(1).poisson(20, (32, 48)).astype("<u2"))
    with ImagePublisher(config) as source:
        for level in (0, 9):
            service = start_compressor(deployment, "blosc2", "-l", level)
            assert source.wait_for_subscribers(1, 20)
            with StreamReader(deployment, "blosc2") as reader:
                publish(source, [image])
                (received,) = reader.receive(1)
                sizes[level] = received.metadata.size
            assert service.end() == 0
    # Level 0 does not compress, so that the image with a header would not fit.
    assert sizes[9] < sizes[0] == config.image_bytes


@pytest.mark.parametrize("dtype", ["u1", "<u2", "<u4", "<f4"])
def test_blobs_of_stddaq_and_bitshuffle_can_be_exchanged(dtype: str):
    pixels = np.random.default_rng(3).poisson(9, (61, 53)).astype(dtype)
    theirs = struct.pack(">qi", pixels.nbytes, 8192) + bitshuffle.compress_lz4(pixels).tobytes()
    ours = bytes(compress_bitshuffle_lz4(pixels))
    assert ours == theirs
    np.testing.assert_array_equal(decompress_bitshuffle_lz4(theirs, pixels.shape, pixels.dtype), pixels)
    decoded = bitshuffle.decompress_lz4(np.frombuffer(ours[12:], "u1"), pixels.shape, pixels.dtype)
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_hdf5_filters_read_the_output_of_compressors(
    make_deployment: MakeDeployment, tmp_path: Path, suffix: str
):
    # Images are larger than a block of either codec. Blosc2 treats uniform images separately.
    deployment = make_deployment(image_pixel_height=200, image_pixel_width=300)
    config = DetectorConfig.parse(deployment.config)
    images = [
        Image(0, np.zeros(config.image_shape, "<u2")),
        Image(1, np.full(config.image_shape, 777, "<u2")),
        Image(2, np.random.default_rng(1).poisson(50, config.image_shape).astype("<u2")),
    ]
    with ImagePublisher(config) as source:
        start_compressor(deployment, suffix)
        assert source.wait_for_subscribers(1, 20)
        with StreamReader(deployment, suffix) as reader:
            publish(source, images)
            received = reader.receive(3)
    filters: Any = {"blosc2": hdf5plugin.Blosc2(), "h5bitshuffle-lz4": hdf5plugin.Bitshuffle()}
    chunks = ChunkMaker(COMPRESSION_OF_SUFFIX[suffix], config.image_shape, config.dtype)
    with h5py.File(tmp_path / "compressed.h5", "w") as file:
        data = file.create_dataset("data", (3, 200, 300), "<u2", chunks=(1, 200, 300), **filters[suffix])
        for row, image in enumerate(received):
            data.id.write_direct_chunk((row, 0, 0), chunks.chunk(memoryview(image.content)))
        for row, original in enumerate(images):
            np.testing.assert_array_equal(data[row], original.pixels)


def test_blosc2_chunks_are_those_of_the_c_library():
    # The versions of the library may differ, and with them the bytes of the codec.
    pixels = np.random.default_rng(3).poisson(9, (61, 53)).astype("<u2")
    codec = Blosc2(DetectorConfig.parse(make_config(image_pixel_height=61, image_pixel_width=53)), level=5)
    room = np.empty(pixels.nbytes, np.uint8)
    size = codec(pixels, room)
    assert size is not None
    ours, theirs = room[:size].tobytes(), c_blosc2.compress(pixels)
    # Format, codec and shuffle, pixel size, data size.
    assert ours[:8] == theirs[:8]
    # The filters of the extended header.
    assert ours[16:32] == theirs[16:32]
    np.testing.assert_array_equal(c_blosc2.decompress(ours, pixels.shape, pixels.dtype), pixels)
    decoded = np.empty_like(pixels)
    decompress_chunk_into(theirs, decoded)
    np.testing.assert_array_equal(decoded, pixels)


def test_image_too_large_for_blosc2_is_refused(
    make_deployment: MakeDeployment, capsys: pytest.CaptureFixture[str]
):
    deployment = make_deployment(image_pixel_height=50_000, image_pixel_width=40_000)
    line = refusal(capsys, compressors.main_blosc2, "-t", 1, deployment.config_path)
    assert "image: expected up to 2147483615 bytes, got 4000000000" in line


def test_overwritten_images_are_forwarded_as_overwritten_without_pixels(deployment: Deployment):
    config = DetectorConfig.parse(deployment.config)
    with ImagePublisher(config) as source:
        service = start_compressor(deployment, "h5bitshuffle-lz4")
        assert source.wait_for_subscribers(1, 20)
        with StreamReader(deployment, "h5bitshuffle-lz4") as reader:
            service.send(signal.SIGSTOP)
            images = images_of(range(1010))
            publish(source, images)
            service.send(signal.SIGCONT)
            received = reader.receive(len(images))
    assert [image.image_id for image in received] == list(range(1010))
    assert [image.image_id for image in received if image.status == 3] == list(range(10))
    for image, original in zip(received, images, strict=True):
        pixels = np.zeros((32, 48), "<u2") if image.status == 3 else original.pixels
        if image.is_held:  # The ring of the compressor has wrapped around as well.
            np.testing.assert_array_equal(decoded(image, "h5bitshuffle-lz4", config), pixels)
    assert sum(image.is_held for image in received) >= 900
    service.wait_for_count("n_overwritten_images", 10)


def test_images_of_a_source_without_cursor_are_compressed_after_the_hold_time(deployment: Deployment):
    config = DetectorConfig.parse(deployment.config)
    with CppSource(deployment.config) as source:
        service = start_compressor(deployment, "blosc2")
        source.wait_for_subscriber()
        with StreamReader(deployment, "blosc2") as reader:
            images = images_of(range(50))
            for image in images:
                source.publish(image.image_id, image.pixels)
            received = reader.receive(50)
            for image, original in zip(received, images, strict=True):
                assert image.status == 1
                np.testing.assert_array_equal(decoded(image, "blosc2", config), original.pixels)
            service.send(signal.SIGSTOP)
            for image in images_of(range(50, 1200)):
                source.publish(image.image_id, image.pixels)
            service.send(signal.SIGCONT)
            received = reader.receive(1150)
    for image, original in zip(received, images_of(range(50, 1200)), strict=True):
        if image.status == 1:
            np.testing.assert_array_equal(decoded(image, "blosc2", config), original.pixels)
    lost = [image.image_id for image in received if image.status == 3]
    # 150 images were overwritten. Only the newest id is known, so some more are suspect.
    assert lost == list(range(50, 50 + len(lost)))
    assert 150 <= len(lost) <= 300


@pytest.mark.slow
def test_a_recreated_cpp_ring_is_never_read_as_the_old_one(deployment: Deployment):
    config = DetectorConfig.parse(deployment.config)
    with CppSource(deployment.config) as source:
        service = start_compressor(deployment, "blosc2")
        source.wait_for_subscriber()
        with StreamReader(deployment, "blosc2") as reader:

            def compressed(first_id: int) -> list[int]:
                images = images_of(range(first_id, first_id + 20))
                for image in images:
                    source.publish(image.image_id, image.pixels)
                received = reader.receive(20)
                for image, original in zip(received, images, strict=True):
                    if image.status == 1:
                        np.testing.assert_array_equal(decoded(image, "blosc2", config), original.pixels)
                return [image.status for image in received]

            assert compressed(0) == [1] * 20
            source.remake_ring()
            # These reuse the first slots. The service trusts none of them until it has the new ring.
            compressed(1000)
            service.wait_for_line("was removed, attaching to a new one")
            assert compressed(2000) == [1] * 20


@pytest.mark.fault(
    fault="the ring buffer of a source is removed while a compressor reads it",
    state="images at a constant rate",
    promise="images are damaged for a second or two, then good again; no wrong pixels",
)
def test_compressor_follows_a_new_ring_while_images_arrive(make_deployment: MakeDeployment):
    # Its statistics must not decide when it follows.
    deployment = make_deployment(stats_collection_period=60)
    config = DetectorConfig.parse(deployment.config)
    with ImagePublisher(config) as source:
        start_compressor(deployment, "h5bitshuffle-lz4")
        assert source.wait_for_subscribers(1, 20)
        with StreamReader(deployment, "h5bitshuffle-lz4") as reader:
            ring, image_ids = SHM_DIRECTORY / f"{config.detector_name}-image", iter(range(10**9))
            ring.unlink()
            wait_until(lambda: source.count_subscribers() and ring.exists(), what="the new ring")

            def is_good_again() -> bool:
                (image,) = images_of([next(image_ids)])
                publish(source, [image])
                (received,) = reader.receive(1)
                if received.status == 1:
                    pixels = decoded(received, "h5bitshuffle-lz4", config)
                    np.testing.assert_array_equal(pixels, image.pixels)
                return received.status == 1

            wait_until(is_good_again, what="a good image from the new ring")


def test_restart_of_image_ids_is_forwarded_in_order(deployment: Deployment):
    config = DetectorConfig.parse(deployment.config)
    images = [*images_of(range(40)), *images_of(range(40), salt=1), *images_of([7] * 5, salt=2)]
    with ImagePublisher(config) as source:
        start_compressor(deployment, "h5bitshuffle-lz4", threads=4)
        assert source.wait_for_subscribers(1, 20)
        with StreamReader(deployment, "h5bitshuffle-lz4") as reader:
            for image in images:
                source.publish(image.image_id, image.pixels)
                (received,) = reader.receive(1)
                assert received.image_id == image.image_id
                np.testing.assert_array_equal(decoded(received, "h5bitshuffle-lz4", config), image.pixels)
            publish(source, images)
            received = reader.receive(len(images))
    assert [image.image_id for image in received] == [image.image_id for image in images]


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_busy_compressor_ends_at_once(deployment: Deployment, signal_number: int):
    config = DetectorConfig.parse(deployment.config)
    with ImagePublisher(config) as source:
        service = start_compressor(deployment, "blosc2")
        assert source.wait_for_subscribers(1, 20)
        publish(source, images_of(range(900)))
        begin = time.monotonic()
        assert service.end(signal_number) == 0
        assert_within(time.monotonic() - begin, 5)
    assert service.stderr == []


@pytest.mark.slow
def test_restarted_compressor_continues(deployment: Deployment):
    config = DetectorConfig.parse(deployment.config)
    with ImagePublisher(config) as source:
        service = start_compressor(deployment, "blosc2")
        with StreamReader(deployment, "blosc2") as reader:
            for begin in (0, 10):
                assert source.wait_for_subscribers(1, 20)
                service.wait_for_line("n_subscribers=1,")
                images = images_of(range(begin, begin + 5))
                publish(source, images)
                received = reader.receive(5)
                for image, original in zip(received, images, strict=True):
                    assert image.is_held
                    np.testing.assert_array_equal(decoded(image, "blosc2", config), original.pixels)
                if begin == 0:
                    service.kill()
                    wait_until(lambda: source.count_subscribers() == 0, what="the source to notice")
                    reader.wait_for_publisher(False)
                    service = start_compressor(deployment, "blosc2")
                    reader.wait_for_publisher()


def test_lost_and_malformed_messages_are_counted(deployment: Deployment):
    config = DetectorConfig.parse(deployment.config)
    with ImagePublisher(config) as source:
        service = start_compressor(deployment, "blosc2")
        assert source.wait_for_subscribers(1, 20)
        with StreamReader(deployment, "blosc2") as reader:
            publish(source, images_of([0]))
            source.socket.send(b"\xff")
            publish(source, images_of([1]))
            assert [image.image_id for image in reader.receive(2)] == [0, 1]
    service.wait_for_line("n_overwritten_images=0,n_failed_images=0,n_dropped_messages=0,n_malformed=1 ")


@pytest.mark.parametrize(
    ("suffix", "arguments", "reason"),
    [
        ("blosc2", [], "the following arguments are required: -t/--threads"),
        ("blosc2", ["-t", 0], "expected an integer from 1 to 1024, got '0'"),
        ("blosc2", ["-t", 1, "-l", 10], "expected an integer from 0 to 9, got '10'"),
        (
            "blosc2",
            ["-t", 1, "-s", "blosc2"],
            '--source_suffix: expected a stream of uncompressed images, got "blosc2"',
        ),
        ("h5bitshuffle-lz4", ["-t", 1, "-b", 12], "expected a multiple of 8, or 0, got '12'"),
        ("h5bitshuffle-lz4", ["-t", 1, "-b", 2**32], "up to 1073741824, got 8589934592"),
    ],
)
def test_impossible_arguments_are_refused_with_the_reason(
    deployment: Deployment,
    capsys: pytest.CaptureFixture[str],
    suffix: str,
    arguments: list[object],
    reason: str,
):
    mains = {"blosc2": compressors.main_blosc2, "h5bitshuffle-lz4": compressors.main_h5bitshuffle_lz4}
    line = refusal(capsys, mains[suffix], *arguments, deployment.config_path)
    assert line.startswith(f"{SERVICES[suffix]}: error: ")
    assert reason in line


def test_second_compressor_of_a_stream_is_refused(deployment: Deployment, capsys: pytest.CaptureFixture[str]):
    start_compressor(deployment, "blosc2")
    line = refusal(capsys, compressors.main_blosc2, "-t", 1, deployment.config_path)
    assert "another running service is bound there" in line
