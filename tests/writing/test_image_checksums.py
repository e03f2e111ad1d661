"""The checksum of an image goes from its source to the files, and `stddaq validate` compares its pixels."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xxhash
from support.data.raw_files import dataset
from support.peers.cpp_services import CppSource
from support.processes import user_services
from support.processes.deployment import Deployment
from support.processes.recording import (
    DAMAGED,
    Image,
    MakeRig,
    assert_saved,
    image_of,
    images_of,
    read_raw_file,
)
from support.processes.stream_readers import ImageReader, StreamReader

from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.files.id_ranges import IdRanges
from stddaq.files.validate_run import validate_run

COMPRESSORS = {
    "h5bitshuffle-lz4": "std_data_compress_h5bitshuffle_lz4",
    "blosc2": "std_data_compress_blosc2",
}


def checksum_of(image: Image) -> int:
    return int(xxhash.xxh3_64_hexdigest(image.pixels.tobytes()), 16)


def assert_checksums(paths: list[str], images: list[Image]) -> None:
    """Check that the raw files have the checksums of all images."""
    found = {}
    for path in paths:
        rows, _ = read_raw_file(Path(path))
        found.update(zip(rows["image_id"].tolist(), rows["checksum"].tolist(), strict=True))
    assert found == {image.image_id: checksum_of(image) for image in images}


def damage(path: Path, row: int) -> int:
    """Change one pixel of an image in a raw file. Return the id of the image."""
    with h5py.File(path) as file:
        data, rows = (dataset(file, f"{next(iter(file))}/{name}") for name in ("data", "metadata"))
        assert data.chunks is not None
        offset = data.id.get_chunk_info_by_coord((row, 0, 0)).byte_offset
        offset += row % data.chunks[0] * data[0].nbytes
        image_id = int(rows[row]["image_id"])
    with path.open("r+b") as file:
        file.seek(offset + 101)
        byte = file.read(1)
        file.seek(offset + 101)
        file.write(bytes([byte[0] ^ 1]))
    return image_id


@pytest.mark.slow
def test_files_hold_the_checksums_of_the_source_and_a_changed_pixel_is_found(make_rig: MakeRig) -> None:
    rig = make_rig(image_checksums=True, number_of_writers=3)
    images = [*images_of(range(50)), image_of(50, status=DAMAGED)]
    account = rig.record(images)
    assert_saved(account, images)
    assert_checksums(account["files"]["raw"], images)
    with h5py.File(account["files"]["master"]) as file:
        assert dataset(file, "entry/data/metadata")["checksum"].tolist() == list(map(checksum_of, images))
    path = Path(account["files"]["raw"][1])
    report = validate_run(path, pixels=True)
    assert report.n_compared == 51
    assert "  checksums               of 51 images compared" in report.lines()
    assert [problem.about for problem in report.problems] == ["images"]
    image_id = damage(path, 3)
    assert validate_run(path).differing.number == 0
    report = validate_run(path, pixels=True)
    assert report.differing == IdRanges(1, ((image_id, image_id),))
    (found,) = [problem for problem in report.problems if problem.about == "checksums"]
    expected = "expected those of the source for 17 images, got none of 1"
    assert found.text == f"{path}: checksums: {expected}, image ids {image_id} (in the file)"


@pytest.mark.slow
def test_what_only_hdf5_reads_differently_is_found(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig(image_checksums=True, number_of_writers=1)
    account = rig.record(images_of(range(8)))

    def read_wrong(self: h5py.Dataset, target: np.ndarray, source: Any, place: Any) -> None:
        target[place] = self[source] + (source == 5)

    monkeypatch.setattr(h5py.Dataset, "read_direct", read_wrong)
    report = validate_run(Path(account["files"]["raw"][0]), pixels=True)
    (found,) = report.problems
    assert found.text.endswith("none of 1, image ids 5 (as HDF5 reads them)")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_checksums_of_compressed_images_are_those_of_their_pixels(make_rig: MakeRig, suffix: str) -> None:
    rig = make_rig(driver=["-s", suffix], writers=False, image_checksums=True)
    for i in range(2):
        rig.deployment.start("std_det_writer", i, "-s", suffix)
    rig.deployment.start(COMPRESSORS[suffix], "-t", 2)
    assert rig.source.wait_for_subscribers(1, 60)
    images = images_of(range(40))
    # An image that is not made smaller is stored without compression.
    noise = np.random.default_rng(2).integers(0, 2**16, (32, 48)).astype("<u2")
    images.append(Image(40, noise))
    rig.client.start(rig.directory, n_image=len(images))
    rig.client.wait_until_ready(60)
    rig.publish(images)
    account = rig.end()
    assert_saved(account, images)
    assert_checksums(account["files"]["raw"], images)
    report = validate_run(Path(account["files"]["master"]), pixels=True)
    assert (report.n_compared, report.problems) == (41, ())


def test_a_stage_that_makes_new_pixels_makes_their_checksum_and_none_of_a_failed_image(
    make_deployment: Callable[..., Deployment],
) -> None:
    deployment = make_deployment(image_checksums=True)
    deployment.run(
        sys.executable, user_services.__file__, "negate", deployment.config_path, "-t", 2, ready="ready"
    )
    with (
        ImagePublisher(DetectorConfig.parse(deployment.config)) as source,
        StreamReader(deployment, "negated") as reader,
    ):
        assert source.wait_for_subscribers(1, 60)
        images = images_of(range(5))
        for image in images:
            source.metadata.gf.scan_id = 13 if image.image_id == 4 else 0
            source.publish(image.image_id, image.pixels)
        received = reader.receive(5)
    expected = [checksum_of(Image(image.image_id, ~image.pixels)) for image in images[:4]]
    assert [image.metadata.checksum for image in received] == [*expected, 0]


def test_without_the_key_there_are_no_checksums(make_rig: MakeRig) -> None:
    rig = make_rig(number_of_writers=1)
    with ImageReader(rig.deployment) as reader:
        assert rig.source.wait_for_subscribers(2, 60)
        account = rig.record(images_of(range(5)))
        assert [image.metadata.checksum for image in reader.receive(5)] == [0] * 5
    path = Path(account["files"]["raw"][0])
    rows, _ = read_raw_file(path)
    assert rows.dtype.names == ("image_id", "status")
    report = validate_run(path, pixels=True)
    assert (report.n_compared, report.problems) == (0, ())
    assert "  checksums               none recorded" in report.lines()


@pytest.mark.slow
def test_images_of_a_source_without_checksums_are_not_compared(make_rig: MakeRig) -> None:
    rig = make_rig(image_checksums=True, number_of_writers=1)
    images = images_of(range(5))
    with CppSource(rig.deployment.config) as source:
        source.wait_for_subscriber()
        rig.client.start(rig.directory, n_image=5)
        rig.client.wait_until_ready(60)
        for image in images:
            source.publish(image.image_id, image.pixels)
        account = rig.end()
    rows, _ = read_raw_file(Path(account["files"]["raw"][0]))
    assert rows["checksum"].tolist() == [0] * 5
    report = validate_run(Path(account["files"]["raw"][0]), pixels=True)
    assert (report.n_compared, report.problems) == (0, ())


def test_a_short_run_that_is_rewritten_keeps_its_checksums(make_rig: MakeRig) -> None:
    # Chunks for 5000 images, of which 3 are recorded: the file is trimmed.
    rig = make_rig(image_checksums=True, number_of_writers=1, gpfs_block_size=2**24)
    images = images_of(range(3))
    rig.begin(n_image=5000)
    rig.publish(images)
    rig.wait_for_count(3)
    account = rig.end(stop=True)
    assert_checksums(account["files"]["raw"], images)
