"""Groups and values of NeXus files."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from stddaq.files.nexus import lost_pixel, nexus_group


def test_group_has_its_class_and_attributes() -> None:
    with h5py.File.in_memory() as file:
        group = nexus_group(file, "entry", "NXentry", default="data")
        assert group.name == "/entry"
        assert dict(group.attrs) == {"NX_class": "NXentry", "default": "data"}


@pytest.mark.parametrize("dtype", ["<u1", "<u2", "<u4", "<i2", "<i4"])
def test_lost_pixel_is_the_largest_integer(dtype: str) -> None:
    value = lost_pixel(np.dtype(dtype))
    assert (value.dtype, value) == (np.dtype(dtype), np.iinfo(dtype).max)


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_lost_pixel_of_floats_is_nan(dtype: str) -> None:
    value = lost_pixel(np.dtype(dtype))
    assert value.dtype == np.dtype(dtype)
    assert np.isnan(value)
