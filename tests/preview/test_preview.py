"""`std_preview` as a process: what browsers receive, and that it costs nothing without them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import tifffile
from support.peers.cpp_services import CppSource
from support.processes.deployment import Deployment, wait_until
from support.processes.live_streams import FakeStage, streamed_pixels
from support.processes.previews import previews

from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.dataplane.metadata import MISSING_PACKETS
from stddaq.preview.reduction import MASKED, SATURATED
from stddaq.preview.service import NICENESS
from stddaq.wire.blosc2_chunk import ChunkCompressor
from stddaq.wire.compression import compress_bitshuffle_lz4
from stddaq.wire.preview_requests import Area, Region, Still, View, region_key

ATTACHED = "attached to the ring buffer"


@pytest.fixture
def publisher(deployment: Deployment):
    with ImagePublisher(DetectorConfig.parse(deployment.config)) as publisher:
        yield publisher


def test_newest_image_arrives_with_the_specified_header(
    deployment: Deployment, publisher: ImagePublisher
) -> None:
    service = deployment.start("std_preview", "--hz", 100)
    with previews(deployment) as mean, previews(deployment, View("max")) as largest:
        service.wait_for_line(ATTACHED)
        wait_until(publisher.count_subscribers)
        # The service attaches for the first of them. Its answer shows that it has the request of each.
        for number, reader in enumerate((mean, largest)):
            reader.request(Still(number, 7, "pixels"))
            assert reader.receive_frame()[0]["code"] == "not_shown"
        pixels = streamed_pixels(deployment, 7)
        pixels[3, 4] = 65535
        publisher.publish(7, pixels, status=MISSING_PACKETS)
        header, counts = mean.receive_image()
        assert largest.receive_image()[0]["reducer"] == "max"
    expected = pixels.copy()
    expected[3, 4] = SATURATED
    np.testing.assert_array_equal(counts, expected)
    levels, histogram = header.pop("levels"), header.pop("histogram")
    assert int(header.pop("taken_ns")) > 10**18
    assert histogram["image"] == 7
    assert sum(histogram["counts"]) + histogram["n_below"] + histogram["n_above"] == pixels.size
    assert header == {
        "v": 1,
        "detector": deployment.detector_name,
        "image": 7,
        "time_is": "streamed",
        "status": MISSING_PACKETS,
        "shape": [32, 48],
        "dtype": "uint16",
        "origin": [0, 0],
        "bin": 1,
        "size": [32, 48],
        "reducer": "mean",
        "type": "uint16",
        "scale": 1.0,
        "offset": 0.0,
        "codec": "lz4",
        "planes": True,
        "n_saturated": 1,
        "n_masked": 0,
        "n_missing": 0,
        "min": float(pixels.min()),
        "max": 65535.0,
        "sum": int(pixels.sum(dtype=np.uint64)),
        "overwritten": 0,
        "degraded": False,
        "regions": {},
    }
    assert pixels.min() <= levels[0] < levels[1] <= 65535


@pytest.mark.parametrize("suffix", ["h5bitshuffle-lz4", "blosc2"])
def test_compressed_images_are_shown_and_damaged_ones_reported(deployment: Deployment, suffix: str) -> None:
    pixels = streamed_pixels(deployment, 7)
    compress = ChunkCompressor(2, 5).compress if suffix == "blosc2" else compress_bitshuffle_lz4
    with FakeStage(deployment, suffix) as stage:
        service = deployment.start("std_preview", "-s", suffix, "--hz", 100)
        with previews(deployment, stream=suffix) as reader:
            assert stage.stream.wait_for_subscribers(1, 20)
            stage.publish(7, bytes(compress(pixels)))
            header, counts = reader.receive_image()
            assert header["image"] == 7
            np.testing.assert_array_equal(counts, pixels)
            reader.request(Still(1, 7, "pixels", Area(1, 2, 3, 4)))
            _, payload = reader.receive_frame()
            np.testing.assert_array_equal(np.frombuffer(payload, "u2"), pixels[2:6, 1:4].ravel())
            stage.publish(8, bytes(compress(pixels))[:-9])
            assert reader.receive_frame()[0]["error"].startswith("image 8: ")
            stage.publish(9, bytes(compress(pixels)))
            assert reader.receive_image()[0]["image"] == 9
    service.wait_for_line("no images for browsers: image 8: ")


def test_images_that_a_filter_passes_on_are_shown_beside_all(
    deployment: Deployment, publisher: ImagePublisher
) -> None:
    deployment.start("std_gf_filter")
    for stream in ("image", "filter"):
        deployment.start("std_preview", "-s", stream, "--hz", 100)
    with previews(deployment) as images, previews(deployment, stream="filter") as passed:
        # The filter and the service of all images; that of the filter subscribes at some time.
        wait_until(lambda: publisher.count_subscribers() == 2, 20)
        ids = iter(range(1, 1000))

        def is_passed() -> bool:
            for is_stored in (False, True):
                image_id = next(ids)
                publisher.metadata.gf.store_image = is_stored
                publisher.publish(image_id, streamed_pixels(deployment, image_id))
                assert images.receive_image()[0]["image"] == image_id
            return passed.has_message()

        wait_until(is_passed, 20)
        header, counts = passed.receive_image()
    assert header["image"] % 2 == 0
    np.testing.assert_array_equal(counts, streamed_pixels(deployment, header["image"]))


def test_area_is_sent_with_counts_of_the_whole_image(
    deployment: Deployment, publisher: ImagePublisher
) -> None:
    deployment.start("std_preview", "--hz", 100)
    with previews(deployment, View(area=Area(8, 4, 16, 12))) as reader:
        wait_until(publisher.count_subscribers, 20)
        pixels = streamed_pixels(deployment, 7)
        pixels[0, 0] = 65535
        publisher.publish(7, pixels)
        header, counts = reader.receive_image()
    np.testing.assert_array_equal(counts, pixels[4:16, 8:24])
    assert (header["origin"], header["size"], header["bin"]) == ([4, 8], [12, 16], 1)
    assert (header["n_saturated"], header["sum"]) == (1, int(pixels.sum(dtype=np.uint64)))


def test_numbers_of_a_region_are_those_of_its_pixels(
    deployment: Deployment, publisher: ImagePublisher
) -> None:
    deployment.start("std_preview", "--hz", 100)
    region = Region("box", Area(10, 5, 20, 10))
    with previews(deployment) as reader:
        # Subscriptions of one socket arrive in order.
        reader.request(region)
        reader.request(Still(1, 7, "pixels"))
        wait_until(publisher.count_subscribers)
        assert reader.receive_frame()[0]["code"] == "not_shown"
        pixels = streamed_pixels(deployment, 7)
        publisher.publish(7, pixels)
        header, _ = reader.receive_image()
    part = pixels[5:15, 10:30]
    numbers = header["regions"][region_key(region)]
    assert (numbers["n"], numbers["sum"], numbers["n_saturated"]) == (200, int(part.sum(dtype=np.uint64)), 0)
    assert (numbers["min"], numbers["max"]) == (part.min(), part.max())
    assert (numbers["mean"], numbers["sd"]) == (pytest.approx(part.mean()), pytest.approx(part.std()))


def test_pixels_of_a_shown_image_are_sent_again_until_the_ring_has_others(
    deployment: Deployment, publisher: ImagePublisher
) -> None:
    deployment.start("std_preview", "--hz", 100)
    with previews(deployment) as reader:
        wait_until(publisher.count_subscribers, 20)
        pixels = streamed_pixels(deployment, 7)
        publisher.publish(7, pixels)
        assert reader.receive_image()[0]["image"] == 7
        reader.request(Still(1, 7, "pixels", Area(3, 2, 5, 4)))
        header, payload = reader.receive_frame()
        assert (header["image"], header["size"]) == (7, [4, 5])
        np.testing.assert_array_equal(np.frombuffer(payload, "u2").reshape(4, 5), pixels[2:6, 3:8])
        reader.request(Still(2, 8, "pixels"))
        assert reader.receive_frame()[0]["code"] == "not_shown"
        publisher.begin(7 + publisher.n_slots)[:] = 1
        reader.request(Still(3, 7, "pixels"))
        assert reader.receive_frame()[0]["code"] == "overwritten"


def test_overwritten_image_is_counted_and_never_shown(
    deployment: Deployment, publisher: ImagePublisher
) -> None:
    service = deployment.start("std_preview", "--hz", 100)
    with previews(deployment) as reader:
        service.wait_for_line(ATTACHED)
        wait_until(publisher.count_subscribers)
        service.send(signal.SIGSTOP)
        publisher.publish(5, streamed_pixels(deployment, 5))
        publisher.begin(5 + publisher.n_slots)[:] = 1
        service.send(signal.SIGCONT)
        service.wait_for_line("n_overwritten_images=1,")
        publisher.publish(6, streamed_pixels(deployment, 6))
        header, counts = reader.receive_image()
    assert (header["image"], header["overwritten"]) == (6, 1)
    np.testing.assert_array_equal(counts, streamed_pixels(deployment, 6))


def test_images_of_a_source_without_cursor_are_shown(deployment: Deployment) -> None:
    with CppSource(deployment.config) as source:
        deployment.start("std_preview", "--hz", 100)
        with previews(deployment) as reader:
            source.wait_for_subscriber()
            for image_id in (3, 4):
                source.publish(image_id, streamed_pixels(deployment, image_id))
                header, counts = reader.receive_image()
                assert (header["image"], header["status"]) == (image_id, 1)
                np.testing.assert_array_equal(counts, streamed_pixels(deployment, image_id))


@pytest.mark.slow
def test_it_is_attached_to_the_ring_only_while_a_browser_shows_images(
    deployment: Deployment, publisher: ImagePublisher
) -> None:
    service = deployment.start("std_preview")
    assert publisher.count_subscribers() == 0
    for _ in range(2):
        seen = len(service.stdout)
        with previews(deployment):
            service.wait_for_line(ATTACHED, start=seen)
            wait_until(publisher.count_subscribers)
        service.wait_for_line("detached from the ring buffer", start=seen)
        wait_until(lambda: publisher.count_subscribers() == 0)


def test_without_a_source_browsers_read_why_there_is_no_image(deployment: Deployment) -> None:
    deployment.start("std_preview")
    with previews(deployment) as reader:
        header, payload = reader.receive_frame()
        assert (header["code"], header["error"]) == ("no_source", "no source has published images yet")
        assert len(payload) == 0
        assert deployment.segments() == []
        with ImagePublisher(DetectorConfig.parse(deployment.config)) as publisher:
            wait_until(publisher.count_subscribers)
            publisher.publish(1, streamed_pixels(deployment, 1))
            assert reader.receive_image()[0]["image"] == 1


@pytest.mark.parametrize("suffix", [".npy", ".tiff"])
def test_pixels_of_a_mask_file_are_masked(
    deployment: Deployment, publisher: ImagePublisher, tmp_path: Path, suffix: str
) -> None:
    mask, path = np.zeros((32, 48), np.uint8), tmp_path / f"mask{suffix}"
    mask[3:5, 4:10] = 1
    np.save(path, mask) if suffix == ".npy" else tifffile.imwrite(path, mask)
    deployment.start("std_preview", "--hz", 100, "--mask", path)
    with previews(deployment) as reader:
        wait_until(publisher.count_subscribers, 20)
        publisher.publish(1, streamed_pixels(deployment, 1))
        header, counts = reader.receive_image()
    np.testing.assert_array_equal(counts == MASKED, mask == 1)
    assert header["n_masked"] == 12


def test_mask_file_that_does_not_fit_is_refused(deployment: Deployment, tmp_path: Path) -> None:
    np.save(tmp_path / "mask.npy", np.zeros((32, 47), np.uint8))
    (tmp_path / "damaged.npy").write_bytes(b"nothing")
    for name, reason in (
        ("mask.npy", "expected an image of shape (32, 48), got (32, 47)"),
        ("damaged.npy", "damaged.npy: "),
        ("absent.npy", "No such file"),
    ):
        service = deployment.start("std_preview", "--mask", tmp_path / name, ready=None)
        assert service.wait() == 2
        assert reason in service.stderr[0]


def test_everything_else_comes_first(deployment: Deployment) -> None:
    service = deployment.start("std_preview")
    assert os.getpriority(os.PRIO_PROCESS, service.pid) - os.getpriority(os.PRIO_PROCESS, 0) == NICENESS
    assert Path(f"/proc/{service.pid}/oom_score_adj").read_text().strip() == "500"
