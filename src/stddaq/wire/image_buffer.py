"""The format of an image buffer: the names of its files, and the keys and values in its Redis database.

A file holds the images of 1000 ids, one after the other in the order of arrival, nothing else. Where an image
starts and how long it is stands in Redis only: `camera:<name>:<id>` is a `BufferedMetadata`, which expires,
and the sorted set `camera:<name>:ids` has the ids, which do not.
"""

from __future__ import annotations

import zlib
from pathlib import Path

from stddaq.wire.std_daq import image_buffer_pb2, image_metadata_pb2

BufferedMetadata = image_buffer_pb2.BufferedMetadata
ImageMetadata = image_metadata_pb2.ImageMetadata

IDS_PER_FILE = 1000
_IDS_PER_DIRECTORY = 1_000_000
# The scores of the sorted set are doubles, which distinguish integers up to this one.
MAX_ID = 2**53 - 1
REPLAY_PREFIX = "REPLAY-"


def camera_of(detector_name: str) -> str:
    """Return the name of the camera whose images the detector `REPLAY-<name>` replays."""
    return detector_name.removeprefix(REPLAY_PREFIX)


def image_key(camera: str, image_id: int) -> str:
    """Return the key of the `BufferedMetadata` of an image."""
    return f"camera:{camera}:{image_id}"


def ids_key(camera: str) -> str:
    """Return the key of the sorted set of the stored ids."""
    return f"camera:{camera}:ids"


def replays_key(camera: str) -> str:
    """Return the key of the sorted set of running replays (extension): `<first>-<last>-<any>`, until when."""
    return f"camera:{camera}:replays"


def file_name(image_id: int) -> str:
    """Return the path of the file of an image, relative to the directory of the camera."""
    return f"{image_id // _IDS_PER_DIRECTORY}000000/{image_id // IDS_PER_FILE}000.dat"


def first_id_of(path: Path) -> int | None:
    """Return the first id of the file `path`; None if an image buffer has no file of this name."""
    if path.suffix != ".dat" or not (path.stem.isascii() and path.stem.isdecimal()):
        return None
    first_id = int(path.stem)
    return first_id if file_name(first_id) == f"{path.parent.name}/{path.name}" else None


def checksum(chunk: bytes) -> int:
    """Return the checksum of the bytes of a stored image. It takes 1 ms for each 1 to 3 MB."""
    return zlib.crc32(chunk)
