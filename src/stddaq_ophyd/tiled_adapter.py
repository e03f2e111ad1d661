"""An adapter with which tiled servers refuse HDF5 files whose images are missing.

HDF5 shows fill values for a raw file that is missing or short, and tiled sends them. A server with this
adapter in its configuration answers with an error that names the file:

    trees:
      - path: /
        tree: catalog
        args:
          adapters_by_mimetype:
            application/x-hdf5: stddaq_ophyd.tiled_adapter:CheckedHDF5Adapter
          ...
"""

from __future__ import annotations

from typing import Any

import h5py
from fastapi import HTTPException
from tiled.adapters.hdf5 import HDF5Adapter
from tiled.utils import path_from_uri

from stddaq.errors import FileLayoutError
from stddaq.files.opening import open_file
from stddaq.files.sources import check_sources


class CheckedHDF5Adapter(HDF5Adapter):
    """tiled's adapter for HDF5 files, which checks the sources of virtual datasets first."""

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
        return super().from_catalog(data_source, node, **parameters)
