"""Names, groups and values that the NeXus files of a run share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5s, h5t  # pyright: ignore[reportAttributeAccessIssue]

ENTRY = "/entry"
DATA = "/entry/data/data"
IMAGE_ID = "/entry/data/image_id"
IMAGE_METADATA = "/entry/data/metadata"
DETECTOR = "/entry/instrument/detector"
ACCOUNT = "/entry/stddaq/account"
# What clients kept with the run, JSON.
METADATA = "/entry/stddaq/metadata"
RAW_FILES = "/entry/stddaq/raw_files"
# Of a master file over the parts of several drivers.
JOINED_IDS = "/entry/image_id"
# Of a published images file, whose images are a part of the run.
PUBLISHED_IDS = "/entry/stddaq/image_id"
EPOCHS = "/entry/stddaq/epochs"
# Of an NXtomo file, whose entry must be the first in the order of names.
TOMOGRAM = "/entry0000"
TOMOGRAM_IMAGES = f"{TOMOGRAM}/instrument/detector/data"
# Of an application file: JSON, each value with where it came from.
APPLICATION_METADATA = "/entry/stddaq/nexus"


# h5py's own interface takes 0.25 ms for a value and 0.13 ms for an attribute, and an application file has a
# hundred of them between the last image of a run and the state file_saved. The calls below take a fifth,
# also because they say the type in memory, which h5py would compose for each value.
_SCALAR = h5s.create(h5s.SCALAR)
_TEXT, _ASCII = (h5py.string_dtype(encoding) for encoding in ("utf-8", "ascii"))


def _types(dtype: np.dtype) -> tuple[h5t.TypeID, h5t.TypeID]:
    """Return a type in the file and in memory, which differ for texts."""
    return h5t.py_create(dtype, logical=True), h5t.py_create(dtype)


# Not cached by the type of numpy: the two are equal there.
_TEXT_TYPES, _ASCII_TYPES = _types(_TEXT), _types(_ASCII)


def nexus_group(parent: h5py.Group, name: str, nx_class: str, **attributes: object) -> h5py.Group:
    """Create a group of a NeXus class."""
    group = h5g.create(parent.id, name.encode())
    _put_attributes(group, {"NX_class": nx_class, **attributes})
    return h5py.Group(group)


def set_attributes(of: h5py.HLObject, **attributes: object) -> None:
    """Write attributes. Texts are ASCII if they can be: durin refuses files whose attributes are UTF-8."""
    _put_attributes(of.id, attributes)


def _put_attributes(of: h5g.GroupID | h5d.DatasetID, attributes: Mapping[str, object]) -> None:
    for name, value in attributes.items():
        content, space, stored, in_memory = _stored(value, ascii_if_possible=True)
        h5a.create(of, name.encode(), stored, space).write(content, in_memory)


def put_value(group: h5py.Group, name: str, value: object, units: str = "", **attributes: object) -> None:
    """Write a value with its attributes, unless it is None. Texts are UTF-8; bytes have a fixed length."""
    if value is None:
        return
    content, space, stored, in_memory = _stored(value)
    dataset = h5d.create(group.id, name.encode(), stored, space)
    dataset.write(h5s.ALL, h5s.ALL, content, in_memory)
    if units:
        attributes["units"] = units
    _put_attributes(dataset, attributes)


def _stored(
    value: object, *, ascii_if_possible: bool = False
) -> tuple[np.ndarray, h5s.SpaceID, h5t.TypeID, h5t.TypeID]:
    """Return a value as h5py takes it, its space, its type in the file and in memory."""
    texts = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    if texts and all(isinstance(text, str) for text in texts):
        is_ascii = ascii_if_possible and all(text.isascii() for text in texts)
        dtype, types = (_ASCII, _ASCII_TYPES) if is_ascii else (_TEXT, _TEXT_TYPES)
        content = np.array(value, dtype)
    else:
        content = np.asarray(value, order="C")
        types = _types_of(content.dtype)
    return content, h5s.create_simple(content.shape) if content.shape else _SCALAR, *types


@lru_cache
def _types_of(dtype: np.dtype) -> tuple[h5t.TypeID, h5t.TypeID]:
    return _types(dtype)


def hard_link(group: h5py.Group, name: str, target: str) -> None:
    """Show the member at the absolute path `target` of the same file as `name` in `group`, too."""
    group.id.links.create_hard(name.encode(), group.id, target.encode())


def put_name(group: h5py.Group, name: str | None, short_name: str | None) -> None:
    """Write a name with its short form, as far as they are known."""
    put_value(group, "name", name, **({} if short_name is None else {"short_name": short_name}))


def utc_text(time: datetime) -> str:
    """Return a time in UTC, as readers of NeXus expect it."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def lost_pixel(dtype: np.dtype) -> np.ndarray:
    """Return the value that viewers show as "not measured": NaN, or the largest value, as Eigers have it."""
    return np.array(np.nan if dtype.kind == "f" else np.iinfo(dtype).max, dtype)


def account_of(file: h5py.File) -> dict[str, Any] | None:
    """Return the account of the run in a master file, if there is one. Raise `ValueError` for other text."""
    return object_of(file, ACCOUNT)


def object_of(file: h5py.File, name: str) -> dict[str, Any] | None:
    """Return a JSON object that is stored as text, if there is one. Raise `ValueError` for other text."""
    stored = file.get(name)
    if not isinstance(stored, h5py.Dataset) or stored.shape != ():
        return None
    content = json.loads(str(stored.asstr()[()]))
    return content if isinstance(content, dict) else None
