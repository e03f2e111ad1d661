"""Tests whether a run could be recorded on this server: services, driver, and a file below each root."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from pathlib import Path

from pydantic import BaseModel

from stddaq.client.errors import UnsupportedError
from stddaq.errors import StdDaqError
from stddaq.text import bytes_text
from stddaq.web.configurations import call
from stddaq.web.h5_files import H5Files
from stddaq.web.live.driver_feed import DriverFeed
from stddaq.web.monitoring import Monitoring

# Files are only planned under this name, by the dry run of the driver.
_PREFIX = "stddaq_server_setup_"


class Finding(BaseModel):
    """The result of one test."""

    name: str
    passed: bool
    found: str
    """What was found; why it has failed."""


class ServerSetup:
    """The tests of a server."""

    def __init__(self, files: H5Files, driver: DriverFeed, monitoring: Monitoring) -> None:
        self._files, self._driver, self._monitoring = files, driver, monitoring

    async def test(self, detector_name: str) -> list[Finding]:
        """Run all tests, none of which leaves a file."""
        roots = self._monitoring.roots_of(detector_name)
        tests = [
            _finding("services", self._services(detector_name)),
            _finding("driver", self._state_of_driver()),
            *(_finding(f"HDF5 file in {root}", self._file(root)) for root in self._files.roots),
            *(_finding(f"run in {root}", self._run(root)) for root in roots),
        ]
        if not roots:
            tests.append(_finding("files", _no_roots()))
        return await asyncio.gather(*tests)

    async def _services(self, detector_name: str) -> str:
        snapshot = await call(self._monitoring.snapshot)
        services = [service for service in snapshot.services if service.detector == detector_name]
        failing = [f"{service.name}: {service.state}" for service in services if not service.is_well]
        if failing:
            raise _FailedError(", ".join(failing))
        return f"{len(services)} work"

    async def _state_of_driver(self) -> str:
        async with self._driver.client() as client:
            return (await client.status()).status

    async def _file(self, root: Path) -> str:
        n_bytes = (await self._files.request("write_test_file", base_path=str(root)))["n_bytes"]
        return f"{bytes_text(n_bytes)} written and read"

    async def _run(self, root: Path) -> str:
        async with self._driver.client() as client:
            try:
                free = (await client.check(root, file_prefix=_PREFIX, n_image=1)).raw["free_bytes"]
            except UnsupportedError:
                return "not tested: the driver is not stddaq's"
        return f"can be started, {bytes_text(free)} free"


class _FailedError(StdDaqError):
    """A test has failed."""


async def _no_roots() -> str:
    raise _FailedError("expected allowed_roots or --root, got none")


async def _finding(name: str, test: Awaitable[str]) -> Finding:
    try:
        return Finding(name=name, passed=True, found=await test)
    except (StdDaqError, OSError) as error:
        return Finding(name=name, passed=False, found=str(error))


def failed(findings: Sequence[Finding]) -> list[str]:
    """Return the names of the tests that have failed."""
    return [finding.name for finding in findings if not finding.passed]
