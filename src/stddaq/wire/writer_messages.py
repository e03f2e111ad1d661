"""What a writer refuses of a driver's request before it does anything: values that no file can hold.

A driver of ours sends none of them; but a writer answers everything it is asked, and outlives it.
"""

from __future__ import annotations

from stddaq.errors import StdDaqError
from stddaq.text import shown
from stddaq.wire.std_daq import writer_action_pb2 as pb

_DIVISIONS = frozenset(pb.ImageDivision.values())


class ActionError(StdDaqError):
    """A request with a value that cannot be used."""


def check_action(action: pb.WriterAction) -> None:
    """Raise `ActionError` for a text with a zero byte, or an unknown division of images."""
    if action.HasField("create_file"):
        create = action.create_file
        if create.division not in _DIVISIONS:
            raise ActionError(f"division: found {create.division}, allowed are {sorted(_DIVISIONS)}")
        _check_texts({"path": create.path, "run_id": create.run_id, "source": create.source})
    elif action.HasField("create_master_file"):
        master = action.create_master_file
        raw_files = {f"raw_files[{i}]": name for i, name in enumerate(master.raw_files)}
        metadata_file = {"metadata_file": master.metadata_file}
        _check_texts({"path": master.path, "account": master.account} | metadata_file | raw_files)


def _check_texts(texts: dict[str, str]) -> None:
    for name, text in texts.items():
        # Neither a path nor a string of HDF5 can have one.
        if "\0" in text:
            raise ActionError(f"{name}: found {shown(text)}, allowed is a text without zero bytes")
