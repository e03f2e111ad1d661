"""A command describes any file or refuses it with one line: no traceback, no hang, no crash."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from support.data.raw_files import EPOCH_ROW, ROW, RunSpec, bitshuffle, stream, write_raw_file, write_run
from support.processes.deployment import Deployment
from support.processes.file_commands import Done, FileCommands
from support.tools.fuzzing import examples, mutated

from stddaq.files.info import ids_info
from stddaq.files.master_file import create_master_file

# What a command may need beside the memory that it has after a good file. Files here are of a few kilobytes.
MEMORY_LIMIT_KIB = 300 * 1024
SHAPE = (32, 48)


# Tests that need `deployment` name it first, so that the commands use its sockets.
@pytest.fixture
def commands() -> Iterator[FileCommands]:
    with FileCommands() as started:
        yield started


class Refusals:
    """Checks what each command promises for a file, however damaged."""

    def __init__(self, commands: FileCommands, *good: object) -> None:
        """`good`: arguments of a command that succeeds; its memory is the reference."""
        self._commands = commands
        done = commands.run(*good)
        assert (done.code, done.traceback) == (0, ""), done
        self._memory = done.max_memory

    def check(self, *arguments: object) -> Done:
        done = self._commands.run(*arguments)
        assert done.traceback == "", done.traceback
        if arguments[0] == "validate" and done.code == 1:
            assert " problem" in done.out.splitlines()[-1]
            return done
        assert done.code in (0, 2), done
        assert len(done.err.splitlines()) == (1 if done.code else 0), done.err
        assert len(done.err) < 2000
        assert done.max_memory < self._memory + MEMORY_LIMIT_KIB, f"{done.max_memory} KiB"
        return done


def hdf5_files(directory: Path) -> list[bytes]:
    """Return Python and C++ raw files, compressed and not, a metadata file, and a master file."""
    images = stream([0, 2, 4, 8], [0, 2])
    specs = [
        RunSpec(1, prefix="py"),
        RunSpec(1, prefix="cpp", by_stddaq=False),
        RunSpec(1, prefix="compressed", filter=bitshuffle()),
    ]
    for spec in specs:
        write_raw_file(directory / f"{spec.prefix}0.h5", images, spec)
    write_run(directory, stream(range(5)), RunSpec(2, prefix="both", metadata_file=True))
    create_master_file(directory / "bothMaster.h5", [directory / "both0.h5", directory / "both1.h5"])
    left = directory / "left0.h5"
    left.write_bytes(left_by_a_killed_writer(directory / "py0.h5"))
    return [path.read_bytes() for path in sorted(directory.glob("*.h5"))]


def left_by_a_killed_writer(path: Path) -> bytes:
    """Return the content of a file whose consistency flag still says that it is being written."""
    with h5py.File(path, "r+", libver="latest") as file:
        file.swmr_mode = True
        file.flush()
        return path.read_bytes()


@st.composite
def damaged(draw: st.DrawFn, contents: list[bytes]) -> bytes:
    """Generate files with some changed bytes, most of them in the structure."""
    content = bytearray(draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, min(len(content), draw(st.sampled_from([64, 1024, len(content)]))) - 1))
        change = draw(
            st.sampled_from([b"\0", b"\xff", b"\xff" * 8, b"\x00" * 8, b"\x7f" * 4]) | st.binary(max_size=8)
        )
        content[place : place + len(change)] = change
    if draw(st.integers(0, 4)) == 0:
        del content[draw(st.integers(0, len(content))) :]
    return bytes(content)


@pytest.mark.slow
def test_an_hdf5_file_with_any_damage_is_described_or_refused_in_one_line(
    commands: FileCommands, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    made.mkdir()
    contents = hdf5_files(made)
    refusals = Refusals(commands, "info", made / "py0.h5")
    path = tmp_path / "file0.h5"

    @examples(20)
    @given(damaged(contents) | mutated(st.sampled_from(contents)))
    def damage_is_survived(content: bytes) -> None:
        path.write_bytes(content)
        refusals.check("info", path)
        refusals.check("validate", "--pixels", path)
        refusals.check("aggregate", path, "-o", tmp_path / "outMaster.h5", "--overwrite")
        refusals.check("repair", path)

    damage_is_survived()


KINDS = (
    "group",
    "table",
    "stack",
    "text",
    "scalar",
    "empty",
    "epochs",
    "floats",
    "compound",
    "nowhere",
    "self",
    "outside",
    "",
)
NAMES = (
    "det",
    "det/data",
    "det/metadata",
    "det/epochs",
    "other/metadata",
    "entry/data/data",
    "entry/data/image_id",
    "entry/data/metadata",
    "entry/stddaq/account",
    "entry/stddaq/epochs",
    "entry/stddaq/raw_files",
    "entry/instrument/detector/local_name",
)
ATTRIBUTES: dict[str, list[Any]] = {
    "writer": [0, 1, -1, 2**63, "0", [1, 2], 0.5],
    "number_of_writers": [1, 2, 0, -1, 2**64 - 1, "2"],
    "image_division": ["image_id", "arrival", "", 5],
    "run_id": ["a", 5, [1]],
    "default": ["entry", "missing", "/", "det", 5],
    "signal": ["data", "missing", 5],
}


def put(file: h5py.File, name: str, kind: str) -> None:
    """Put an object of `kind` at `name`, if its parents allow it."""
    rows = np.array([(0, 1), (2, 1), (2, 3)], ROW)
    contents: dict[str, Any] = {
        "table": {"data": rows},
        "stack": {"data": np.zeros((3, *SHAPE), np.uint16)},
        "text": {"data": '{"a": '},
        "scalar": {"data": 5},
        "empty": {"data": h5py.Empty("f4")},
        "epochs": {"data": np.array([(2**64 - 1, 1), (1, 0)], EPOCH_ROW)},
        "floats": {"data": np.array([np.nan, np.inf, -1.0])},
        "compound": {"data": np.zeros((3, 2), [("image_id", "<f4"), ("status", "S3")])},
    }
    match kind:
        case "group":
            file.require_group(name)
        case "nowhere":
            file[name] = h5py.SoftLink("/nowhere")
        case "self":
            file[name] = h5py.SoftLink(f"/{name}")
        case "outside":
            file[name] = h5py.ExternalLink("missing.h5", "/")
        case "virtual":
            layout = h5py.VirtualLayout((3, *SHAPE), np.uint16)
            layout[0] = h5py.VirtualSource("missing.h5", "data", SHAPE)
            file.create_virtual_dataset(name, layout)
        case _:
            file.create_dataset(name, **contents[kind])


TREES = st.dictionaries(st.sampled_from(NAMES), st.sampled_from([*KINDS[:-1], "virtual"]), max_size=7)


@st.composite
def attributes(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(sorted(ATTRIBUTES)), unique=True, max_size=4))
    return {name: draw(st.sampled_from(ATTRIBUTES[name])) for name in names}


def groups_of(file: h5py.File) -> Iterator[h5py.Group]:
    """Return the groups directly below the root; circular links cannot be opened."""
    for name in file:
        with suppress(KeyError, OSError, RuntimeError):
            if isinstance(node := file[name], h5py.Group):
                yield node


@pytest.mark.slow
def test_an_hdf5_file_with_any_content_is_described_or_refused_in_one_line(
    deployment: Deployment, commands: FileCommands, tmp_path: Path
) -> None:
    write_raw_file(tmp_path / "good0.h5", stream([0, 2]), RunSpec(1))
    refusals = Refusals(commands, "info", tmp_path / "good0.h5")
    path = tmp_path / "file0.h5"

    @examples(25)
    @given(TREES, attributes(), st.booleans())
    def content_is_survived(tree: dict[str, str], attributes: dict[str, Any], is_latest: bool) -> None:
        path.unlink(missing_ok=True)
        with h5py.File(path, "w", libver="latest" if is_latest else "earliest") as file:
            for name, kind in tree.items():
                # The parent may be a dataset or a dangling link.
                try:
                    put(file, name, kind)
                except (ValueError, KeyError, OSError, RuntimeError, TypeError):
                    continue
            for holder in (file, *groups_of(file)):
                holder.attrs.update(attributes)
        refusals.check("info", path)
        refusals.check("repair", path)
        refusals.check("aggregate", path, "-o", tmp_path / "outMaster.h5", "--overwrite")
        refusals.check("replay", deployment.config_path, path, "--rate", "0", "--n-images", "3")

    content_is_survived()


def image_files() -> list[bytes]:
    """Return npy and TIFF files of images that fit the deployment."""
    images = np.zeros((3, *SHAPE), np.uint16)
    made = []
    for write in (
        lambda file: np.save(file, images),
        lambda file: np.lib.format.write_array(file, images, version=(2, 0)),
        lambda file: tifffile.imwrite(file, images, photometric="minisblack"),
        lambda file: tifffile.imwrite(file, images, imagej=True),
        lambda file: tifffile.imwrite(
            file, images, bigtiff=True, compression="zlib", photometric="minisblack"
        ),
    ):
        file = io.BytesIO()
        write(file)
        made.append(file.getvalue())
    return made


@pytest.mark.slow
def test_any_damage_to_a_recorded_image_is_refused_in_one_line(
    deployment: Deployment, commands: FileCommands, tmp_path: Path
) -> None:
    contents = image_files()
    path = tmp_path / "images"
    replay = ("replay", deployment.config_path, path, "--rate", "0", "--n-images", "3", "--cast")
    path.write_bytes(contents[0])
    refusals = Refusals(commands, *replay)

    @examples(60)
    @given(damaged(contents) | mutated(st.sampled_from(contents)))
    def damage_is_survived(content: bytes) -> None:
        path.write_bytes(content)
        refusals.check(*replay)

    damage_is_survived()


@pytest.mark.slow
def test_damage_that_makes_hdf5_retry_is_refused_after_a_timeout(
    commands: FileCommands, tmp_path: Path
) -> None:
    """A wrong checksum in the file of a killed writer made `stddaq info` hang."""
    path = tmp_path / "left0.h5"
    write_raw_file(path, stream([0, 2]), RunSpec(1))
    content = bytearray(left_by_a_killed_writer(path))
    content[content.index(b"OHDR") + 8] ^= 1
    path.write_bytes(content)
    done = commands.run("info", path)
    assert (done.code, done.traceback) == (2, "")
    assert done.err == f"stddaq info: error: {path}: is damaged: HDF5 does not finish reading it\n"
    done = commands.run("validate", path)
    assert (done.code, done.traceback) == (2, "")
    assert done.err.startswith(f"stddaq validate: error: {path}: is damaged: HDF5 does not finish reading it")
    # The file has no writer, so `repair` does not wait, and leaves the file as it is.
    assert commands.run("repair", path).code == 2
    assert path.read_bytes() == content


def test_circular_default_attributes_are_refused(
    deployment: Deployment, commands: FileCommands, tmp_path: Path
) -> None:
    """`stddaq replay` followed them without end."""
    path = tmp_path / "images.h5"
    with h5py.File(path, "w") as file:
        file.attrs["default"] = "/"
    done = commands.run("replay", deployment.config_path, path)
    assert (done.code, done.traceback) == (2, "")
    assert "expected a dataset of images" in done.err


def test_master_file_without_rows_is_described_as_another_hdf5_file(
    commands: FileCommands, tmp_path: Path
) -> None:
    """Such a file caused a traceback."""
    path = tmp_path / "fileMaster.h5"
    with h5py.File(path, "w") as file:
        file["entry/data/data"] = np.zeros((3, *SHAPE), np.uint16)
        file["entry/data/image_id"] = np.arange(3)
        file["entry/data/metadata"] = h5py.SoftLink("/nowhere")
    done = commands.run("info", path)
    assert (done.code, done.traceback) == (0, "")
    assert "HDF5 file, not of a run" in done.out


def test_gap_of_more_than_half_of_all_ids_is_counted() -> None:
    """Such a gap was not counted."""
    ids = np.array([3, 2**64 - 1], np.uint64)
    info = ids_info(ids, np.zeros(2, np.uint64), 1)
    assert info
    assert info.n_skipped == 2**64 - 5
    assert info.gaps == ((4, 2**64 - 2),)
