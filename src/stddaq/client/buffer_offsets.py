"""Offsets that cannot be right, in image buffers without checksums.

A std_daq writer (C++) that restarts within a file counts offsets from 0 again, although it appends. Images
that it announces from then on are elsewhere in the file.
"""

from __future__ import annotations

from stddaq.client.buffer_files import DamagedImageError
from stddaq.client.buffer_index import BufferIndex, DamagedRecordError, parse_record
from stddaq.text import mismatch
from stddaq.wire.image_buffer import IDS_PER_FILE, BufferedMetadata


class OffsetCheck:
    """Compares the offset of an image with those of the lower ids in its file."""

    def __init__(self, index: BufferIndex) -> None:
        self._index = index
        # Of the file of the last image: for each id, where the images of lower ids end.
        self._ends: dict[int, int] = {}

    def check(self, record: BufferedMetadata) -> None:
        """Raise `DamagedImageError` if an image of a lower id is behind this one, and no checksum decides.

        Raise `ImageBufferUnreachableError`. The database is asked once per file.
        """
        if record.HasField("checksum"):
            return
        image_id = record.metadata.image_id
        if image_id not in self._ends:
            self._ends = self._read(image_id // IDS_PER_FILE * IDS_PER_FILE)
        end = self._ends.get(image_id, 0)
        if record.offset < end:
            expected = f"an offset of {end} or more, after the images of lower ids"
            got = f"{record.offset}; the writer was restarted within the file"
            raise DamagedImageError(mismatch(f"image {image_id}", expected, got))

    def _read(self, first: int) -> dict[int, int]:
        ids = self._index.ids(first, first + IDS_PER_FILE - 1, IDS_PER_FILE)
        ends, end = dict[int, int](), 0
        for image_id, value in zip(ids, self._index.values(ids), strict=True):
            ends[image_id] = end
            if value is None:
                continue
            try:
                record = parse_record(value, image_id)
            except DamagedRecordError:
                continue
            end = max(end, record.offset + record.metadata.size)
        return ends
