"""Where the files of an ophyd-async device go: its path providers, or those of the ophyd device."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import ophyd_async.core as ophyd_async

from stddaq.text import mismatch
from stddaq_ophyd.core.errors import SettingError
from stddaq_ophyd.core.paths import PathInfo, PathProvider, provider_of

AsyncPaths = PathProvider | ophyd_async.PathProvider | str | Path


def next_paths(paths: AsyncPaths, device_name: str) -> PathInfo:
    """Return where the next files go, as the core uses it. Raises `SettingError`."""
    # Both kinds of providers take the name of the device.
    provider: Any = provider_of(paths)  # pyright: ignore[reportArgumentType]
    found = provider(device_name)
    if isinstance(found, PathInfo):
        return found
    if not isinstance(found, ophyd_async.PathInfo):
        raise SettingError(mismatch(f"{device_name}: paths", "a PathInfo", repr(found)))
    directory = Path(found.directory_path)
    read_directory = Path(unquote(urlparse(found.directory_uri).path))
    if found.create_dir_depth:
        read_directory.mkdir(parents=True, exist_ok=True)
    prefix = found.filename if found.filename.endswith("_") else f"{found.filename}_"
    return PathInfo(directory, prefix, read_directory)
