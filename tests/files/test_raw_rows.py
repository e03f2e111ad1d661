"""The rows of a raw file that another process is writing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest

from stddaq.files.raw_rows import read_raw_file

# Writes two more images for each line of its standard input, as a writer does: pixels first, then rows.
WRITER = """
import sys
from pathlib import Path
import numpy as np
from stddaq.files.raw_file import RawFile, RawLayout
layout = RawLayout("det", (4, 6), np.dtype("<u2"), 64, 0)
file = RawFile.create(Path(sys.argv[1]), layout, {"writer": 0})
image_id = 0
for line in sys.stdin:
    for _ in range(2):
        file.put([memoryview(np.full((4, 6), image_id, "<u2")).cast("B")])
        file.declare(image_id, 1)
        image_id += 1
    file.flush()
    print(image_id, flush=True)
"""


def test_rows_are_never_ahead_of_the_images_of_a_growing_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file0.h5"
    command = [sys.executable, "-c", WRITER, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None

        def grow() -> None:
            assert writer.stdin is not None
            assert writer.stdout is not None
            writer.stdin.write("grow\n")
            assert writer.stdout.readline()

        def grow_before(function: Callable[..., object]) -> Callable[..., object]:
            def growing(*arguments: object) -> object:
                grow()
                return function(*arguments)

            return growing

        grow()
        monkeypatch.setattr(h5py.Group, "get", grow_before(h5py.Group.get))
        monkeypatch.setattr(h5py.Group, "__getitem__", grow_before(h5py.Group.__getitem__))
        rows = read_raw_file(path, allow_unclosed=True)
        monkeypatch.undo()
        writer.stdin.close()
        assert writer.wait(20) == 0
    assert rows.image_ids.tolist() == list(range(rows.n_rows))
    assert 2 <= rows.n_rows <= rows.n_stored
    assert read_raw_file(path, allow_unclosed=True).n_rows > rows.n_rows
