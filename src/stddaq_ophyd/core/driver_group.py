"""The driver of a device, or the drivers of a detector of several parts, which record one run.

Documents reference the images of the first part. An image counts when every part has it; the master file
over the parts is made at the end of the run.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from stddaq.client import AsyncDriverClient, AsyncDriverGroup, DriverStatus
from stddaq.client.errors import DriverError
from stddaq.errors import FileLayoutError
from stddaq.files.joined_runs import finish_joined_run
from stddaq.files.names import find_run, master_file_name
from stddaq.joined_account import part_prefix
from stddaq_ophyd.core.paths import PathInfo
from stddaq_ophyd.core.run_owner import RunOwner, is_orphan

_log = logging.getLogger(__name__)


class Drivers:
    """One driver, or several.

    Attributes:
        urls: of the drivers, which may contain a token.
        are_several: whether there are several.
    """

    def __init__(self, url: str, others: Sequence[str] = (), token: str | None = None) -> None:
        """`token` is that of the driver at `url`."""
        self.urls, self._token = (url, *others), token
        self.are_several = bool(others)

    def client(self) -> AsyncDriverClient:
        """Return a new client of all."""
        if self.are_several:
            return AsyncDriverGroup(self.urls, tokens=(self._token, *(None for _ in self.urls[1:])))
        return AsyncDriverClient(self.urls[0], token=self._token)

    def _clients(self) -> Iterator[AsyncDriverClient]:
        """Return a new client of each."""
        for i, url in enumerate(self.urls):
            yield AsyncDriverClient(url, token=None if i else self._token)

    def owners(self, status: DriverStatus) -> list[RunOwner]:
        """Return the owners of the runs that have started with `status`, one for each driver."""
        return [RunOwner(client.url, run_id) for client, run_id in self._runs(status) if run_id is not None]

    def _runs(self, status: DriverStatus) -> Iterator[tuple[AsyncDriverClient, str | None]]:
        parts = status.raw.get("parts") or [status.raw]
        for client, part in zip(self._clients(), parts, strict=False):
            yield client, part.get("run_id")

    async def end_orphans(self, device: str, timeout: float) -> bool:
        """End runs of devices of this user that do not exist any more. Return whether there were any.

        Raises `DriverError`.
        """
        found = False
        for new in self._clients():
            async with new as client:
                run_id = client.latest.run_id
                if client.latest.is_busy and run_id is not None and is_orphan(client.url, run_id):
                    found = True
                    _log.warning("%s: ends the run %s, whose device does not exist any more", device, run_id)
                    await client.stop()
                    await client.wait(("idle",), timeout)
        return found

    async def end_runs(self, status: DriverStatus, timeout: float) -> None:
        """End the runs that `status` tells of, by new connections. Does not raise."""
        for new, run_id in self._runs(status):
            with suppress(DriverError):
                async with new as client:
                    if client.latest.is_busy and client.latest.run_id == run_id:
                        await client.stop()
                        await client.wait(("idle",), timeout)

    def prefixes(self, prefix: str) -> list[str]:
        """Return the prefixes of the raw files of a run of `prefix`, for each driver."""
        if not self.are_several:
            return [prefix]
        return [part_prefix(prefix, number) for number in range(1, len(self.urls) + 1)]

    def remove_files(self, paths: PathInfo) -> None:
        """Remove the files of a run, and its directory if nothing else is in it. Raises `OSError`."""
        directory = paths.read_directory
        for prefix in self.prefixes(paths.prefix):
            with suppress(FileLayoutError):
                run = find_run(directory, prefix)
                for path in (*run.raw, run.master, run.metadata):
                    if path is not None:
                        path.unlink(missing_ok=True)
        if self.are_several:
            (directory / master_file_name(paths.prefix)).unlink(missing_ok=True)
        # The directory of a scan, if nothing else is in it.
        directory.rmdir()


def first_of(status: DriverStatus) -> tuple[str | None, list[str]]:
    """Return the run id and the raw files of the driver whose images documents reference."""
    parts = status.raw.get("parts")
    if parts:
        return parts[0]["run_id"], status.files["raw_of_parts"][0]
    return status.run_id, list(status.files.get("raw", ()))


def why_lost(status: DriverStatus) -> str:
    """Return which part of a run in progress is lost, and why; empty if none is."""
    return (status.reason or "") if status.is_busy and status.raw.get("parts") else ""


def join(account: Mapping[str, Any], paths: PathInfo) -> str:
    """Make the master file over the parts of a run. Return why that failed; empty if not."""
    result = finish_joined_run(account, paths.read_directory, paths.prefix)
    if result["files"]["master"] is not None:
        return ""
    _log.error("run of several drivers without a master file: %s", json.dumps(result))
    return str(result["reason"])
