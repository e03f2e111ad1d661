"""An export has every pixel of its run, in a form that the format's own library reads, or does not exist."""

from __future__ import annotations

import json
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import xarray
import zarr
from silx.io.nxdata.parse import get_default
from support.data.raw_files import (
    RunSpec,
    bitshuffle,
    blosc2,
    dataset,
    pixels,
    stream,
    write_run,
)

from stddaq.errors import FileLayoutError, OutputExistsError
from stddaq.files.export import hdf5, run, source, tiff
from stddaq.files.export import zarr as zarr_format
from stddaq.files.export.plan import plan_export
from stddaq.files.export.run import ExportError, export_run
from stddaq.files.info import describe
from stddaq.files.master_file import create_master_file
from stddaq.files.reading import LostImagesError, open_run

IDS = [0, 1, 2, 5, 6, 9, *range(10, 30)]
IMAGES = stream(IDS)
# Read by the library of the format: images, ids and status.
Content = tuple[np.ndarray, list[int], list[int]]


def of_hdf5(path: Path) -> Content:
    with h5py.File(path) as file:
        rows = dataset(file, "/entry/data/metadata")[()]
        ids = dataset(file, "/entry/data/image_id")[()].tolist()
        assert rows["image_id"].tolist() == ids
        return dataset(file, "/entry/data/data")[()], ids, rows["status"].tolist()


def of_tiff(path: Path) -> Content:
    with tifffile.TiffFile(path) as file:
        assert file.is_bigtiff
        said = [json.loads(page.aspage().description) for page in file.pages]
        images = np.stack([page.asarray() for page in file.pages])
        return images, [one["image_id"] for one in said], [one["status"] for one in said]


def of_zarr(path: Path) -> Content:
    group: Any = zarr.open_group(path, mode="r")
    return group["images"][:], group["image_id"][:].tolist(), group["status"][:].tolist()


READ: dict[str, Callable[[Path], Content]] = {"h5": of_hdf5, "tif": of_tiff, "zarr": of_zarr}
FORMATS = pytest.mark.parametrize("suffix", READ)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every export take several blocks and chunks."""
    monkeypatch.setattr(run, "BLOCK_BYTES", 100)
    monkeypatch.setattr(hdf5, "CHUNK_BYTES", 48)
    monkeypatch.setattr(zarr_format, "CHUNK_BYTES", 48)


def set_status(path: Path, row: int, status: int) -> None:
    with h5py.File(path, "r+") as file:
        rows = dataset(file, "det/metadata")
        rows[row] = (rows[row]["image_id"], status)


@FORMATS
@pytest.mark.parametrize(
    "spec",
    [
        RunSpec(n_writers=3, metadata_file=True),
        RunSpec(n_writers=1, dtype="<f4"),
        RunSpec(division="arrival", filter=bitshuffle(), shape=(16, 24)),
        RunSpec(filter=blosc2(), dtype="<u4"),
        RunSpec(filter={"compression": "gzip", "shuffle": True}, dtype="|u1"),
    ],
    ids=["plain", "float", "lz4", "blosc2", "gzip"],
)
def test_an_export_has_all_images(tmp_path: Path, suffix: str, spec: RunSpec) -> None:
    write_run(tmp_path, IMAGES, spec)
    set_status(tmp_path / "file0.h5", 1, 2)
    out = tmp_path / f"out.{suffix}"
    assert export_run(tmp_path, out) == len(IDS)
    images, ids, status = READ[suffix](out)
    np.testing.assert_array_equal(images, pixels(IMAGES, spec.shape, spec.dtype))
    assert images.dtype == np.dtype(spec.dtype)
    assert ids == IDS
    assert (status.count(2), status.count(1)) == (1, len(IDS) - 1)
    left = {path.name for path in tmp_path.iterdir()} - {path.name for path in spec.raw_paths(tmp_path)}
    assert left - {"fileMeta.h5"} == {out.name}


def test_silx_opens_an_hdf5_export_on_the_images(tmp_path: Path) -> None:
    write_run(tmp_path, IMAGES, RunSpec(filter=bitshuffle(), shape=(16, 24)))
    export_run(tmp_path, tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5") as file:
        found = get_default(file)
        assert found is not None
        assert found.is_valid
        assert isinstance(found.signal, h5py.Dataset)
        assert found.interpretation == "image"
        assert found.axes_dataset_names == ["image_id", None, None]
        np.testing.assert_array_equal(found.signal[()], pixels(IMAGES, (16, 24)))


def test_an_hdf5_export_is_a_master_file_without_sources(tmp_path: Path) -> None:
    raw = write_run(tmp_path, IMAGES, RunSpec(filter=bitshuffle(), metadata_file=True))
    account = '{"run_id": "run-1", "started_at": "2026-01-01T00:00:00+00:00"}'
    master = tmp_path / "fileMaster.h5"
    create_master_file(master, raw, metadata_file=tmp_path / "fileMeta.h5", account=account)
    export_run(master, tmp_path / "out.nxs")
    names: list[list[str]] = [[], []]
    for path, found in zip((master, tmp_path / "out.nxs"), names, strict=True):
        with h5py.File(path) as file:
            file.visit(found.append)
            assert file["/entry"].attrs["default"] == "data"
            assert dataset(file, "/entry/stddaq/account").asstr()[()] == account
            stored = dataset(file, "/entry/data/data")
            if path != master:
                # Copied as they are stored.
                with h5py.File(raw[1]) as raw_file:
                    chunk = dataset(raw_file, "det/data").id.read_direct_chunk((0, 0, 0))
                assert stored.id.read_direct_chunk((1, 0, 0)) == chunk
                fields = dataset(file, "/entry/instrument/detector/metadata")
                assert fields["frame_timestamp"].tolist() == list(range(1000, 1000 + len(IDS)))
    assert set(names[0]) - set(names[1]) <= {"entry/stddaq/raw_files", "entry/stddaq/image_division"}
    assert set(names[1]) <= set(names[0])
    assert describe(tmp_path / "out.nxs").kind == "exported"


@pytest.mark.parametrize("filter", [None, bitshuffle(), blosc2()], ids=["plain", "lz4", "blosc2"])
def test_open_run_reads_an_hdf5_export_like_the_run(tmp_path: Path, filter: Any) -> None:
    # Two epochs, of which the second has ids of the first.
    images = stream([0, 1, 2, 5, 6], [1, 2, 3, 9])
    spec = RunSpec(n_writers=2, filter=filter, metadata_file=True)
    raw = write_run(tmp_path, images, spec)
    set_status(raw[0], 1, 3)
    account = '{"run_id": "run-1"}'
    master = tmp_path / "fileMaster.h5"
    create_master_file(master, raw, metadata_file=tmp_path / "fileMeta.h5", account=account)
    out = tmp_path / "elsewhere" / "run.h5"
    out.parent.mkdir()
    export_run(master, out, losses="fill")
    expected, exported = (open_run(path, losses="mask") for path in (master, out))
    for path in (master, *raw):
        path.unlink()
    for found in (exported, pickle.loads(pickle.dumps(exported))):
        assert (found.run_id, found.detector_name, found.account) == ("run-1", "det", {"run_id": "run-1"})
        assert found.image_ids.tolist() == [image.image_id for image in images]
        assert found.status.tolist() == expected.status.tolist()
        read = found.images[:]
        lost = [place for place, status in enumerate(found.status) if status == 3]
        assert np.flatnonzero(np.ma.getmaskarray(read).any(axis=(1, 2))).tolist() == lost
        kept = [place for place in range(len(images)) if place not in lost]
        np.testing.assert_array_equal(read[kept], pixels(images, spec.shape)[kept])
        fields = found.detector_metadata
        assert fields is not None
        assert fields["frame_timestamp"].tolist() == [1000 + i for i in range(9)]


@FORMATS
@pytest.mark.parametrize("filter", [None, bitshuffle(), {"compression": "gzip"}], ids=["no", "lz4", "gzip"])
def test_a_plan_writes_nothing_and_its_size_is_enough(tmp_path: Path, suffix: str, filter: Any) -> None:
    raw = write_run(tmp_path, IMAGES, RunSpec(filter=filter, shape=(64, 64)))
    set_status(raw[0], 1, 3)
    out = tmp_path / f"out.{suffix}"
    before = sorted(tmp_path.iterdir())
    plan = plan_export(tmp_path, out, losses="fill")
    assert sorted(tmp_path.iterdir()) == before
    assert (plan.n_images, plan.n_lost, plan.fits) == (len(IDS), 1, True)
    assert plan.raw_files == tuple((path, path.stat().st_size) for path in raw)
    assert f"writes {out}, {plan.format}: 26 images, 1 of them filled, at most " in plan.lines()[-2]
    export_run(tmp_path, out, losses="fill")
    written = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in written)
    # What small files need beside their images does not count.
    assert size <= plan.most_bytes <= 4 * size + 200_000


def test_a_plan_counts_the_whole_last_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, IMAGES, RunSpec(shape=(128, 128)))
    monkeypatch.setattr(hdf5, "CHUNK_BYTES", (len(IDS) - 1) * 2 * 128 * 128)
    plan = plan_export(tmp_path, tmp_path / "out.h5")
    export_run(tmp_path, tmp_path / "out.h5")
    assert (tmp_path / "out.h5").stat().st_size <= plan.most_bytes


def test_a_plan_refuses_what_the_export_refuses(tmp_path: Path) -> None:
    raw = write_run(tmp_path, IMAGES)
    set_status(raw[0], 1, 3)
    with pytest.raises(LostImagesError):
        plan_export(tmp_path, tmp_path / "out.h5")
    with pytest.raises(OutputExistsError):
        plan_export(tmp_path, raw[0])
    with pytest.raises(FileLayoutError, match="cannot be made: No such file"):
        plan_export(tmp_path, tmp_path / "absent" / "out.h5", losses="drop")


def test_a_plan_that_does_not_fit_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, IMAGES)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    plan = plan_export(tmp_path, tmp_path / "out.h5")
    assert not plan.fits
    assert plan.lines()[-1] == "free there: 0.0 MiB: not enough"


def test_a_run_can_be_exported_again_from_its_export(tmp_path: Path) -> None:
    write_run(tmp_path, IMAGES, RunSpec(filter=bitshuffle()))
    export_run(tmp_path, tmp_path / "one.h5")
    export_run(tmp_path / "one.h5", tmp_path / "two.tif")
    images, ids, _ = of_tiff(tmp_path / "two.tif")
    np.testing.assert_array_equal(images, pixels(IMAGES))
    assert ids == IDS


def test_a_zarr_export_is_opened_by_xarray(tmp_path: Path) -> None:
    write_run(tmp_path, IMAGES)
    export_run(tmp_path, tmp_path / "out.zarr")
    images = xarray.open_zarr(tmp_path / "out.zarr", consolidated=False)["images"]
    assert images.dims == ("image", "y", "x")
    np.testing.assert_array_equal(images.values, pixels(IMAGES))


@FORMATS
@pytest.mark.parametrize("filter", [None, bitshuffle(), blosc2()], ids=["plain", "lz4", "blosc2"])
def test_overwritten_images_are_refused_filled_or_dropped(tmp_path: Path, suffix: str, filter: Any) -> None:
    spec = RunSpec(filter=filter)
    write_run(tmp_path, IMAGES, spec)
    set_status(tmp_path / "file1.h5", 1, 3)  # Image 5.
    out = tmp_path / f"out.{suffix}"
    with pytest.raises(
        LostImagesError, match=r"failed images: expected none, got 1, image ids 5; --losses fill or"
    ):
        export_run(tmp_path, out)
    assert not list(tmp_path.glob("out*"))
    export_run(tmp_path, out, losses="fill")
    expected = pixels(IMAGES, spec.shape, spec.dtype)
    images, ids, status = READ[suffix](out)
    assert (ids, status[3]) == (IDS, 3)
    np.testing.assert_array_equal(np.delete(images, 3, axis=0), np.delete(expected, 3, axis=0))
    assert (images[3] == 65535).all()
    dropped = tmp_path / f"dropped.{suffix}"
    assert export_run(tmp_path, dropped, losses="drop") == len(IDS) - 1
    images, ids, status = READ[suffix](dropped)
    assert 5 not in ids
    assert set(status) == {1}
    np.testing.assert_array_equal(images, np.delete(expected, 3, axis=0))


@FORMATS
def test_an_interrupted_export_continues(tmp_path: Path, suffix: str) -> None:
    write_run(tmp_path, IMAGES)
    out = tmp_path / f"out.{suffix}"

    def interrupt(what: str, done: int, _total: int) -> None:
        if what == "writing" and done >= 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_run(tmp_path, out, on_progress=interrupt)
    assert not out.exists()
    written: list[int] = []
    export_run(
        tmp_path, out, on_progress=lambda what, done, _: written.append(done) if what == "writing" else None
    )
    assert written == [24, 26]
    np.testing.assert_array_equal(READ[suffix](out)[0], pixels(IMAGES))


@FORMATS
def test_an_export_of_other_images_is_not_continued(tmp_path: Path, suffix: str) -> None:
    write_run(tmp_path, IMAGES)
    out = tmp_path / f"out.{suffix}"

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_run(tmp_path, out, on_progress=interrupt)
    others = stream(range(1, 27))
    write_run(tmp_path, others)
    export_run(tmp_path, out)
    np.testing.assert_array_equal(READ[suffix](out)[0], pixels(others))


KILLED = """
import os, signal, sys
from pathlib import Path
from stddaq.files.export import run
run.BLOCK_BYTES = 100

def kill(what, done, total):
    if done >= 10:
        os.kill(os.getpid(), signal.SIGKILL)

run.export_run(Path(sys.argv[1]), Path(sys.argv[2]), on_progress=kill)
"""


@FORMATS
def test_an_export_that_was_killed_is_made_whole(tmp_path: Path, suffix: str) -> None:
    write_run(tmp_path, IMAGES)
    out = tmp_path / f"out.{suffix}"
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(out)]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
    partial = tmp_path / f"out.{suffix}.partial"
    assert partial.exists()
    if suffix == "tif":
        with partial.open("ab") as file:
            file.write(b"half a page")
    export_run(tmp_path, out)
    np.testing.assert_array_equal(READ[suffix](out)[0], pixels(IMAGES))
    assert not partial.exists()


@FORMATS
def test_an_existing_file_stays(tmp_path: Path, suffix: str) -> None:
    write_run(tmp_path, IMAGES)
    out = tmp_path / f"out.{suffix}"
    out.write_text("mine")
    with pytest.raises(OutputExistsError, match="expected a new file, got an existing one"):
        export_run(tmp_path, out)
    out.unlink()

    def appear(what: str, *_: object) -> None:
        if what == "comparing":
            out.write_text("mine")

    with pytest.raises(OutputExistsError):
        export_run(tmp_path, out, on_progress=appear)
    assert out.read_text() == "mine"


def test_pixels_that_differ_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, IMAGES)
    write = tiff.ImageWriter.write

    def write_others(self: tiff.ImageWriter, first: int, end: int) -> None:
        with monkeypatch.context() as patch:
            if first == 8:
                zeros = np.zeros((end - first, 2, 3), "<u2")
                patch.setattr(source.Source, "images", lambda *_: zeros)
            write(self, first, end)

    monkeypatch.setattr(tiff.ImageWriter, "write", write_others)
    with pytest.raises(
        ExportError, match=r"out\.tif\.partial: images \d+ to \d+: expected the pixels of the run"
    ):
        export_run(tmp_path, tmp_path / "out.tif")
    assert not (tmp_path / "out.tif").exists()


def test_names_without_a_format_and_missing_runs_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path, IMAGES)
    with pytest.raises(ExportError, match=r"expected a name that ends in \.h5, .*, or a format, got \.png"):
        export_run(tmp_path, tmp_path / "out.png")
    export_run(tmp_path, tmp_path / "out.dat", format="tiff")
    assert of_tiff(tmp_path / "out.dat")[1] == IDS
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.dat"]


@FORMATS
def test_a_run_without_images_is_exported(tmp_path: Path, suffix: str) -> None:
    write_run(tmp_path, [])
    if suffix == "tif":
        with pytest.raises(ExportError, match="expected at least one image"):
            export_run(tmp_path, tmp_path / "out.tif")
        return
    export_run(tmp_path, tmp_path / f"out.{suffix}")
    assert READ[suffix](tmp_path / f"out.{suffix}")[0].shape == (0, 2, 3)
