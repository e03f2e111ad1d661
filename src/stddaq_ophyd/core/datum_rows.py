"""What a Datum says about raw files: which rows are the images of its point (see `stddaq_ophyd.handlers`)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stddaq.files.virtual import stretches


class DatumRows(NamedTuple):
    """`n` rows of a raw file from `row` on: every `step`-th image of the point from `first` on."""

    writer: int
    row: int
    first: int
    step: int
    n: int


def datum_rows(writers: np.ndarray, rows: np.ndarray) -> list[DatumRows]:
    """Return the rows of a point, from the writer and the row (n,) of each of its images.

    A Datum of spec STDDAQ_RAW holds them as lists in `datum_kwargs["rows"]`. Rows of a writer must increase.
    """
    found: list[DatumRows] = []
    for writer in np.unique(writers):
        places = np.flatnonzero(writers == writer)
        of_writer = rows[places]
        for block in np.split(np.arange(len(of_writer)), np.flatnonzero(np.diff(of_writer) != 1) + 1):
            for start, first, step, n in stretches(places[block]):
                found.append(DatumRows(int(writer), int(of_writer[block[start]]), first, step, n))
    return found
