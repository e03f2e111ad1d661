"""What the driver sends to a writer: the encoding of `WriterAction`, and the values that a writer refuses."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from stddaq.errors import StdDaqError
from stddaq.text import mismatch, shown
from stddaq.wire.std_daq import writer_action_pb2 as pb

_DIVISIONS = frozenset(pb.ImageDivision.values())


class ActionError(StdDaqError, ValueError):
    """A request has a value that no file can hold."""


def encode_record_image(metadata: bytes, restarts: int) -> bytes:
    """Return `WriterAction(record_image=RecordImage(image_metadata=metadata, restarts=restarts))`, encoded.

    The received metadata is copied, not parsed and built again: this is on the path of every image.
    """
    if not restarts:
        return _before_metadata(len(metadata), 0) + metadata
    end = pb.RecordImage(restarts=restarts).SerializeToString()
    return _before_metadata(len(metadata), len(end)) + metadata + end


def encode_record_images(images: Sequence[bytes]) -> bytes:
    """Return one `WriterAction` that records `images`, each from `encode_record_image`, in their order."""
    if len(images) == 1:
        return images[0]
    body = b"".join(images)
    # Field 102, length-delimited.
    return b"\xb2\x06" + _varint(len(body)) + body


@functools.lru_cache(maxsize=1024)
def _before_metadata(n_bytes: int, n_after: int) -> bytes:
    """Return what comes before metadata of `n_bytes` that `n_after` bytes follow."""
    # Protobuf wire format: tag 0x0a is field 1, length-delimited; 0x12 is field 2, length-delimited.
    begin = b"\x0a" + _varint(n_bytes)
    return b"\x12" + _varint(len(begin) + n_bytes + n_after) + begin


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def images_of(action: pb.WriterAction) -> Sequence[pb.RecordImage]:
    """Return the images that this action records, in order; none if it is another action."""
    if action.HasField("record_image"):
        return (action.record_image,)
    return action.record_images.images


def check_action(action: pb.WriterAction) -> None:
    """Raise `ActionError` for a text with a zero byte, or an unknown division of images.

    The driver sends none of them, but a writer answers whatever reaches its socket, and survives it.
    """
    if action.HasField("create_file"):
        create = action.create_file
        if create.division not in _DIVISIONS:
            raise ActionError(mismatch("division", f"one of {sorted(_DIVISIONS)}", str(create.division)))
        _check_texts({"path": create.path, "run_id": create.run_id, "source": create.source})
    elif action.HasField("create_master_file"):
        master = action.create_master_file
        raw_files = {f"raw_files[{i}]": name for i, name in enumerate(master.raw_files)}
        metadata_file = {"metadata_file": master.metadata_file}
        texts = {"path": master.path, "account": master.account, "nexus": master.nexus, "nxmx": master.nxmx}
        _check_texts(texts | metadata_file | raw_files)


def _check_texts(texts: dict[str, str]) -> None:
    for name, text in texts.items():
        # Neither a path nor an HDF5 string can contain one.
        if "\0" in text:
            raise ActionError(mismatch(name, "text without zero bytes", shown(text)))
