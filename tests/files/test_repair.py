"""Repair closes files of killed writers, invents no data, and does not disturb running writers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.data.raw_files import RunSpec, dataset, stream, write_run

from stddaq.errors import FileLayoutError, SourceError
from stddaq.files import repair as repair_module
from stddaq.files.file_format import FILE_FORMAT
from stddaq.files.info import describe
from stddaq.files.master_file import create_master_file
from stddaq.files.reading import open_run
from stddaq.files.repair import lookup3, repair
from stddaq.sources.image_files import open_images

# A writer that flushes all of its images except the last ones, prints `ready`, and waits.
WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from stddaq.files.raw_file import RawFile, RawLayout
path, flushed, late = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
layout = RawLayout("det", (64, 64), np.dtype("<u2"), 64 * 1024, 0)
attributes = {"writer": 0, "number_of_writers": 1, "image_division": "image_id", "run_id": "run-1"}
file = RawFile.create(path, layout, attributes)
for image_id in range(flushed + late):
    file.put([memoryview(np.full((64, 64), image_id, "<u2")).cast("B")])
    file.declare([(image_id, 1)])
    if image_id < flushed:
        file.flush()
print("ready", flush=True)
time.sleep(60)
"""


@contextmanager
def writer(path: Path, flushed: int, late: int = 0) -> Iterator[subprocess.Popen[str]]:
    """Start a process that writes `path`."""
    arguments = [sys.executable, "-c", WRITER, str(path), str(flushed), str(late)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


def killed(path: Path, flushed: int, late: int = 0) -> None:
    """Create the file of a writer that was killed."""
    with writer(path, flushed, late):
        pass


def check_images(path: Path, n_images: int) -> None:
    with h5py.File(path) as file:
        assert dataset(file, "det/data").shape == (n_images, 64, 64)
        assert dataset(file, "det/data")[:, 5, 7].tolist() == list(range(n_images))
        assert dataset(file, "det/metadata")["image_id"].tolist() == list(range(n_images))


@pytest.mark.parametrize(("flushed", "late"), [(0, 0), (0, 3), (1, 0), (20, 0), (20, 11), (9, 1)])
def test_repair_closes_the_file_of_a_killed_writer_with_all_flushed_images(
    tmp_path: Path, flushed: int, late: int
) -> None:
    path = tmp_path / "file0.h5"
    killed(path, flushed, late)
    with pytest.raises(OSError, match="already open"):
        h5py.File(path)
    assert "killed" in "\n".join(describe(path).lines())
    with pytest.raises(FileLayoutError, match="stddaq repair"):
        create_master_file(tmp_path / "m.h5", [path])
    result = repair(path)
    assert (result.n_images, result.repaired) == (flushed, True)
    check_images(path, flushed)
    again = repair(path)
    assert (again.n_images, again.repaired) == (flushed, False)
    assert create_master_file(tmp_path / "m.h5", [path]).n_images == flushed
    with open_run(tmp_path / "m.h5") as run:
        assert run.images[:, 0, 0].tolist() == list(range(flushed))


def test_file_of_a_running_writer_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "file0.h5"
    with writer(path, 5) as process:
        before = path.read_bytes()
        with pytest.raises(FileLayoutError, match=rf"is being written by process {process.pid}"):
            repair(path)
        assert path.read_bytes() == before
        assert describe(path).n_images == 5
        assert f"being written by process {process.pid}" in "\n".join(describe(path).lines())


def test_file_of_a_stopped_writer_of_another_user_or_container_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file0.h5"
    monkeypatch.setattr(repair_module, "writers_of", lambda _path: [])  # /proc does not show it.
    with writer(path, 5, late=3) as process:
        process.send_signal(signal.SIGSTOP)
        before = path.read_bytes()
        with pytest.raises(FileLayoutError, match="is being written by a process of another user or cont"):
            repair(path)
        assert path.read_bytes() == before
        assert "being written by a process of another user" in "\n".join(describe(path).lines())
    assert repair(path).repaired


@pytest.mark.parametrize("look", [repair, describe, lambda path: open_images(str(path))])
def test_pipes_are_refused_and_not_waited_for(tmp_path: Path, look: Callable[[Path], object]) -> None:
    path = tmp_path / "file0.h5"
    os.mkfifo(path)
    with pytest.raises((FileLayoutError, SourceError), match=r"file0\.h5.*: expected a file, got a pipe"):
        look(path)


def test_file_that_is_open_for_writing_without_swmr_is_not_touched(tmp_path: Path) -> None:
    (path,) = write_run(tmp_path, stream(range(3)), RunSpec(n_writers=1))
    with h5py.File(path, "r+", libver="latest") as file:
        dataset(file, "det/data")[0] = 7
        with pytest.raises(FileLayoutError, match="is being written by process"):
            repair(path)
    assert repair(path).repaired is False


def test_whole_files_need_no_repair(tmp_path: Path) -> None:
    spec = RunSpec(metadata_file=True)
    paths = [*write_run(tmp_path, stream(range(9)), spec), tmp_path / "fileMeta.h5"]
    paths += write_run(tmp_path, stream(range(9)), RunSpec(by_stddaq=False, prefix="cpp"))
    with h5py.File(tmp_path / "else.h5", "w", userblock_size=512) as file:
        file["else"] = 1
    for path in [*paths, tmp_path / "else.h5"]:
        before = path.read_bytes()
        assert repair(path).repaired is False
        assert path.read_bytes() == before


def test_allocated_space_that_was_not_written_is_not_damage(tmp_path: Path) -> None:
    path = tmp_path / "file0.h5"
    killed(path, 20)
    with h5py.File(path, swmr=True) as file:
        data = dataset(file, "det/data")
        chunk = data.id.get_chunk_info_by_coord((19, 0, 0))
        assert chunk.byte_offset is not None
        assert chunk.byte_offset + chunk.size > path.stat().st_size
        last_row = chunk.byte_offset + 19 % 8 * 64 * 64 * 2
    content = path.read_bytes()
    repair(path)
    check_images(path, 20)
    # A missing byte of the last flushed image is damage.
    path.write_bytes(content[: last_row + 64 * 64 * 2 - 1])
    with pytest.raises(FileLayoutError, match=r"is truncated to \d+ bytes: 1 of 20 rows of /det/data"):
        repair(path)


@pytest.mark.parametrize("left", [0.3, 0.9])
def test_truncated_file_is_refused_and_not_changed(tmp_path: Path, left: float) -> None:
    path = tmp_path / "file0.h5"
    killed(path, 40)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * left)])
    before = path.read_bytes()
    with pytest.raises(FileLayoutError, match=r"file0\.h5: is (truncated|damaged)"):
        repair(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"no HDF5", b"\x89HDF\r\n\x1a\n" + bytes(40)])
def test_files_that_are_not_hdf5_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.h5").write_bytes(content)
    with pytest.raises(FileLayoutError, match=r"x\.h5: is (not an HDF5 file|damaged)"):
        repair(tmp_path / "x.h5")
    with pytest.raises(FileLayoutError, match=r"y\.h5: cannot be read"):
        repair(tmp_path / "y.h5")


def test_superblock_checksum_is_that_of_hdf5(tmp_path: Path) -> None:
    # The first one is the test vector of the algorithm's author.
    assert lookup3(b"Four score and seven years ago") == 0x17770551
    with h5py.File(tmp_path / "x.h5", "w", libver="latest") as file:
        file["data"] = np.arange(10)
    block = (tmp_path / "x.h5").read_bytes()[:48]
    assert lookup3(block[:44]) == int.from_bytes(block[44:], "little")


@contextmanager
def touched_from_elsewhere(path: Path) -> Iterator[None]:
    """Touch a file as its writer does, by a process that cannot be seen to have it open."""
    ended = threading.Event()

    def touch() -> None:
        while not ended.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.slow
def test_a_file_that_a_writer_elsewhere_may_be_writing_is_not_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "raw.h5"
    with h5py.File(path, "w", libver=FILE_FORMAT) as file:
        file.create_group("det")
    content = bytearray(path.read_bytes())
    content[11] = 5  # Open for writing in SWMR mode.
    content[44:48] = lookup3(bytes(content[:44])).to_bytes(4, "little")
    path.write_bytes(content)
    monkeypatch.setattr(repair_module, "UNCHANGED_S", 2.0)
    with touched_from_elsewhere(path):
        with pytest.raises(FileLayoutError, match=r"a file that stays unchanged for 2 s, got one"):
            repair(path)
        assert "its writer cannot be seen from here" in "\n".join(describe(path).lines())
    assert path.read_bytes() == content
    os.utime(path, (1e9, 1e9))
    assert "its writer was killed, or is stopped in another container" in "\n".join(describe(path).lines())
    assert repair(path).repaired


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `repair` wait for nothing."""
    monkeypatch.setattr(repair_module, "UNCHANGED_S", 0.0)
    monkeypatch.setattr(repair_module, "TOUCHED_WITHIN_S", 0.0)
