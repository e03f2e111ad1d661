"""What a Datum says of raw files: which rows are the images of its point (see `stddaq_ophyd.handlers`)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stddaq.files.virtual import stretches


class DatumRows(NamedTuple):
    """`n` consecutive rows of a raw file, which are every `step`-th image of the point from `first` on."""

    writer: int
    row: int
    first: int
    step: int
    n: int


def datum_rows(writers: np.ndarray, rows: np.ndarray) -> list[DatumRows]:
    """The rows of a point, from the writer and the row (n,) of each of its images.

    A Datum of spec STDDAQ_RAW says them as lists in `datum_kwargs["rows"]`. Rows of one writer must increase.
    """
    found: list[DatumRows] = []
    for writer in np.unique(writers):
        places = np.flatnonzero(writers == writer)
        mine = rows[places]
        for block in np.split(np.arange(len(mine)), np.flatnonzero(np.diff(mine) != 1) + 1):
            for start, first, step, n in stretches(places[block]):
                found.append(DatumRows(int(writer), int(mine[block[start]]), first, step, n))
    return found
