"""An adapter with which tiled servers read images from the raw files, and refuse those that are missing.

HDF5 shows fill values for a raw file that is missing or short, and tiled sends them. HDF5 also copies blocks
of images of several writers element by element. A server with this adapter in its configuration answers with
an error that names the file, and reads the raw files themselves:

    trees:
      - path: /
        tree: catalog
        args:
          adapters_by_mimetype:
            application/x-hdf5: stddaq_ophyd.tiled_adapter:CheckedHDF5Adapter
          ...
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array
import h5py
from fastapi import HTTPException
from tiled.adapters.hdf5 import HDF5Adapter, HDF5ArrayAdapter
from tiled.structures.core import StructureFamily
from tiled.utils import path_from_uri

from stddaq.errors import FileLayoutError
from stddaq.files.opening import open_file
from stddaq.files.sources import check_sources
from stddaq.files.virtual_images import VirtualImages
from stddaq_ophyd.handlers import lazy_array


class ImagesAdapter(HDF5ArrayAdapter):
    """tiled's adapter for a dataset, which reads images of a virtual one from the raw files."""

    @staticmethod
    def lazy_load_hdf5_array(
        *file_paths: str | Path, dataset: str | None = None, **parameters: Any
    ) -> dask.array.Array:
        """Return the lazy array of a dataset of one file."""
        path = Path(file_paths[0])
        if len(file_paths) == 1 and dataset and _has_virtual_images(path, dataset):
            images = VirtualImages(path, dataset)
            (n_images, *shape), dtype = images.check(0, 0)
            return lazy_array(images.read, n_images, tuple(shape), dtype)
        return HDF5ArrayAdapter.lazy_load_hdf5_array(*file_paths, dataset=dataset, **parameters)


class CheckedHDF5Adapter(HDF5Adapter):
    """tiled's adapter for HDF5 files, which checks the sources of virtual datasets and reads images there."""

    @classmethod
    def from_catalog(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, data_source: Any, node: Any, /, **parameters: Any
    ) -> Any:
        """Return tiled's adapter, or answer with status 424 (Failed Dependency) and the missing file."""
        dataset = parameters.get("dataset") or ""
        name = dataset if isinstance(dataset, str) else "/".join(dataset)
        for asset in data_source.assets:
            path = path_from_uri(asset.data_uri)
            try:
                with open_file(path, allow_unclosed=True, as_growing=True) as opened:
                    found = opened.file.get(name) if name else None
                    if isinstance(found, h5py.Dataset):
                        check_sources(path, found)
            except FileLayoutError as error:
                # tiled's client hides the message of a 410 (Gone), and retries for a minute after a 5xx.
                raise HTTPException(424, str(error)) from error
        if data_source.structure_family == StructureFamily.array:
            return ImagesAdapter.from_catalog(data_source, node, **{**parameters, "dataset": name})
        return super().from_catalog(data_source, node, **parameters)


def _has_virtual_images(path: Path, dataset: str) -> bool:
    with open_file(path, allow_unclosed=True, as_growing=True) as opened:
        images = opened.file.get(dataset)
        return isinstance(images, h5py.Dataset) and images.is_virtual and images.ndim == 3
