"""What `TiledWriter` registers in tiled, and the export of all files of images from there.

`TiledWriter` registers one file for a StreamResource. A published images file refers to raw files, so these
are registered as well: `RawFilesConsolidator` takes the place of bluesky_tiled_plugins' consolidator for HDF5
as soon as a device is staged in a process with `TiledWriter`.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

import h5py
from bluesky_tiled_plugins.writing.consolidators import (
    CONSOLIDATOR_REGISTRY,
    ConsolidatorBase,
    HDF5Consolidator,
)
from bluesky_tiled_plugins.writing.tiled_writer import MIMETYPE_LOOKUP
from tiled.structures.data_source import Asset
from tiled.utils import path_from_uri

from stddaq.errors import FileLayoutError
from stddaq.files.opening import open_file
from stddaq.files.virtual import source_files
from stddaq.text import mismatch
from stddaq_ophyd.core.documents import MIMETYPE

# No reader knows it.
RAW_MIMETYPE = "application/x-stddaq-raw"


class RawFilesConsolidator(HDF5Consolidator):
    """Registers the raw files of published images beside them. Readers of the images ignore these assets."""

    def get_data_source(self) -> Any:
        """Return the description of the images, with all files that hold them."""
        if "raw_files" in self._sres_parameters:
            self._add_raw_files()
        return super().get_data_source()

    def _add_raw_files(self) -> None:
        known = {asset.data_uri for asset in self.assets}
        directory = self.uri.rpartition("/")[0]
        for name in _sources(path_from_uri(self.uri), self._sres_parameters["dataset"]):
            uri = f"{directory}/{quote(name)}"
            if uri not in known:
                asset = Asset(
                    data_uri=uri, is_directory=False, parameter="raw_files", num=len(self.assets) - 1
                )
                self.assets.append(asset)


def _sources(path: Path, dataset: str) -> list[str]:
    """Return the names of the raw files of a published images file."""
    with open_file(path, allow_unclosed=True, as_growing=True) as opened:
        images = opened.file.get(dataset)
        if not isinstance(images, h5py.Dataset) or not images.is_virtual:
            return []
        return sorted(source_files(images))


class RefusingConsolidator(ConsolidatorBase):
    """Refuses Resources of raw files, whose images tiled cannot put into order."""

    def __init__(self, *_documents: Any) -> None:
        raise FileLayoutError(
            mismatch(
                "TiledWriter",
                "StreamResources, or Resources of spec STDDAQ_PUBLISHED or AD_HDF5",
                "spec STDDAQ_RAW",
                'give the device documents="stream"',
            )
        )


def register() -> None:
    """Let `TiledWriter` know our files."""
    CONSOLIDATOR_REGISTRY[MIMETYPE] = RawFilesConsolidator
    CONSOLIDATOR_REGISTRY[RAW_MIMETYPE] = RefusingConsolidator
    MIMETYPE_LOOKUP["STDDAQ_PUBLISHED"] = MIMETYPE
    MIMETYPE_LOOKUP["STDDAQ_RAW"] = RAW_MIMETYPE


def raw_export(images: Any, directory: str | Path) -> list[Path]:
    """Download all files of `images`, a node of tiled like `client[uid]["primary"]["det_image"]`.

    Unlike the method `raw_export` of the node it puts them beside each other, so that the published images
    file shows its images. Raises `FileLayoutError` when the raw files are not registered, or files exist.
    """
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as downloads:
        # It returns paths with a placeholder for the names that the server sent.
        images.raw_export(downloads)
        files = sorted(path for path in Path(downloads).rglob("*") if path.is_file())
        if len(files) < 2:
            raise FileLayoutError(mismatch(str(target), "raw files beside the images", "none are registered"))
        exported = [target / file.name for file in files]
        for path in exported:
            if path.exists():
                raise FileLayoutError(f"{path}: exists already")
        for file, path in zip(files, exported, strict=True):
            shutil.move(file, path)
    return exported
