"""For tiled servers: HDF5 files as tiled reads them, but not those whose images have gone.

Of a raw file that is missing or short HDF5 shows fill values, and tiled sends them. A server that has this
adapter in its configuration refuses instead, with the name of the file:

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
from stddaq_ophyd.handlers import check_sources


class CheckedHDF5Adapter(HDF5Adapter):
    """tiled's adapter of HDF5 files, behind a look at the sources of virtual datasets."""

    @classmethod
    def from_catalog(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, data_source: Any, node: Any, /, **parameters: Any
    ) -> Any:
        """As tiled's. A client is told what is missing, with the status 424 (Failed Dependency)."""
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
                # Of 410 (Gone) tiled's client hides the words, and after 5xx it tries again for a minute.
                raise HTTPException(424, str(error)) from error
        return super().from_catalog(data_source, node, **parameters)
