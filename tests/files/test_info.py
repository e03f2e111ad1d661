"""`stddaq info` describes any file, or refuses it with a clear error."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.data.raw_files import RunSpec, bitshuffle, dataset, stream, write_run

from stddaq.errors import FileLayoutError
from stddaq.files.info import describe
from stddaq.files.master_file import create_master_file
from stddaq.files.opening import isolated


def text(path: Path) -> str:
    return "\n".join(describe(path).lines())


def test_raw_file_is_described_by_ids_gaps_status_and_origin(tmp_path: Path) -> None:
    raw = write_run(tmp_path, stream([0, 1, 2, 3, 4, 10, 11, 12], range(4)), RunSpec(filter=bitshuffle()))
    with h5py.File(raw[0], "r+") as file:
        rows = dataset(file, "det/metadata")
        rows[1], rows[2] = (2, 2), (4, 3)
    info = describe(raw[0])
    assert (info.kind, info.detector_name, info.n_images, info.image_shape) == ("raw", "det", 7, (2, 3))
    assert info.ids is not None
    assert (info.ids.first, info.ids.last, info.ids.step, info.ids.n_epochs) == (0, 2, 2, 2)
    assert (info.ids.gaps, info.ids.n_skipped) == (((6, 8),), 2)
    assert info.status is not None
    assert (info.status.n_good, info.status.damaged, info.status.overwritten) == (5, (2,), (4,))
    assert info.origin["number_of_writers"] == 2
    assert info.pixel_bytes == 7 * 12
    assert info.datasets[0].filters == ("bitshuffle",)
    shown = text(raw[0])
    for part in (
        "0 to 2, every 2, in 2 stretches of increasing ids",
        "2: 6-8",
        "1 damaged (2)",
        "run-1",
        "bitshuffle",
    ):
        assert part in shown


def test_master_file_is_described_by_its_sources_and_missing_files(tmp_path: Path) -> None:
    raw = write_run(tmp_path, stream([0, 1, 4, 5]), RunSpec(metadata_file=True))
    create_master_file(tmp_path / "m.h5", raw, metadata_file=tmp_path / "fileMeta.h5", account='{"count": 4}')
    info = describe(tmp_path / "m.h5")
    assert (info.kind, info.n_images, info.detector_name, info.missing) == ("master", 4, "det", ())
    assert info.account == {"count": 4}
    assert info.ids is not None
    assert info.ids.gaps == ((2, 3),)
    raw[1].unlink()
    assert describe(tmp_path / "m.h5").missing == (raw[1],)
    assert "file1.h5: fill values" in text(tmp_path / "m.h5")


@pytest.mark.parametrize("by_stddaq", [True, False])
def test_empty_files_and_metadata_files_are_described(tmp_path: Path, by_stddaq: bool) -> None:
    raw = write_run(tmp_path, stream([]), RunSpec(metadata_file=True, by_stddaq=by_stddaq))
    assert describe(raw[0]).n_images == 0
    assert "images:" in text(raw[0])
    info = describe(tmp_path / "fileMeta.h5")
    assert (info.kind, info.n_images, info.ids) == ("metadata", 0, None)


def test_other_hdf5_file_lists_its_datasets(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a/b/c"] = np.zeros((3, 4), "f4")
        file["text"] = "hello"
        file["nothing"] = h5py.Empty("f4")
        file["link"] = h5py.SoftLink("/nowhere")
        file["elsewhere"] = h5py.ExternalLink("nowhere.h5", "/x")
    info = describe(tmp_path / "x.h5")
    assert info.kind == "other"
    assert [dataset.name for dataset in info.datasets] == ["/a/b/c", "/nothing", "/text"]
    assert "(3, 4) float32" in text(tmp_path / "x.h5")


@pytest.mark.slow
def test_broken_files_are_described_or_refused(tmp_path: Path) -> None:
    raw = write_run(tmp_path, stream(range(9)), RunSpec(metadata_file=True))
    create_master_file(tmp_path / "m.h5", raw)
    chance = random.Random(1)
    path = tmp_path / "broken.h5"
    refused = 0
    for original in (raw[0].read_bytes(), (tmp_path / "m.h5").read_bytes()):
        for _ in range(40):
            content = bytearray(original[: chance.choice([len(original), chance.randrange(len(original))])])
            for _ in range(chance.choice([0, 1, 5, 50])):
                if content:
                    content[chance.randrange(len(content))] = chance.randrange(256)
            path.write_bytes(content)
            refused += is_refused(path)
    assert refused


def is_refused(path: Path) -> bool:
    """Return whether the file is refused, which must be by one line that names it."""
    try:
        # As the command does: HDF5 itself crashes over some of these files.
        assert isolated(lambda: describe(path).lines(), path)
    except FileLayoutError as error:
        message = str(error)
    else:
        return False
    assert message.startswith(str(path))
    assert len(message.splitlines()) == 1
    return True


# Writes images to the file in its argument, flushes after each, and prints a line when the file is there.
WRITER = """
import sys
from pathlib import Path
import numpy as np
from stddaq.files.raw_file import RawFile, RawLayout
file = RawFile.create(Path(sys.argv[1]), RawLayout("det", (4, 8), np.dtype("<u2"), 4096, 0), {})
print("ready", flush=True)
image_id = 0
while True:
    file.put([memoryview(bytes(64))])
    file.declare([(image_id, 1)])
    file.flush()
    image_id += 1
"""


@pytest.mark.slow
def test_a_file_that_is_being_written_is_never_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "raw.h5"
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout
            assert writer.stdout.readline() == b"ready\n"
            n_images: list[int] = []
            deadline = time.monotonic() + 60
            # The writer may stand still on a busy machine.
            while len(n_images) < 100 or (n_images[-1] == n_images[0] and time.monotonic() < deadline):
                n_images.append(describe(path).n_images or 0)
        finally:
            writer.kill()
    assert n_images == sorted(n_images)
    assert n_images[-1] > n_images[0]
