"""The published images file: its images, and its replacement."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.data import raw_files
from support.data.raw_files import RunSpec, dataset, stream, write_raw_file, write_run

from stddaq.errors import FileLayoutError
from stddaq.files import published_images
from stddaq.files.growing_run import GrowingFiles, Images, in_order
from stddaq.files.nexus import DATA, IMAGE_METADATA
from stddaq.files.published_images import CAN_PREPARE, PublishedImagesFile, published_images_name


def images_of_run(directory: Path, ids: Sequence[int]) -> Images:
    """Make a run of two raw files. Return its images."""
    write_run(directory, stream(ids))
    files = GrowingFiles([directory / "file0.h5", directory / "file1.h5"])
    end = [sum(image_id % 2 == writer for image_id in ids) for writer in (0, 1)]
    images = in_order(files.files, (0, 0), files.ids((0, 0), end))
    assert images is not None
    return images


def shown(path: Path) -> list[int]:
    """Compare every pixel of a file with the raw files. Return its image ids."""
    with h5py.File(path) as file:
        ids = dataset(file, IMAGE_METADATA)[()]["image_id"].tolist()
        pixels = dataset(file, DATA)[()]
    assert np.array_equal(pixels, raw_files.pixels(stream(ids)))
    return ids


@pytest.mark.parametrize(
    ("number", "name"), [(0, "scan_Published.h5"), (1, "scan_Published2.h5"), (2, "scan_Published3.h5")]
)
def test_first_file_has_no_number(number: int, name: str) -> None:
    assert published_images_name("scan_", number) == name


@pytest.mark.parametrize("live", [True, False])
def test_images_of_several_raw_files_are_one_array(tmp_path: Path, live: bool) -> None:
    published = PublishedImagesFile(tmp_path / "Published.h5")
    published.extend(images_of_run(tmp_path, [0, 1, 2, 3, 6, 7, 9]))
    published.write(live=live)
    assert shown(published.path) == [0, 1, 2, 3, 6, 7, 9]
    assert published.n_images == 7
    assert [path.name for path in published.raw_files] == ["file0.h5", "file1.h5"]
    assert not list(tmp_path.glob(".*"))


def take_points(published: PublishedImagesFile, images: Images, n: int) -> None:
    """Publish `images` in points of `n`, and prepare the file of each."""
    for i in range(0, len(images), n):
        published.prepare(n)
        published.extend(images[i : i + n])
        published.write(live=True)
        assert shown(published.path) == images.ids[: i + n].tolist()


@pytest.mark.skipif(not CAN_PREPARE, reason="HDF5 1.14 cannot prepare files")
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_file_that_was_prepared_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    images = images_of_run(tmp_path, range(12))
    published = PublishedImagesFile(tmp_path / "Published.h5")
    take_points(published, images[:6], n)
    for i in range(6, 12, n):
        published.prepare(n)
        published.extend(images[i : i + n])
        with monkeypatch.context() as patch:
            patch.setattr(published_images, "create_virtual_dataset", None)
            published.write(live=True)
        assert shown(published.path) == list(range(i + n))


@pytest.mark.parametrize(
    "ids", [[*range(6), 7, 8, 9, 12, 14, 15, 16, 17, 18, 19], [0, 2, 4, 6, 7, 9, 11, 13]]
)
def test_a_prepared_file_is_not_used_when_other_images_come(tmp_path: Path, ids: list[int]) -> None:
    take_points(PublishedImagesFile(tmp_path / "Published.h5"), images_of_run(tmp_path, ids), 1)
    assert not list(tmp_path.glob(".*"))


def test_a_prepared_file_is_not_used_after_images_were_removed(tmp_path: Path) -> None:
    images = images_of_run(tmp_path, range(12))
    published = PublishedImagesFile(tmp_path / "Published.h5")
    take_points(published, images[:8], 1)
    published.prepare(1)
    published.truncate(6)
    published.extend(images[8:11])
    published.write(live=True)
    assert shown(published.path) == [0, 1, 2, 3, 4, 5, 8, 9, 10]
    published.prepare(1)
    published.write(live=False)
    assert shown(published.path) == [0, 1, 2, 3, 4, 5, 8, 9, 10]


def test_points_are_appended_one_by_one(tmp_path: Path) -> None:
    images = images_of_run(tmp_path, range(10))
    published = PublishedImagesFile(tmp_path / "Published.h5")
    for i in range(len(images)):
        published.extend(images[i : i + 1])
        published.write(live=True)
        assert shown(published.path) == list(range(i + 1))


def test_images_that_are_not_published_are_in_no_mapping(tmp_path: Path) -> None:
    images = images_of_run(tmp_path, range(12))
    published = PublishedImagesFile(tmp_path / "Published.h5")
    published.extend(images[:7])
    published.write(live=True)
    published.truncate(3)
    published.extend(images[9:])
    published.write(live=True)
    assert shown(published.path) == [0, 1, 2, 9, 10, 11]


def test_all_images_can_be_removed(tmp_path: Path) -> None:
    images = images_of_run(tmp_path, range(6))
    published = PublishedImagesFile(tmp_path / "Published.h5")
    published.extend(images[:4])
    published.truncate(0)
    assert published.n_images == 0
    published.extend(images[4:])
    published.write(live=False)
    assert shown(published.path) == [4, 5]


def test_a_reader_keeps_the_version_that_it_opened(tmp_path: Path) -> None:
    images = images_of_run(tmp_path, range(6))
    published = PublishedImagesFile(tmp_path / "Published.h5")
    published.extend(images[:2])
    published.write(live=True)
    with h5py.File(published.path) as before:
        published.extend(images[2:])
        published.write(live=True)
        assert dataset(before, IMAGE_METADATA)[()]["image_id"].tolist() == [0, 1]
    assert shown(published.path) == list(range(6))


def test_complete_file_opens_on_the_images_in_a_nexus_viewer(tmp_path: Path) -> None:
    published = PublishedImagesFile(tmp_path / "Published.h5")
    published.extend(images_of_run(tmp_path, range(4)))
    published.write(live=False)
    with h5py.File(published.path) as file:
        path = "/"
        while (default := file[path].attrs.get("default")) is not None:
            path = f"{path.rstrip('/')}/{default}"
        assert file[path].attrs["signal"] == "data"
        assert dataset(file, "entry/stddaq/raw_files")[()].tolist() == [b"file0.h5", b"file1.h5"]


def test_an_image_that_cannot_be_read_through_the_file_is_named(tmp_path: Path) -> None:
    published = PublishedImagesFile(tmp_path / "Published.h5")
    published.extend(images_of_run(tmp_path, range(4)))
    (tmp_path / "file1.h5").unlink()
    with pytest.raises(FileLayoutError, match=r"file1\.h5: cannot be read through Published\.h5: image 3"):
        published.write(live=True)
    assert not published.path.exists()
    assert not list(tmp_path.glob(".*"))


def test_raw_files_of_another_shape_are_refused(tmp_path: Path) -> None:
    published = PublishedImagesFile(tmp_path / "Published.h5")
    published.extend(images_of_run(tmp_path, range(4)))
    write_raw_file(tmp_path / "other.h5", stream(range(2)), RunSpec(shape=(2, 4)))
    files = GrowingFiles([tmp_path / "other.h5"])
    others = in_order(files.files, (0,), files.ids((0,), (2,)))
    assert others is not None
    with pytest.raises(
        FileLayoutError, match=r"other\.h5: holds images of \(2, 4\) uint16, expected \(2, 3\)"
    ):
        published.extend(others)


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    published = PublishedImagesFile(tmp_path / "missing" / "Published.h5")
    published.extend(images_of_run(tmp_path, range(4)))
    with pytest.raises(FileLayoutError, match=r"Published\.h5: cannot be written: No such file"):
        published.write(live=True)
