"""Reading a run: the images in order, no fill values, or an error that names the file."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray
from support.data.raw_files import (
    RunSpec,
    bitshuffle,
    blosc2,
    dataset,
    pixels,
    stream,
    write_raw_file,
    write_run,
)

from stddaq import open_run
from stddaq.daemon.isolation import run_in_fork
from stddaq.errors import FileLayoutError
from stddaq.files.master_file import create_master_file
from stddaq.files.opening import UnclosedFileError
from stddaq.files.reading import LostImagesError, NoNewImagesError, Run
from stddaq.files.sources import ImagesMissingError, OtherRunError
from stddaq.files.validate_run import validate_run

IMAGES = stream([0, 1, 2, 5, 6, 9], range(4))
IDS = [image.image_id for image in IMAGES]
MANY = stream(range(100))


SPECS = [
    RunSpec(n_writers=3),
    RunSpec(n_writers=1, dtype="<f4"),
    RunSpec(division="arrival", filter=bitshuffle()),
    RunSpec(filter=blosc2()),
    RunSpec(filter={"compression": "gzip"}, dtype="|u1"),
]


@pytest.mark.parametrize("spec", SPECS)
def test_run_reads_the_same_from_master_and_raw_files(tmp_path: Path, spec: RunSpec) -> None:
    raw = write_run(tmp_path, IMAGES, spec)
    create_master_file(tmp_path / "fileMaster.h5", raw)
    expected = pixels(IMAGES, spec.shape, spec.dtype)
    for path in (tmp_path / "fileMaster.h5", tmp_path, raw[0], (tmp_path / "fileMaster.h5").as_uri()):
        run = open_run(path)
        assert run.n_images == len(run) == len(run.images) == 10
        assert run.image_ids.tolist() == IDS
        assert run.status.tolist() == [1] * 10
        assert (run.image_shape, run.dtype) == (spec.shape, np.dtype(spec.dtype))
        np.testing.assert_array_equal(run.images, expected)


KEYS: list[Any] = [
    0,
    -1,
    np.int64(3),
    slice(None),
    slice(3, 8),
    slice(8, 2, -2),
    slice(4, 4),
    [1, 5, 2, 2],
    [],
    np.arange(10) % 3 == 0,
    (slice(None), 1),
    (slice(2, 9), slice(None), 2),
    (..., slice(1, 3)),
    (4, ..., -1),
    ([0, 7], slice(5, 6), slice(None, None, -1)),
    (slice(None), slice(6, 7), slice(1, 2)),
    (slice(None), -2, -3),
    (5, slice(7, 1, -3), 0),
]


@pytest.mark.parametrize("compressed", [False, True])
def test_indices_are_those_of_numpy(tmp_path: Path, compressed: bool) -> None:
    spec = RunSpec(n_writers=3, shape=(8, 3), filter=bitshuffle() if compressed else None)
    write_run(tmp_path, IMAGES, spec)
    images, expected = open_run(tmp_path).images, pixels(IMAGES, spec.shape, spec.dtype)
    # Single images are read in another way when the places of all are known.
    for key in [*KEYS, 0, -1, np.int64(3)]:
        found = images[key]
        np.testing.assert_array_equal(found, expected[key], err_msg=str(key))
        assert found.dtype == expected.dtype
    wrong: list[Any] = [
        10,
        -11,
        True,
        [3, 10],
        np.ones(9, bool),
        1.5,
        "a",
        (0, 8),
        (0, 0, 3),
        (0, [1]),
        (0,) * 4,
        (..., ...),
    ]
    for key in wrong:
        with pytest.raises(IndexError):
            images[key]


@pytest.mark.parametrize("given", ["fileMaster.h5", "file0.h5"])
def test_missing_or_short_raw_file_is_named(tmp_path: Path, given: str) -> None:
    raw = write_run(tmp_path, IMAGES, RunSpec(n_writers=3))
    create_master_file(tmp_path / "fileMaster.h5", raw)
    with h5py.File(raw[1], "r+") as file:
        dataset(file, "det/data").resize(1, axis=0)
    with pytest.raises(FileLayoutError, match=r"file1\.h5: is short"):
        open_run(tmp_path / given)
    raw[2].unlink()
    raw[1].unlink()
    with pytest.raises(FileLayoutError, match=r"file1\.h5: is missing"):
        open_run(tmp_path / given)


def test_raw_file_that_changed_after_its_master_file_is_an_error(tmp_path: Path) -> None:
    raw = write_run(tmp_path, stream(range(6)))
    create_master_file(tmp_path / "fileMaster.h5", raw)
    write_raw_file(raw[1], stream([1, 3]), RunSpec(), 1)
    with pytest.raises(FileLayoutError, match="does not show the images"):
        open_run(tmp_path / "fileMaster.h5")


@pytest.mark.parametrize("filter", [None, bitshuffle(), blosc2()])
def test_raw_file_that_is_replaced_while_the_run_is_open_is_an_error(tmp_path: Path, filter: Any) -> None:
    raw = write_run(tmp_path, IMAGES, RunSpec(filter=filter))
    run = open_run(tmp_path)
    (tmp_path / "other").mkdir()
    write_run(tmp_path / "other", IMAGES, RunSpec(run_id="run-2", filter=filter))[1].replace(raw[1])
    with pytest.raises(FileLayoutError, match=r"file1\.h5"):
        run.images[:]


def test_raw_file_that_is_cut_while_the_run_is_open_is_an_error(tmp_path: Path) -> None:
    raw = write_run(tmp_path, MANY, RunSpec(shape=(100, 100)))
    run = open_run(tmp_path)
    np.testing.assert_array_equal(run.images[:2], pixels(MANY[:2], (100, 100)))
    os.truncate(raw[1], 300_000)
    with pytest.raises(ImagesMissingError, match=r"file1\.h5: is short"):
        run.images[:]


@pytest.mark.parametrize("filter", [None, bitshuffle()])
def test_lost_images_raise_or_are_masked(tmp_path: Path, filter: Any) -> None:
    spec = RunSpec(filter=filter)
    raw = write_run(tmp_path, stream(range(10)), spec)
    for path, row, status in ((raw[0], 1, 3), (raw[1], 2, 2)):  # Images 2 and 5.
        with h5py.File(path, "r+") as file:
            rows = dataset(file, "det/metadata")
            rows[row] = (rows[row]["image_id"], status)
    expected = pixels(stream(range(10)))
    run = open_run(tmp_path)
    assert run.good.tolist() == [i not in (2, 5) for i in range(10)]
    np.testing.assert_array_equal(run.images[6:], expected[6:])
    with pytest.raises(LostImagesError, match=r"got damaged 5, overwritten or failed 2; .*losses=\"mask\""):
        run.images[:]
    np.testing.assert_array_equal(run.select(status="good").images, expected[run.good])
    with pytest.raises(LostImagesError, match="got overwritten or failed 2;"):
        open_run(tmp_path, damaged=True).images[:]
    for one in (2, -5):
        with pytest.raises(LostImagesError):
            run.images[one]
    masked = open_run(tmp_path, losses="mask").images[:]
    assert masked.mask[:, 0, 0].tolist() == [i in (2, 5) for i in range(10)]
    np.testing.assert_array_equal(masked[run.good].data, expected[run.good])
    assert masked.data[2].tolist() == [[65535] * 3] * 2
    with_damaged = open_run(tmp_path, losses="mask", damaged=True).images[:, 1]
    assert with_damaged.mask[:, 0].tolist() == [i == 2 for i in range(10)]
    np.testing.assert_array_equal(with_damaged[5].data, expected[5, 1])
    assert run.images[6].shape == open_run(tmp_path, losses="mask").images[6].shape


def test_parts_of_a_run(tmp_path: Path) -> None:
    write_run(tmp_path, MANY, RunSpec(n_writers=3))
    run, expected = open_run(tmp_path), pixels(MANY)
    odd = run.select(rows=slice(1, None, 2))
    some = odd.select(ids=[7, 3, 51])
    assert some.image_ids.tolist() == [3, 7, 51]
    np.testing.assert_array_equal(some.images, expected[[3, 7, 51]])
    np.testing.assert_array_equal(odd.images[[4, 2]], expected[[9, 5]])
    np.testing.assert_array_equal(odd.images[4], expected[9])
    with pytest.raises(LostImagesError, match="got no 4"):
        odd.select(ids=[3, 4])
    for n in (1, 2, 3, 7, 100, 130):
        parts = run.partitions(n)
        assert len(parts) == n
        assert np.concatenate([part.image_ids for part in parts]).tolist() == list(range(100))
        assert max(map(len, parts)) - min(map(len, parts)) <= 12 * (n < 3) + 1
        np.testing.assert_array_equal(parts[-1].images, expected[100 - len(parts[-1]) :])
        assert run.partition(n - 1, n).image_ids.tolist() == parts[-1].image_ids.tolist()
    with pytest.raises(ValueError, match="rank"):
        run.partition(2, 2)
    blocks = list(run.images.blocks(max_bytes=300))
    assert [block.stop - block.start for block, _ in blocks] == [24, 24, 24, 24, 4]
    np.testing.assert_array_equal(np.concatenate([images for _, images in blocks]), expected)
    assert run.select(rows=[]).images[:].shape == (0, 2, 3)


def test_what_is_known_of_the_images(tmp_path: Path) -> None:
    spec = RunSpec(metadata_file=True)
    raw = write_run(tmp_path, IMAGES, spec)
    run = open_run(tmp_path)
    assert run.account is None
    assert run.skipped_ids.tolist() == [4, 7, 8]
    create_master_file(
        tmp_path / "m.h5", raw, metadata_file=tmp_path / "fileMeta.h5", account='{"count": 10}'
    )
    run = open_run(tmp_path / "m.h5")
    assert run.account == {"count": 10}
    for rows in (run.detector_metadata, open_run(tmp_path).detector_metadata):
        assert rows is not None
        assert rows["frame_timestamp"].tolist() == list(range(1000, 1010))
    assert run.timestamps is None
    assert (run.run_id, run.detector_name) == ("run-1", "det")
    (tmp_path / "fileMeta.h5").unlink()
    assert open_run(tmp_path).detector_metadata is None


def test_a_run_without_images_can_be_opened(tmp_path: Path) -> None:
    raw = write_run(tmp_path, [], RunSpec(metadata_file=True))
    create_master_file(tmp_path / "fileMaster.h5", raw, metadata_file=tmp_path / "fileMeta.h5")
    run = open_run(tmp_path / "fileMaster.h5")
    assert run.n_images == 0
    assert run.detector_metadata is None
    assert validate_run(tmp_path / "fileMaster.h5").n_images == 0


def sum_of(run: Run) -> int:
    return int(run.images[:].sum())


def test_a_run_is_read_by_threads_forks_and_other_processes(tmp_path: Path) -> None:
    write_run(tmp_path, MANY, RunSpec(n_writers=4, filter=bitshuffle()))
    run = open_run(tmp_path).select(rows=slice(10, None))
    expected = int(pixels(MANY[10:]).sum())
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(sum_of, [run] * 8)) == [expected] * 8
    assert run_in_fork(lambda: sum_of(run), 60, "run") == expected
    stored = pickle.dumps(run)
    assert len(stored) < 1000
    other = subprocess.run(
        [sys.executable, "-c", SUM], input=stored, capture_output=True, timeout=60, check=True
    )
    assert int(other.stdout) == expected


SUM = "import pickle, sys; print(pickle.load(sys.stdin.buffer).images[:].sum())"


def test_a_pickled_run_is_that_run_only(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_run(tmp_path / "a", IMAGES)
    run = open_run(tmp_path / "a")
    stored = pickle.dumps(run.select(rows=[1, 4, 5]))
    assert pickle.loads(stored).image_ids.tolist() == [1, 6, 9]
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "a").mkdir()
    stored = pickle.dumps(run.select(rows=[1, 4]), protocol=4)
    write_run(tmp_path / "a", IMAGES, RunSpec(run_id="run-2"))
    from stddaq.files.reading import _reopened

    _reopened.cache_clear()
    with pytest.raises(OtherRunError, match="expected the run that was opened elsewhere"):
        pickle.loads(stored)


def test_dask_and_xarray(tmp_path: Path) -> None:
    spec = RunSpec(n_writers=3, filter=bitshuffle())
    write_run(tmp_path, MANY, spec)
    with h5py.File(tmp_path / "file1.h5", "r+") as file:
        dataset(file, "det/metadata")[2] = (7, 3)
    expected = pixels(MANY)
    run = open_run(tmp_path)
    array = run.select(status="good").images.dask(images_per_block=8)
    assert array.numblocks == (13, 1, 1)
    np.testing.assert_array_equal(array.compute(), np.delete(expected, 7, axis=0))
    assert array.name == open_run(tmp_path).select(status="good").images.dask(images_per_block=8).name
    assert array.name != run.images.dask(images_per_block=8).name
    masked: Any = open_run(tmp_path, losses="mask").images.dask(images_per_block=8)
    assert masked.compute().mask[:, 0, 0].tolist() == [i == 7 for i in range(100)]
    assert masked.sum().compute() == np.delete(expected, 7, axis=0).sum()
    images = run.select(status="good").images.xarray()
    assert isinstance(images, xarray.DataArray)
    np.testing.assert_array_equal(images[90:].values, np.delete(expected, 7, axis=0)[90:])
    assert images.image_id[7] == 8


def test_too_many_images_for_one_array_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, IMAGES)
    monkeypatch.setattr("stddaq.files.lazy_images.MAX_ARRAY_BYTES", 100)
    with pytest.raises(MemoryError, match=r"take a part of them, blocks\(\) or dask\(\)"):
        np.asarray(open_run(tmp_path).images)


@pytest.mark.parametrize("uri", ["file:///nothing/fileMaster.h5", "file://localhost/nothing/file%30.h5"])
def test_missing_file_of_a_uri(uri: str) -> None:
    with pytest.raises(FileLayoutError, match="/nothing"):
        open_run(uri)
    with pytest.raises(FileLayoutError, match="expected a file of this host"):
        open_run("file://elsewhere/file0.h5")


class Writers:
    """The raw files of a run that grows, written by another process: HDF5 shows growth only between two."""

    def __init__(self, directory: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WRITERS, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.write()

    def __enter__(self) -> Writers:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def write(self, *ids: int) -> None:
        """Write and flush images, whose pixels are their ids."""
        self._send(" ".join(map(str, ids)))

    def close(self) -> None:
        self._send("close")

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"


WRITERS = """
import sys
from pathlib import Path
import numpy as np
from stddaq.files.raw_file import RawFile, RawLayout

layout = RawLayout("det", (200, 300), np.dtype("<u2"), 16 * 120_000, 0)
common = {"number_of_writers": 2, "image_division": "image_id", "run_id": "run-1"}
files = [RawFile.create(Path(sys.argv[1]) / f"file{i}.h5", layout, {**common, "writer": i}) for i in (0, 1)]
for line in sys.stdin:
    for word in line.split():
        if word == "close":
            for file in files:
                file.close()
        else:
            file = files[int(word) % 2]
            file.put([memoryview(np.full((200, 300), int(word), "<u2")).cast("B")])
            file.declare([(int(word), 1)])
            file.flush()
    print("done", flush=True)
"""


def shown_ids(images: np.ndarray) -> list[int]:
    assert (images == images[:, :1, :1]).all()
    return images[:, 0, 0].tolist()


def test_a_growing_run_shows_what_cannot_change_any_more(tmp_path: Path) -> None:
    with Writers(tmp_path) as writers:
        with pytest.raises(UnclosedFileError, match="was not closed"):
            open_run(tmp_path)
        run = open_run(tmp_path, growing=True)
        assert (run.growing, run.n_images, run.image_shape) == (True, 0, (200, 300))
        writers.write(0, 2, 4)
        assert run.refresh() == 0
        writers.write(1)
        assert run.refresh() == 2
        assert shown_ids(run.images[:]) == [0, 1]
        half = run.select(rows=slice(2))
        with pytest.raises(FileLayoutError, match="expected closed files for dask"):
            run.images.dask()
        writers.write(5, 7, 6)
        assert run.refresh() == 4
        assert shown_ids(run.images[:]) == run.image_ids.tolist() == [0, 1, 2, 4, 5, 6]
        assert pickle.loads(pickle.dumps(run)).image_ids.tolist() == [0, 1, 2, 4, 5, 6]
        writers.close()
        assert shown_ids(run.images[2:]) == [2, 4, 5, 6]
        assert run.refresh() == 1
        assert (run.growing, run.refresh()) == (False, 0)
        assert shown_ids(run.images[:]) == [0, 1, 2, 4, 5, 6, 7]
        assert shown_ids(half.images.dask().compute()) == [0, 1]
        assert shown_ids(open_run(tmp_path).images[:]) == [0, 1, 2, 4, 5, 6, 7]


def test_a_growing_run_is_followed_to_its_end(tmp_path: Path) -> None:
    with Writers(tmp_path) as writers:
        writers.write(*range(10))
        run, found = open_run(tmp_path, growing=True), list[int]()
        steps = iter((lambda: writers.write(*range(10, 25)), writers.close, lambda: None))
        for part, images in run.follow(timeout=30):
            assert part == slice(len(found), len(found) + len(images))
            found.extend(shown_ids(images))
            next(steps)()
        assert found == list(range(25))
        assert not run.growing


def test_a_run_that_stops_growing_ends_the_wait(tmp_path: Path) -> None:
    with Writers(tmp_path) as writers:
        writers.write(0, 1)
        run = open_run(tmp_path, growing=True)
        with pytest.raises(NoNewImagesError, match=r"expected a new image within 0\.1 s, got 1 images"):
            list(run.follow(timeout=0.1))


def test_image_ids_that_restart_while_a_run_grows(tmp_path: Path) -> None:
    with Writers(tmp_path) as writers:
        writers.write(0, 1, 2, 3)
        run = open_run(tmp_path, growing=True)
        writers.write(0, 1, 2)
        assert run.refresh() == 1
        assert run.image_ids.tolist() == [0, 1, 2, 3]
