"""The files of an image buffer, read by the records of its database."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np

from stddaq.client.buffer_index import ImageBufferError
from stddaq.closing import Closing
from stddaq.dataplane.metadata import dtype_of
from stddaq.errors import CompressionError
from stddaq.text import mismatch
from stddaq.wire.compressed_image import decompress_image_into
from stddaq.wire.compression import MAX_BLOSC2_BYTES
from stddaq.wire.image_buffer import BufferedMetadata, ImageMetadata, checksum, file_name
from stddaq.wire.std_daq import image_metadata_pb2 as pb


class DamagedImageError(ImageBufferError, ValueError):
    """An image is announced in the database, but its bytes are missing, or are not those of the image."""


class BufferFiles(Closing):
    """Reads the files of one camera. Keeps the last one open."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._name, self._fd, self._identity = "", -1, (0, 0)

    def read_into(self, record: BufferedMetadata, pixels: np.ndarray) -> None:
        """Decode an image into `pixels`, C-contiguous, of its size. Raise `DamagedImageError`.

        `pixels` then have undefined content.
        """
        metadata = record.metadata
        chunk = self._chunk(record, pixels.nbytes)
        if metadata.compression == pb.none:
            pixels.reshape(-1).view(np.uint8)[:] = np.frombuffer(chunk, np.uint8)
            return
        try:
            decompress_image_into(pb.blosc2, chunk, pixels)
        except CompressionError as error:
            raise DamagedImageError(f"image {metadata.image_id}: {error}") from error

    def _chunk(self, record: BufferedMetadata, n_bytes: int) -> bytes:
        """Return the stored bytes of an image of `n_bytes`."""
        metadata = record.metadata
        where, name = f"image {metadata.image_id}", file_name(metadata.image_id)
        if metadata.compression not in (pb.blosc2, pb.none):
            raise DamagedImageError(mismatch(where, "compression blosc2 or none", str(metadata.compression)))
        if metadata.compression == pb.none and metadata.size != n_bytes:
            raise DamagedImageError(mismatch(where, f"{n_bytes} bytes", str(metadata.size)))
        try:
            chunk = self._bytes_of(name, record.offset, metadata.size)
        except OSError as error:
            raise DamagedImageError(f"{where}: {self._directory / name}: {error.strerror}") from error
        if record.HasField("checksum") and checksum(chunk) != record.checksum:
            raise DamagedImageError(
                mismatch(f"{where} in {name}", f"bytes with the checksum {record.checksum}", "other bytes")
            )
        return chunk

    def _bytes_of(self, name: str, offset: int, size: int) -> bytes:
        self._open(name)
        n_bytes = os.fstat(self._fd).st_size
        if not 0 < size <= n_bytes - offset:
            expected = f"{size} bytes at {offset}"
            raise DamagedImageError(
                mismatch(str(self._directory / name), expected, f"{n_bytes} bytes in all")
            )
        chunk = os.pread(self._fd, size, offset)
        if len(chunk) != size:
            raise DamagedImageError(mismatch(f"{name} at {offset}", f"{size} bytes", f"{len(chunk)}"))
        return chunk

    def _open(self, name: str) -> None:
        path = self._directory / name
        if name == self._name:
            found = path.stat(follow_symlinks=False)
            if (found.st_dev, found.st_ino) == self._identity:
                return
        self.close()
        # A pipe or a link is not a file of the buffer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            raise DamagedImageError(mismatch(str(path), "a regular file", "another kind"))
        self._name, self._fd, self._identity = name, fd, (found.st_dev, found.st_ino)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
        self._name, self._fd = "", -1


def camera_directory(root: Path, camera: str) -> Path:
    """Return the directory of the files of a camera. `root` is that directory, or the one that contains it.

    Raise `OSError` if it cannot be read.
    """
    inside = root / camera
    if inside.is_dir() or not root.is_dir():
        return inside
    is_of_camera = root.name == camera or any(
        child.name.endswith("000000") and child.name.isdecimal() for child in root.iterdir()
    )
    return root if is_of_camera else inside


def empty_image(metadata: ImageMetadata) -> np.ndarray:
    """Return an array (height, width) of the pixel type. Raise `DamagedImageError` for an impossible one."""
    try:
        dtype = dtype_of(metadata.dtype)
    except KeyError:
        raise DamagedImageError(
            mismatch(f"image {metadata.image_id}", "a pixel type of std_daq", f"dtype {metadata.dtype}")
        ) from None
    if not 0 < metadata.height * metadata.width * dtype.itemsize <= MAX_BLOSC2_BYTES:
        got = f"{metadata.height}x{metadata.width}"
        raise DamagedImageError(
            mismatch(f"image {metadata.image_id}", f"up to {MAX_BLOSC2_BYTES} bytes", got)
        )
    return np.empty((metadata.height, metadata.width), dtype)
