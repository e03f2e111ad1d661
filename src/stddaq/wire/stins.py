"""STINS: the images of one run as a series of messages, as the generic ingester of dranspose receives them.

A series is a header, an image for each row of the run, and an end; the first part of each is JSON, the second
part of an image its pixels (little-endian, row-major). dranspose counts messages, so a row without image is
sent as well, with shape [0, 0] and a `status`. The format is that of dranspose 0.2
(`dranspose.data.stream1`), which ignores further keys.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np


class SeriesMaker:
    """Makes the JSON of one stream. `msg_number` counts all of its messages."""

    def __init__(self, shape: tuple[int, int], dtype: np.dtype) -> None:
        """`shape` (height, width)."""
        self._shape, self._dtype = list(shape), dtype.name
        self._n_messages = 0

    def header(self, master_file: str, **further: Any) -> bytes:
        """Return the message that begins a series. The images are in `master_file` after its end."""
        return self._message("header", filename=master_file, **further)

    def image(self, row: int, image_id: int, status: str | None) -> bytes:
        """Return the first part of an image with pixels: its `status` only if it is not good."""
        further = {} if status is None else {"status": status}
        return self._image(row, self._shape, image_id=image_id, **further)

    def lost_image(self, row: int, image_id: int | None, status: str) -> bytes:
        """Return the first part of a row whose pixels are not sent, because of `status`."""
        return self._image(row, [0, 0], image_id=image_id, status=status)

    def end(self, n_rows: int, error: str | None) -> bytes:
        """Return the message that ends a series of `n_rows` images; `error` says why it is incomplete."""
        further = {} if error is None else {"error": error}
        return self._message("series_end", count=n_rows, **further)

    def _image(self, row: int, shape: list[int], **further: Any) -> bytes:
        return self._message("image", frame=row, shape=shape, type=self._dtype, compression="none", **further)

    def _message(self, htype: str, **values: Any) -> bytes:
        number = self._n_messages
        self._n_messages += 1
        return json.dumps({"htype": htype, "msg_number": number, **values}).encode()
