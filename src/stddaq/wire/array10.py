"""array-1.0: one uncompressed image in two parts, a JSON header and the pixels (little-endian, row-major).

The header is `{"htype":"array-1.0", "shape":[2016,2016], "type":"uint16", "frame":3}`, shape [height, width],
frame the image id. Further keys, if any, follow. An image whose status is not good has a last key, such as
`"status":"missing_packets"`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stddaq.errors import StdDaqError
from stddaq.text import mismatch

if TYPE_CHECKING:
    import numpy as np

HTYPE = "array-1.0"
MAX_HEADER_BYTES = 64 * 1024


class Array10Error(StdDaqError):
    """A message is not array-1.0."""


class HeaderMaker:
    """Makes the headers of one stream."""

    def __init__(self, shape: tuple[int, int], pixel_type: str) -> None:
        """`shape` (height, width); `pixel_type` is the name of a NumPy type."""
        height, width = shape
        self._begin = f'{{"htype":"{HTYPE}", "shape":[{height},{width}], "type":"{pixel_type}", "frame":'

    def header(self, frame: int, status: str | None = None, further: str = "") -> bytes:
        """Return the header of an image: its `status` only if it is not good, and `further` keys.

        These begin with a comma.
        """
        end = "}" if status is None else f', "status":"{status}"}}'
        return f"{self._begin}{frame}{further}{end}".encode()


@dataclass(frozen=True, slots=True)
class ArrayMessage:
    """A decoded message. `status` is None if the header has none: the image is good."""

    image_id: int
    pixels: np.ndarray
    status: str | None


def decode(parts: Sequence[bytes | memoryview]) -> ArrayMessage:
    """Decode a message. The pixels (height, width) are a view of its second part.

    Raise `Array10Error`.
    """
    # Services that only make messages do without NumPy and pydantic.
    import numpy as np

    from stddaq.wire.array10_header import parsed_header

    if len(parts) != 2:
        raise Array10Error(mismatch("message", "2 parts", str(len(parts))))
    header = parsed_header(bytes(parts[0][: MAX_HEADER_BYTES + 1]))
    dtype = np.dtype(header.type).newbyteorder("<")
    n_bytes = header.shape[0] * header.shape[1] * dtype.itemsize
    found = memoryview(parts[1]).nbytes
    if found != n_bytes:
        raise Array10Error(mismatch("pixels", f"{n_bytes} bytes as the header says", str(found)))
    return ArrayMessage(header.frame, np.frombuffer(parts[1], dtype).reshape(header.shape), header.status)
