"""A run as BigTIFF: a page for each image, whose description has its id and status."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile

from stddaq.files.export.source import Source

_POINTER = struct.Struct("<Q")


class ImageWriter:
    """See `Writer`."""

    step = 1

    def __init__(self, path: Path, source: Source, n_done: int) -> None:
        self._source = source
        self._ids, self._status = source.run.image_ids, source.run.status
        if n_done:
            _cut(path, n_done)
        self._file = tifffile.TiffWriter(path, bigtiff=True, append=n_done > 0, byteorder="<")

    def write(self, first: int, end: int) -> None:
        for image, row in zip(self._source.images(first, end), range(first, end), strict=True):
            said = {"image_id": int(self._ids[row]), "status": int(self._status[row])}
            self._file.write(image, photometric="minisblack", metadata=None, description=json.dumps(said))
        self._file.filehandle.flush()

    def close(self) -> None:
        self._file.close()


def _cut(path: Path, n_pages: int) -> None:
    """Remove all that follows the first pages, which may be incomplete."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[n_pages - 1].aspage()
        end = max(page.dataoffsets[-1] + page.databytecounts[-1], page.offset + 16 + 20 * len(page.tags))
        # The address of the next page follows the tags of 20 bytes.
        pointer = page.offset + 8 + 20 * len(page.tags)
    with path.open("r+b") as file:
        file.truncate(end)
        file.seek(pointer)
        file.write(_POINTER.pack(0))


@contextmanager
def reader(path: Path) -> Iterator[Callable[[int, int], np.ndarray]]:
    with tifffile.TiffFile(path) as file:
        yield lambda first, end: np.stack([page.asarray() for page in file.pages[first:end]])
