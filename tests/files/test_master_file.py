"""The master file, compared with a reference of a few lines."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from silx.io.nxdata.parse import get_default
from support.assertions.master_files import assert_refused, assert_shows
from support.data.raw_files import (
    Image,
    RunSpec,
    attributes,
    bitshuffle,
    blosc2,
    dataset,
    divide,
    epochs,
    pixels,
    stream,
    write_metadata_file,
    write_raw_file,
    write_run,
)

from stddaq.errors import FileLayoutError, OutputExistsError
from stddaq.files.info import describe
from stddaq.files.master_file import create_master_file
from stddaq.files.nexus import ACCOUNT, DATA, IMAGE_METADATA
from stddaq.files.raw_file import RawFile, RawLayout
from stddaq.files.repair import repair
from stddaq.files.virtual import stretches
from stddaq.wire.std_daq import image_metadata_pb2 as pb

increasing_ids = st.lists(st.integers(0, 60), unique=True, max_size=25).map(sorted)


@st.composite
def streams(draw: st.DrawFn) -> list[Image]:
    """Generate streams as a driver receives them: ids with gaps, and restarts at or below the last id."""
    epochs = [ids for ids in draw(st.lists(increasing_ids, max_size=3)) if ids]
    kept = epochs[:1]
    for ids in epochs[1:]:
        if ids[0] <= kept[-1][-1]:
            kept.append(ids)
    return stream(*kept)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(
    images=streams(),
    n_writers=st.integers(1, 12),
    division=st.sampled_from(["image_id", "arrival"]),
    metadata_file=st.booleans(),
)
def test_master_file_shows_every_image_in_order(
    images: list[Image], n_writers: int, division: str, metadata_file: bool
) -> None:
    spec = RunSpec(n_writers=n_writers, division=division, metadata_file=metadata_file)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        raw = write_run(directory, images, spec)
        master = directory / "fileMaster.h5"
        meta = directory / "fileMeta.h5" if metadata_file else None
        summary = create_master_file(master, raw[::-1], metadata_file=meta)
        assert summary.n_images == len(images)
        assert_shows(master, images, spec)
        assert not [path.name for path in directory.iterdir() if path.name.startswith(".")]


@settings(deadline=None, max_examples=60)
@given(images=streams(), n_writers=st.integers(1, 12), division=st.sampled_from(["image_id", "arrival"]))
@example(images=stream(range(20), range(20)), n_writers=3, division="image_id")
@example(images=stream(range(20), range(7)), n_writers=3, division="arrival")
@example(images=stream(range(1000, 1031)), n_writers=3, division="arrival")
def test_cpp_made_files_are_shown_in_order_or_refused(
    images: list[Image], n_writers: int, division: str
) -> None:
    spec = RunSpec(n_writers=n_writers, division=division, by_stddaq=False)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        raw = write_run(directory, images, spec)
        try:
            create_master_file(directory / "fileMaster.h5", raw)
        except FileLayoutError:
            # The only reasons: the files do not show the epoch of a row, or whether they are complete.
            restarts = any(image.epoch for image in images)
            assert restarts or (division == "arrival" and n_writers > 1)
            assert not (directory / "fileMaster.h5").exists()
            return
        assume(division == "arrival" or not any(image.epoch for image in images))
        assert_shows(directory / "fileMaster.h5", images, spec)


@pytest.mark.parametrize("division", ["image_id", "arrival"])
@pytest.mark.parametrize("by_stddaq", [True, False])
@pytest.mark.parametrize(("n_writers", "n_images"), [(1, 2), (2, 5), (3, 100), (12, 100), (14, 15)])
def test_restarted_dense_streams_are_shown_in_order(
    tmp_path: Path, division: str, by_stddaq: bool, n_writers: int, n_images: int
) -> None:
    images = stream(range(n_images), range(n_images - 1))
    spec = RunSpec(n_writers=n_writers, division=division, by_stddaq=by_stddaq)
    create_master_file(tmp_path / "m.h5", write_run(tmp_path, images, spec))
    assert_shows(tmp_path / "m.h5", images, spec)


@pytest.mark.parametrize("compression", [pb.none, pb.h5bitshuffle_lz4])
@pytest.mark.parametrize("division", ["image_id", "arrival"])
def test_files_of_stddaq_writers_are_shown_in_order(tmp_path: Path, division: str, compression: int) -> None:
    images = stream(range(3, 40), [5, 9], range(8, 20))
    spec = RunSpec(n_writers=3, division=division, shape=(8, 16))
    layout = RawLayout(spec.detector, spec.shape, np.dtype(spec.dtype), 4096, compression)
    raw = spec.raw_paths(tmp_path)
    for writer, mine in enumerate(divide(images, spec.n_writers, division)):
        file = RawFile.create(raw[writer], layout, {**attributes(spec), "writer": writer})
        for image, pixel in zip(mine, pixels(mine, spec.shape, spec.dtype), strict=True):
            stored = direct_chunk(pixel) if compression else pixel
            file.put([memoryview(stored).cast("B")])
            file.declare([(image.image_id, 1)])
        file.close(epochs(mine))
    create_master_file(tmp_path / "m.h5", raw)
    assert_shows(tmp_path / "m.h5", images, spec)


def direct_chunk(image: np.ndarray) -> bytes:
    """Return an image that HDF5's own filter compressed, as the compressor does."""
    with h5py.File.in_memory() as file:
        stored = file.create_dataset("d", data=image, chunks=image.shape, **bitshuffle())
        return stored.id.read_direct_chunk((0, 0))[1]


@pytest.mark.parametrize("division", ["image_id", "arrival"])
def test_files_of_cpp_and_stddaq_writers_can_be_combined(tmp_path: Path, division: str) -> None:
    images = stream(range(1, 30))
    spec = RunSpec(n_writers=3, division=division, metadata_file=True)
    raw = write_run(tmp_path, images, spec)
    for writer in (0, 2):
        cpp_made = replace(spec, by_stddaq=False)
        write_raw_file(raw[writer], divide(images, 3, division)[writer], cpp_made, writer)
        create_master_file(tmp_path / "m.h5", raw, metadata_file=tmp_path / "fileMeta.h5", overwrite=True)
        assert_shows(tmp_path / "m.h5", images, spec)
    (tmp_path / "m.h5").unlink()
    assert_refused(tmp_path, raw[:2], r"file2\.h5: is missing, the run has 3 writers")


@given(st.lists(st.integers(0, 200), unique=True).map(sorted))
def test_stretches_are_equal_to_their_values(values: list[int]) -> None:
    found = stretches(np.array(values, np.int64))
    again = [first + step * i for _, first, step, length in found for i in range(length)]
    assert again == values
    assert [start for start, *_ in found] == np.cumsum([0, *(s.length for s in found)])[:-1].tolist()


@pytest.mark.parametrize("n_writers", [1, 2, 7, 12])
@pytest.mark.parametrize("division", ["image_id", "arrival"])
@pytest.mark.parametrize("n_images", [1000, 1003])
def test_mappings_of_more_images_grow_with_gaps_only(
    tmp_path: Path, n_writers: int, division: str, n_images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stddaq.files.virtual.MAX_SINGLE_IMAGES", 900)
    spec = RunSpec(n_writers=n_writers, division=division)
    raw = write_run(tmp_path, stream(range(n_images)), spec)
    assert create_master_file(tmp_path / "whole.h5", raw).n_mappings == n_writers
    with_gaps = stream([i for i in range(n_images) if i not in (100, 101, 500)])
    raw = write_run(tmp_path, with_gaps, spec)
    summary = create_master_file(tmp_path / "gaps.h5", raw)
    assert summary.n_gaps == 2
    assert summary.n_mappings <= (n_writers * 4 if division == "image_id" else n_writers)


@pytest.mark.parametrize("n_writers", [1, 2, 7])
def test_few_images_have_a_mapping_each(tmp_path: Path, n_writers: int) -> None:
    """HDF5 copies a block of images over a mapping of every N-th image element by element."""
    ids = [i for i in range(900) if i % 100]
    spec = RunSpec(n_writers=n_writers)
    raw = write_run(tmp_path, stream(ids), spec)
    made = create_master_file(tmp_path / "m.h5", raw)
    # The nine ranges of ids are neighbours in a single file.
    assert made.n_mappings == (1 if n_writers == 1 else len(ids))
    assert_shows(tmp_path / "m.h5", stream(ids), spec)


@pytest.mark.parametrize("division", ["image_id", "arrival"])
def test_many_gaps_share_mappings(tmp_path: Path, division: str) -> None:
    """HDF5 uses 25 kB of memory for each mapping. One for each of 75000 gaps took 2.3 GiB."""
    images = stream([i for i in range(6000) if i % 3 and i % 7])
    spec = RunSpec(n_writers=2, division=division, metadata_file=True)
    raw = write_run(tmp_path, images, spec)
    summary = create_master_file(tmp_path / "m.h5", raw, metadata_file=tmp_path / "fileMeta.h5")
    assert summary.n_gaps > 1900
    assert summary.n_mappings < 50
    assert_shows(tmp_path / "m.h5", images, spec)


@pytest.mark.parametrize("images", [stream([]), stream([5]), stream(range(5))])
def test_zero_one_and_few_images_are_shown(tmp_path: Path, images: list[Image]) -> None:
    spec = RunSpec(n_writers=4)
    raw = write_run(tmp_path, images, spec)
    create_master_file(tmp_path / "fileMaster.h5", raw)
    assert_shows(tmp_path / "fileMaster.h5", images, spec)


@pytest.mark.parametrize("compression", [bitshuffle, blosc2])
def test_compressed_images_are_shown(tmp_path: Path, compression) -> None:
    spec = RunSpec(filter=compression(), shape=(16, 16))
    raw = write_run(tmp_path, stream(range(9)), spec)
    create_master_file(tmp_path / "fileMaster.h5", raw)
    assert_shows(tmp_path / "fileMaster.h5", stream(range(9)), spec)


def test_moved_directory_still_shows_its_images(tmp_path: Path) -> None:
    spec = RunSpec(prefix="scan%b 100%", metadata_file=True)
    (tmp_path / "here").mkdir()
    raw = write_run(tmp_path / "here", stream(range(9)), spec)
    meta = tmp_path / "here" / f"{spec.prefix}Meta.h5"
    create_master_file(tmp_path / "here" / "m.h5", raw, metadata_file=meta)
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert_shows(tmp_path / "there" / "m.h5", stream(range(9)), spec)


def test_master_file_in_another_directory_shows_the_images(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "raw")
    (tmp_path / "out" / "deep").mkdir(parents=True)
    write_run(tmp_path / "raw", stream(range(9)))
    create_master_file(tmp_path / "out" / "deep" / "m.h5", RunSpec().raw_paths(tmp_path / "link"))
    (tmp_path / "moved").mkdir()
    shutil.move(tmp_path / "raw", tmp_path / "moved" / "raw")
    shutil.move(tmp_path / "out", tmp_path / "moved" / "out")
    assert_shows(tmp_path / "moved" / "out" / "deep" / "m.h5", stream(range(9)), RunSpec())


def test_silx_opens_on_the_images(tmp_path: Path) -> None:
    raw = write_run(tmp_path, stream(range(9)), RunSpec(metadata_file=True))
    create_master_file(tmp_path / "m.h5", raw, metadata_file=tmp_path / "fileMeta.h5")
    with h5py.File(tmp_path / "m.h5") as file:
        found = get_default(file)
        assert found is not None
        assert found.is_valid
        assert isinstance(found.signal, h5py.Dataset)
        assert found.signal.shape == (9, 2, 3)
        assert found.interpretation == "image"
        assert found.axes_dataset_names == ["image_id", None, None]


def test_interleaved_names_and_account_are_present(tmp_path: Path) -> None:
    raw = write_run(tmp_path, stream(range(9)))
    account = json.dumps({"run_id": "run-1", "started_at": "2026-01-01T00:00:00Z", "count": 9})
    create_master_file(tmp_path / "m.h5", raw, account=account)
    with h5py.File(tmp_path / "m.h5") as file:
        assert file["interleaved_data"] == file[DATA]
        assert file["interleaved_metadata"] == file[IMAGE_METADATA]
        assert dataset(file, ACCOUNT).asstr()[()] == account
        assert dataset(file, "entry/start_time").asstr()[()] == "2026-01-01T00:00:00Z"


def test_rows_beyond_metadata_are_not_shown(tmp_path: Path) -> None:
    raw = write_run(tmp_path, stream(range(10)))
    with h5py.File(raw[1], "r+") as file:
        dataset(file, "det/data").resize(9, axis=0)
    create_master_file(tmp_path / "m.h5", raw)
    assert_shows(tmp_path / "m.h5", stream(range(10)), RunSpec())


def test_existing_file_is_kept_without_overwrite(tmp_path: Path) -> None:
    raw = write_run(tmp_path, stream(range(9)))
    master = tmp_path / "m.h5"
    master.write_text("mine")
    with pytest.raises(OutputExistsError, match=r"m\.h5: expected a new file, got an existing one"):
        create_master_file(master, raw)
    assert master.read_text() == "mine"
    create_master_file(master, raw, overwrite=True)
    assert_shows(master, stream(range(9)), RunSpec())
    with pytest.raises(OutputExistsError, match="is a raw file"):
        create_master_file(raw[0], raw, overwrite=True)


def test_further_rows_in_the_metadata_file_are_ignored(tmp_path: Path) -> None:
    spec = RunSpec(metadata_file=True)
    stored = stream([0, 1, 2, 5, 6], [1, 2, 3])
    raw = write_run(tmp_path, stored, spec)
    meta = tmp_path / "fileMeta.h5"
    write_metadata_file(meta, stream(range(9), range(9)), spec)
    create_master_file(tmp_path / "m.h5", raw, metadata_file=meta)
    assert_shows(tmp_path / "m.h5", stored, spec)


def test_lost_raw_file_shows_as_the_largest_value_and_undefined_status(tmp_path: Path) -> None:
    raw = write_run(tmp_path, stream(range(4)))
    create_master_file(tmp_path / "m.h5", raw)
    raw[1].unlink()
    with h5py.File(tmp_path / "m.h5") as file:
        assert dataset(file, IMAGE_METADATA)["status"].tolist() == [1, 0, 1, 0]
        assert (dataset(file, DATA)[1] == 65535).all()


def test_the_unused_rows_of_a_cpp_file_with_one_image_are_no_images(tmp_path: Path) -> None:
    raw = write_run(tmp_path, stream([0, 1, 2]), RunSpec(by_stddaq=False))
    with h5py.File(raw[1], "r+") as file:
        dataset(file, "det/metadata").resize(1048576, axis=0)
    master = create_master_file(tmp_path / "fileMaster.h5", raw)
    assert_shows(master.path, stream([0, 1, 2]), RunSpec(by_stddaq=False))
    assert describe(raw[1]).n_images == 1
    assert repair(raw[1]).n_images == 1
    with h5py.File(raw[1], "r+") as file:
        dataset(file, "det/metadata")[5] = (11, 1)
    assert_refused(tmp_path, raw, r"file1\.h5: is short")


def test_files_without_a_division_are_ordered_by_id(tmp_path: Path) -> None:
    """Files that our writers made under a C++ driver that divides by arrival."""
    images = stream([0, 1, 2, 4, 5, 7, 8, 10])
    spec = RunSpec(division="arrival")
    raw = write_run(tmp_path, images, spec)
    for path in raw:
        with h5py.File(path, "r+") as file:
            for name in ("image_division", "run_id"):
                del file["det"].attrs[name]
    assert_shows(create_master_file(tmp_path / "fileMaster.h5", raw).path, images, spec)
