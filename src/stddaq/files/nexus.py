"""Names, groups and values that the NeXus files of a run share."""

from __future__ import annotations

import json
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
# hundred of them between the last image of a run and the state file_saved. The calls below take less.
_SCALAR = h5s.create(h5s.SCALAR)
_TEXT, _ASCII = (h5py.string_dtype(encoding) for encoding in ("utf-8", "ascii"))
_STORED_TEXT, _STORED_ASCII = (h5t.py_create(dtype, logical=True) for dtype in (_TEXT, _ASCII))


def nexus_group(parent: h5py.Group, name: str, nx_class: str, **attributes: object) -> h5py.Group:
    """Create a group of a NeXus class."""
    group = h5py.Group(h5g.create(parent.id, name.encode()))
    set_attributes(group, NX_class=nx_class, **attributes)
    return group


def set_attributes(of: h5py.HLObject, **attributes: object) -> None:
    """Write attributes. Texts are ASCII if they can be: durin refuses files whose attributes are UTF-8."""
    for name, value in attributes.items():
        content, stored, space = _stored(value, ascii_if_possible=True)
        h5a.create(of.id, name.encode(), stored, space).write(content)


def put_value(group: h5py.Group, name: str, value: object, units: str = "", **attributes: object) -> None:
    """Write a value with its attributes, unless it is None. Texts are UTF-8; bytes have a fixed length."""
    if value is None:
        return
    content, stored, space = _stored(value)
    dataset = h5d.create(group.id, name.encode(), stored, space)
    dataset.write(h5s.ALL, h5s.ALL, content)
    if units:
        attributes["units"] = units
    if attributes:
        set_attributes(h5py.Dataset(dataset), **attributes)


def _stored(value: object, *, ascii_if_possible: bool = False) -> tuple[np.ndarray, h5t.TypeID, h5s.SpaceID]:
    """Return a value as HDF5 takes it, with its type and its space."""
    texts = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    if texts and all(isinstance(text, str) for text in texts):
        is_ascii = ascii_if_possible and all(text.isascii() for text in texts)
        dtype, stored = (_ASCII, _STORED_ASCII) if is_ascii else (_TEXT, _STORED_TEXT)
        content = np.array(value, dtype)
    else:
        content = np.asarray(value, order="C")
        stored = _type_of(content.dtype)
    return content, stored, h5s.create_simple(content.shape) if content.shape else _SCALAR


@lru_cache
def _type_of(dtype: np.dtype) -> h5t.TypeID:
    return h5t.py_create(dtype, logical=True)


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
