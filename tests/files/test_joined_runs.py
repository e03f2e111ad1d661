"""The master file over the parts of several drivers, and its readers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from silx.io.nxdata.parse import get_default
from support.data.raw_files import Image, RunSpec, dataset, pixels, stream, write_run

import stddaq
from stddaq.cli import main
from stddaq.errors import FileLayoutError, OutputExistsError
from stddaq.files.export.plan import plan_export
from stddaq.files.export.run import export_run
from stddaq.files.info import describe
from stddaq.files.joined_runs import create_joined_master
from stddaq.files.reading import LostImagesError
from stddaq.files.run import read_run
from stddaq.files.sources import OtherRunError
from stddaq.files.validate_joined import JoinedReport, validate

ROOT = Path(__file__).parents[2]
SHAPES = (2, 3), (4, 2)


def join(directory: Path, *parts: Sequence[Image], overwrite: bool = False, **account: object) -> Path:
    """Write the raw files of parts, and the master file over them. Return its path."""
    runs = []
    for number, (images, shape) in enumerate(zip(parts, SHAPES, strict=True), 1):
        spec = RunSpec(
            prefix=f"filePart{number}_", shape=shape, detector=f"d{number}", run_id=f"run-{number}"
        )
        runs.append(read_run(write_run(directory, images, spec)))
    path = directory / "fileMaster.h5"
    text = json.dumps({"outcome": "file_saved"} | account) if account else None
    create_joined_master(path, runs, account=text, overwrite=overwrite)
    return path


def lose(path: Path, row: int) -> None:
    """Let an image of a raw file be overwritten."""
    with h5py.File(path, "r+") as file:
        rows = dataset(next(iter(file.values())), "metadata")
        rows[row] = (rows[row]["image_id"], 3)


def problems(path: Path, n_of_parts: int = 0) -> list[str]:
    """Return the problems of a joined run, without its directory; its parts have `n_of_parts`."""
    report = validate(path, pixels=True)
    assert isinstance(report, JoinedReport)
    assert sum(len(part.problems) for part in report.parts) == n_of_parts
    assert report.exit_code == bool(report.problems or n_of_parts)
    directory = path.parent if path.is_file() else path
    return [problem.text.replace(f"{directory}/", "") for problem in report.problems]


def assert_joined(path: Path, ids: Sequence[int], epochs: Sequence[dict[int, int]] = ({}, {})) -> None:
    """Check that each part shows `ids`, by HDF5 and by `open_run`. `epochs`: of late ids, by part."""
    with h5py.File(path) as file:
        for number, (shape, of_part) in enumerate(zip(SHAPES, epochs, strict=True), 1):
            expected = pixels([Image(of_part.get(i, 0), i) for i in ids], shape)
            assert np.array_equal(dataset(file, f"/entry/part{number}/data")[()], expected)
            assert dataset(file, f"/entry/part{number}/image_id")[()].tolist() == list(ids)
            run = stddaq.open_run(path, part=number)
            assert run.image_ids.tolist() == list(ids)
            assert np.array_equal(run.images[:], expected)


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(
    first=st.sets(st.integers(0, 40), max_size=30),
    second=st.sets(st.integers(0, 40), max_size=30),
)
def test_the_images_that_all_parts_have_are_shown_by_id(
    tmp_path_factory: pytest.TempPathFactory, first: set[int], second: set[int]
):
    directory = tmp_path_factory.mktemp("joined")
    path = join(directory, stream(sorted(first)), stream(sorted(second)))
    assert_joined(path, sorted(first & second))
    shutil.rmtree(directory)


def test_late_images_of_one_part_are_matched_with_those_of_the_other(tmp_path: Path):
    late = stream([0, 1, 4, 5], [2, 3, 6, 7])
    path = join(tmp_path, stream(range(8)), late)
    assert_joined(path, range(8), ({}, {image.image_id: image.epoch for image in late}))


def test_many_images_with_gaps_are_matched(tmp_path: Path):
    first, second = (
        sorted({*range(6000)} - {*range(0, 6000, 7)}),
        sorted({*range(6000)} - {*range(1, 6000, 5)}),
    )
    path = join(tmp_path, stream(first), stream(second))
    assert_joined(path, sorted({*first} & {*second}))


def test_silx_shows_the_first_part_by_default(tmp_path: Path):
    path = join(tmp_path, stream(range(5)), stream(range(5)))
    with h5py.File(path) as file:
        shown = get_default(file)
        assert shown is not None
        assert shown.is_valid
        assert shown.signal is not None
        assert shown.signal.name == "/entry/part1/data"
        assert shown.axes_names is not None
        assert shown.axes_names[0] == "image_id"


def test_a_run_whose_ids_restart_cannot_be_joined(tmp_path: Path):
    with pytest.raises(FileLayoutError, match="expected each once, got some twice"):
        join(tmp_path, stream(range(5)), stream(range(5), range(3)))
    assert not (tmp_path / "fileMaster.h5").exists()


def test_an_existing_file_is_replaced_only_on_request(tmp_path: Path):
    path = join(tmp_path, stream(range(5)), stream(range(5)))
    before = path.read_bytes()
    (tmp_path / "other").mkdir()
    runs = [read_run(sorted(tmp_path.glob(f"filePart{number}_*.h5"))) for number in (1, 2)]
    with pytest.raises(OutputExistsError):
        create_joined_master(path, runs)
    assert path.read_bytes() == before
    assert create_joined_master(path, runs, overwrite=True) == 5


def test_open_run_says_which_parts_there_are(tmp_path: Path):
    path = join(tmp_path, stream(range(5)), stream(range(5)))
    for named in (path, tmp_path):
        with pytest.raises(FileLayoutError, match=r"expected part=1 to part=2 of the drivers.*, got no part"):
            stddaq.open_run(named)
    assert stddaq.open_run(tmp_path, part=2).image_shape == SHAPES[1]
    with pytest.raises(FileLayoutError, match="expected a part from 1 to 2, got part 3"):
        stddaq.open_run(path, part=3)
    with pytest.raises(FileLayoutError, match="expected the master file of several drivers, got none"):
        stddaq.open_run(tmp_path / "filePart1_0.h5", part=1)


def code_of(*arguments: object) -> object:
    try:
        return main([*map(str, arguments)])
    except SystemExit as ended:
        return ended.code


def test_programs_for_one_run_take_a_part_by_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    parts = stream(range(5)), stream(range(2, 8))
    path, picture, nxmx = join(tmp_path, *parts), tmp_path / "missing.svg", tmp_path / "nxmx.h5"
    part, mean = tmp_path / "filePart1_0.h5", tmp_path / "mean.npy"
    average = ROOT / "examples/average_images.py"
    for run in (path, tmp_path, part):
        is_part = run == part
        drawn = code_of("plot-missing", run, "-o", picture)
        made = code_of("nexus", run, "--definition", "NXmx", "--incomplete", "-o", nxmx)
        assert (drawn == 0, made == 0) == (is_part, is_part)
        said = capsys.readouterr()
        assert said.err.count(f"part, such as {part}") == 2 * (not is_part)
        example = subprocess.run(
            [sys.executable, average, run, mean], capture_output=True, text=True, timeout=60, check=False
        )
        assert (example.returncode == 0) == is_part
        assert is_part or str(part) in example.stderr
    assert picture.stat().st_size
    with h5py.File(nxmx) as file:
        assert np.array_equal(dataset(file, "/entry/data/data")[()], pixels(parts[0], SHAPES[0]))
    np.testing.assert_allclose(np.load(mean), pixels(parts[0], SHAPES[0]).mean(axis=0))


def test_raw_files_that_were_replaced_are_not_shown(tmp_path: Path):
    path = join(tmp_path, stream(range(5)), stream(range(5)))
    spec = RunSpec(prefix="filePart2_", shape=SHAPES[1], detector="d2", run_id="another")
    for raw in spec.raw_paths(tmp_path):
        raw.unlink()
    write_run(tmp_path, stream(range(5)), spec)
    with pytest.raises(OtherRunError, match="another"):
        stddaq.open_run(path, part=2)
    spec.raw_paths(tmp_path)[1].unlink()
    with pytest.raises(FileLayoutError, match=r"filePart2_1\.h5"):
        stddaq.open_run(path, part=2)


def test_the_description_names_what_it_is(tmp_path: Path):
    info = describe(join(tmp_path, stream(range(5)), stream(range(2, 5))))
    assert (info.kind, info.n_images) == ("joined master", 3)
    assert info.ids is not None
    assert (info.ids.first, info.ids.last) == (2, 4)


@pytest.mark.slow
def test_a_sound_run_has_no_problems(tmp_path: Path):
    path = join(tmp_path, stream(range(7)), stream(range(2, 8)), count=5, n_good=5, n_incomplete=3)
    for named in (path, tmp_path):
        assert problems(named) == []
    report = validate(path)
    assert isinstance(report, JoinedReport)
    assert (report.n_images, report.n_good, report.incomplete.ranges) == (5, 5, ((0, 1), (7, 7)))
    assert [part.n_images for part in report.parts] == [7, 6]
    assert "  only in some parts      3: image ids 0-1, 7" in report.lines()
    assert report.lines()[-1] == "no problems in the run of all parts"


@pytest.mark.slow
def test_images_that_only_some_parts_have_and_a_wrong_account_are_problems(tmp_path: Path):
    parts = stream(range(7)), stream([0, 1, 3, 4, 5, 6])
    path = join(tmp_path, *parts, outcome="error", reason="part 2: lost", count=6, n_good=6, n_incomplete=1)
    assert problems(path) == [
        "fileMaster.h5: images: expected those from 0 to 6 in every part, got 1 only in some, image ids 2",
        "fileMaster.h5: account: expected a run that was saved, got error: part 2: lost",
    ]
    lose(tmp_path / "filePart1_0.h5", 2)
    text = "fileMaster.h5: account: n_good: expected 5 as in the raw files, got 6"
    assert problems(tmp_path, n_of_parts=1)[-1] == text


@pytest.mark.slow
def test_a_part_whose_files_are_missing_or_others_is_named(tmp_path: Path):
    path = join(tmp_path, stream(range(7)), stream(range(7)))
    spec = RunSpec(prefix="filePart2_", shape=SHAPES[1], detector="d2", run_id="run-2")
    write_run(tmp_path, stream(range(1, 8)), spec)
    assert problems(path) == ["fileMaster.h5: does not show the images that are in the raw files now"]
    (tmp_path / "filePart2_1.h5").unlink()
    assert problems(path, n_of_parts=1) == ["filePart2_1.h5: is missing, no such file"]
    (tmp_path / "filePart2_0.h5").unlink()
    found = problems(path)
    assert found[0] == "part 2: filePart2_0.h5: is missing, no such file or directory"
    assert len(found) == 2


def test_without_its_master_file_the_parts_of_a_run_are_named(tmp_path: Path):
    join(tmp_path, stream(range(3)), stream(range(3))).unlink()
    with pytest.raises(FileLayoutError, match=r"no raw files of this prefix; .* filePart1_, filePart2_$"):
        validate(tmp_path)
    report = validate(tmp_path, "filePart2_")
    assert (report.exit_code, report.n_images) == (0, 3)


def test_each_part_is_exported_and_image_i_of_all_has_the_same_id(tmp_path: Path):
    path = join(tmp_path, stream(range(9)), stream([*range(1, 5), *range(6, 10)]))
    lose(tmp_path / "filePart1_0.h5", 2)
    lose(tmp_path / "filePart2_1.h5", 0)
    out = tmp_path / "out.h5"
    with pytest.raises(LostImagesError, match=r"filePart1_0\.h5: .* got 1, image ids 4"):
        export_run(path, out)
    plan = plan_export(tmp_path, out, losses="drop")
    files = [tmp_path / f"outPart{part}.h5" for part in (1, 2)]
    assert (plan.outs, plan.n_images, len(plan.raw_files)) == ((*files,), 5, 4)
    # Neither image is in a file, although each part has one of them.
    ids = [2, 3, 6, 7, 8]
    assert export_run(tmp_path, out, losses="drop") == len(ids)
    for file, shape in zip(files, SHAPES, strict=True):
        run = stddaq.open_run(file)
        assert run.image_ids.tolist() == ids
        assert np.array_equal(run.images[:], pixels([Image(0, i) for i in ids], shape))
    files[0].unlink()
    with pytest.raises(OutputExistsError, match=r"outPart2\.h5"):
        export_run(path, out, losses="drop")


def test_an_interrupted_export_of_all_parts_is_continued(tmp_path: Path):
    path = join(tmp_path, stream(range(9)), stream(range(9)))

    def interrupt(_what: str, _done: int, _total: int) -> None:
        if (tmp_path / "outPart2.tif.partial").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_run(path, tmp_path / "out.tif", on_progress=interrupt)
    assert not (tmp_path / "outPart1.tif").exists()
    export_run(path, tmp_path / "out.tif")
    assert sorted(file.name for file in tmp_path.glob("out*")) == ["outPart1.tif", "outPart2.tif"]
