"""Names, groups and values that the NeXus files of a run share: master file and published images file."""

from __future__ import annotations

import h5py
import numpy as np

ENTRY = "/entry"
DATA = "/entry/data/data"
IMAGE_ID = "/entry/data/image_id"
IMAGE_METADATA = "/entry/data/metadata"
DETECTOR = "/entry/instrument/detector"
ACCOUNT = "/entry/stddaq/account"
RAW_FILES = "/entry/stddaq/raw_files"
# Of a published images file, whose images are a part of the run.
PUBLISHED_IDS = "/entry/stddaq/image_id"
EPOCHS = "/entry/stddaq/epochs"


def nexus_group(parent: h5py.Group, name: str, nx_class: str, **attributes: object) -> h5py.Group:
    """Create a group of a NeXus class."""
    group = parent.create_group(name)
    group.attrs.update({"NX_class": nx_class, **attributes})
    return group


def lost_pixel(dtype: np.dtype) -> np.ndarray:
    """Return the value that viewers show as "not measured": NaN, or the largest value, as Eigers have it."""
    return np.array(np.nan if dtype.kind == "f" else np.iinfo(dtype).max, dtype)
