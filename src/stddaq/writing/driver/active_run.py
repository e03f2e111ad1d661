"""The current run: its command, its files and its progress."""

from __future__ import annotations

import asyncio
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stddaq.errors import StdDaqError
from stddaq.wire.driver_messages import StartCommand
from stddaq.writing.driver.account import RunAccount
from stddaq.writing.driver.distributor import META
from stddaq.writing.driver.start_check import PlannedFiles


class RunError(StdDaqError, RuntimeError):
    """The run has failed."""


class ActiveRun:
    """The state of one run. Belongs to the asyncio loop, except for `account`.

    Attributes:
        account: the distributor's thread counts in it.
        failure: why the data path ended the recording; empty when it did not fail.
        created, closed, discarded: names of the writers whose file was confirmed as such.
        has_master: the master file was created.
        old_files: files of an old run to remove before others of it are replaced.
        metadata: what clients want to keep with the run.
        added_nexus: metadata for application files that were added since the start.
        missing_metadata: what its NXmx file lacks; None if none is wanted.
    """

    def __init__(self, start: StartCommand, files: PlannedFiles) -> None:
        self.id = os.urandom(16).hex()
        self.start, self.files = start, files
        self.account = RunAccount()
        self.started_at = datetime.now(UTC)
        self._started = time.monotonic()
        self.stop_requested = asyncio.Event()
        self.first_image = asyncio.Event()
        self.recorded = asyncio.Event()
        self.failure = ""
        self.created: set[str] = set()
        self.closed: set[str] = set()
        self.is_recorded = self.is_saving = self.is_finishing = self.is_late = False
        self.late = ""
        self.discarded: set[str] = set()
        self.has_master = False
        self.old_files: list[Path] = []
        self.metadata: dict[str, Any] = dict(start.metadata)
        self.added_nexus: list[dict[str, Any]] = []
        self.missing_metadata: list[str] | None = None

    def end_recording(self, failure: str) -> None:
        """Note that no further image is recorded. The first failure counts."""
        self.failure = self.failure or failure
        self.recorded.set()

    def duration(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self._started

    def unclosed_files(self) -> list[Path]:
        """Return the files whose writers created them and did not confirm that they closed them."""
        return [path for name, path in self._by_writer().items() if name in self.created - self.closed]

    def made_files(self) -> dict[str, object]:
        """Return the files of the run that were created and not discarded, for messages."""
        kept = self.created - self.discarded
        paths = {name: str(path) for name, path in self._by_writer().items() if name in kept}
        return {
            "raw": [path for name, path in paths.items() if name != META],
            "metadata": paths.get(META),
            "master": str(self.files.master) if self.has_master else None,
        }

    def _by_writer(self) -> dict[str, Path]:
        by_writer = {str(i): path for i, path in enumerate(self.files.raw)}
        if self.files.metadata:
            by_writer[META] = self.files.metadata
        return by_writer
