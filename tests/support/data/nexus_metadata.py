"""Metadata of a run for NXmx, and the file that is made with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from support.data.raw_files import Image, RunSpec, dataset, write_run

from stddaq.files.application_metadata import Layer, Metadata, merge
from stddaq.files.names import find_run
from stddaq.files.nxmx import NXmxFile, create_nxmx_file
from stddaq.files.run import read_run

STILLS: dict[str, Any] = {
    "start_time": "2026-11-27T01:00:00+01:00",
    "end_time": "2026-11-27T01:00:10+01:00",
    "source": {"name": "Swiss Light Source", "short_name": "SLS", "type": "Synchrotron X-ray Source"},
    "instrument": {"name": "X06SA", "short_name": "PXI", "time_zone": "+01:00"},
    "detector": {
        "description": "a detector of tests",
        "pixel_size_m": [7.5e-5, 7.5e-5],
        "sensor_material": "Si",
        "sensor_thickness_m": 3.2e-4,
        "saturation_value": 65534,
        "underload_value": 0,
        "distance_m": 0.2,
        "beam_center_pixel": [48.5, 30.25],
        "count_time_s": 0.005,
        "frame_time_s": 0.006,
    },
    "sample": {"name": "lysozyme"},
    "beam": {"energy_kev": 12.4},
}
SCAN: dict[str, Any] = STILLS | {
    "scan_axis": {"name": "omega", "vector": [-1, 0, 0]},
    "scan": {"start_deg": 10, "increment_deg": 0.1},
}


def metadata(content: dict[str, Any], **values: Any) -> Metadata:
    """Return `content` with other values; their keys have `__` in place of a dot, None removes one."""
    changed = {key: dict(part) if isinstance(part, dict) else part for key, part in content.items()}
    for key, value in values.items():
        *groups, name = key.split("__")
        part = changed
        for group in groups:
            part = part.setdefault(group, {})
        part[name] = value
    return merge([Layer("test", changed)])


def make_nxmx(
    directory: Path,
    images: Sequence[Image],
    spec: RunSpec,
    known: Metadata,
    *,
    status: dict[int, int] | None = None,
    incomplete: bool = False,
) -> NXmxFile:
    """Write a run and its NXmx file into `directory`. `status` is that of images by their ids."""
    raw = write_run(directory, images, spec)
    for path in raw if status else ():
        set_status(path, spec.detector, status or {})
    files = find_run(raw[0], spec.prefix)
    return create_nxmx_file(files.nxmx, read_run(files.raw), known, incomplete=incomplete)


def set_status(path: Path, detector: str, status: dict[int, int]) -> None:
    """Change the status of images in a raw file."""
    with h5py.File(path, "r+") as file:
        rows = dataset(file, f"{detector}/metadata")
        content = rows[()]
        for image_id, value in status.items():
            content["status"][content["image_id"] == np.uint64(image_id)] = value
        rows[...] = content
