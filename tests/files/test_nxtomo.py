"""An NXtomo file shows the projections, flats and darks of runs in the trees of all readers."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from support.data.nexus_metadata import STILLS, metadata, set_status
from support.data.raw_files import Image, RunSpec, bitshuffle, dataset, pixels, stream, write_run

from stddaq.errors import ConfigError, FileLayoutError
from stddaq.files.info import describe
from stddaq.files.nxtomo import IMAGES, ImageKey, NXtomoFile, TomographyRun, create_nxtomo_file
from stddaq.files.run import read_run

KEYS = np.repeat([ImageKey.dark, ImageKey.flat, ImageKey.projection], [5, 7, 30])
ANGLES = np.concatenate([np.zeros(12), np.linspace(0, 180, 30, endpoint=False)])
RUN = stream(range(100, 142))
SHAPE = (6, 8)


def make(directory: Path, spec: RunSpec, status: dict[int, int] | None = None) -> NXtomoFile:
    """Write a run of 5 darks, 7 flats and 30 projections, and its NXtomo file."""
    raw = write_run(directory, RUN, spec)
    for path in raw:
        set_status(path, spec.detector, status or {})
    part = TomographyRun(read_run(raw), KEYS, ANGLES)
    return create_nxtomo_file(directory / "file_tomo.h5", [part], metadata(STILLS))


@pytest.mark.parametrize("n_writers", [1, 3])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_run_is_shown_in_the_tree_of_every_reader(tmp_path: Path, n_writers: int, compressed: bool):
    spec = RunSpec(n_writers=n_writers, shape=SHAPE, filter=bitshuffle() if compressed else None)
    made = make(tmp_path, spec)
    assert made.missing == ()
    assert made.n_images == {"projection": 30, "flat": 7, "dark": 5, "invalid": 0}
    expected = pixels(RUN, SHAPE)
    with h5py.File(made.path) as file:
        # mantidimaging fails over a dataset at the root.
        assert all(isinstance(file[name], h5py.Group) for name in file)
        # nabu compares so, and takes other files for those of Bliss.
        assert file["entry0000"].attrs["definition"] == "NXtomo"
        for entry in ("entry0000", "entry1/tomo_entry"):
            detector = f"{entry}/instrument/detector"
            assert dataset(file, f"{entry}/definition")[()] == b"NXtomo"
            np.testing.assert_array_equal(dataset(file, f"{detector}/data")[()], expected)
            np.testing.assert_array_equal(dataset(file, f"{entry}/data/data")[3:9], expected[3:9])
            assert dataset(file, f"{detector}/image_key")[()].tolist() == KEYS.tolist()
            assert dataset(file, f"{entry}/sample/rotation_angle")[()].tolist() == ANGLES.tolist()
        assert dataset(file, "entry0000/instrument/beam/incident_energy")[()] == pytest.approx(12.4)
        for name, key in (("data", 0), ("data_white", 1), ("data_dark", 2)):
            np.testing.assert_array_equal(dataset(file, f"exchange/{name}")[()], expected[key == KEYS])
        assert len(dataset(file, "exchange/theta")) == 30


def test_images_that_are_not_good_are_invalid_and_lost_ones_are_not_shown(tmp_path: Path):
    made = make(tmp_path, RunSpec(n_writers=2, shape=SHAPE), {110: 2, 120: 3})
    assert made.n_images["invalid"] == 2
    with h5py.File(made.path) as file:
        keys = dataset(file, "entry0000/instrument/detector/image_key")[()]
        assert np.flatnonzero(keys == ImageKey.invalid).tolist() == [10, 20]
        shown = dataset(file, IMAGES)
        np.testing.assert_array_equal(shown[10], pixels(RUN, SHAPE)[10])
        assert (shown[20] == 65535).all()
    info = describe(made.path)
    assert (info.kind, info.n_images, info.missing, info.differs) == ("NXtomo", len(RUN) - 1, (), None)


def run_of(directory: Path, images: list[Image], key: ImageKey, shape: tuple[int, int]) -> TomographyRun:
    directory.mkdir()
    spec = RunSpec(shape=shape, run_id=directory.name)
    run = read_run(write_run(directory, images, spec))
    return TomographyRun(run, np.full(len(images), key), np.zeros(len(images)))


def test_runs_follow_each_other(tmp_path: Path):
    images = stream(range(4)), stream(range(50, 53)), stream(range(10))
    runs = [
        run_of(tmp_path / key.name, of_run, key, SHAPE)
        for key, of_run in zip((ImageKey.dark, ImageKey.flat, ImageKey.projection), images, strict=True)
    ]
    made = create_nxtomo_file(tmp_path / "all.h5", runs, metadata(STILLS))
    with h5py.File(made.path) as file:
        np.testing.assert_array_equal(
            dataset(file, IMAGES)[()], np.concatenate([pixels(of_run, SHAPE) for of_run in images])
        )
        assert (
            dataset(file, "entry0000/instrument/detector/image_key")[()].tolist()
            == [2] * 4 + [1] * 3 + [0] * 10
        )
        assert list(dataset(file, "entry0000/stddaq/raw_files").asstr()[:2]) == [
            "dark/file0.h5",
            "dark/file1.h5",
        ]


def test_runs_of_other_images_are_refused(tmp_path: Path):
    runs = [
        run_of(tmp_path / "dark", stream(range(4)), ImageKey.dark, (4, 8)),
        run_of(tmp_path / "projection", stream(range(4)), ImageKey.projection, SHAPE),
    ]
    with pytest.raises(FileLayoutError, match=r"images \(4, 8\) uint16 as in the first run, got \(6, 8\)"):
        create_nxtomo_file(tmp_path / "all.h5", runs, metadata(STILLS))


def test_a_file_without_the_name_of_the_sample_makes_no_claim(tmp_path: Path):
    raw, known = write_run(tmp_path, RUN, RunSpec(shape=SHAPE)), metadata(STILLS, sample__name=None)
    part, path = TomographyRun(read_run(raw), KEYS, ANGLES), tmp_path / "file_tomo.h5"
    with pytest.raises(ConfigError, match=r"values that NXtomo requires, got none for sample\.name"):
        create_nxtomo_file(path, [part], known)
    assert not path.exists()
    assert create_nxtomo_file(path, [part], known, incomplete=True).missing == ("sample.name",)
    with h5py.File(path) as file:
        assert "entry0000/definition" not in file
