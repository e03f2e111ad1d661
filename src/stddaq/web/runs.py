"""Recent runs: the accounts that the driver gives after each run, kept in memory and in a file.

A driver that was killed gives none of the run that it recorded. The last status stands for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from stddaq.client.errors import DriverError
from stddaq.client.status import DriverStatus
from stddaq.daemon.log import logger
from stddaq.text import os_error_text
from stddaq.web.configurations import call
from stddaq.web.live.driver_feed import UNREACHABLE, DriverFeed

KEPT = 1000
MAX_LINES = 10_000
MAX_LINE_BYTES = 256 * 2**10
# Ids of each kind; the master file holds all.
LISTED = 200
FILE = "runs.jsonl"
_LISTS = ("damaged_ids", "overwritten_ids", "failed_ids", "skipped")


class RunSummary(BaseModel):
    """How a run ended."""

    run_id: str
    outcome: str
    source: str | None = None
    reason: str | None = None
    started_at: str | None = None
    duration_s: float | None = None
    n_image: int | None = None
    count: int | None = None
    n_good: int | None = None
    n_damaged: int | None = None
    n_overwritten: int | None = None
    n_failed: int | None = None
    n_skipped: int | None = None
    n_dropped: int | None = None
    n_restarts: int | None = None
    files: dict[str, Any] = {}


class Runs:
    """The accounts of recent runs, the newest first; those before a restart, too, with a `directory`."""

    def __init__(self, directory: Path | None = None) -> None:
        self._accounts: deque[Mapping[str, Any]] = deque(maxlen=KEPT)
        self._path = directory and directory / FILE
        self._n_lines = 0
        if self._path:
            for path in (self._path.with_suffix(".jsonl.1"), self._path):
                self._n_lines = self._load(path)

    def _load(self, path: Path) -> int:
        n_lines = 0
        try:
            with path.open("rb") as file:
                while line := file.readline(MAX_LINE_BYTES):
                    n_lines += 1
                    with contextlib.suppress(ValueError, RecursionError):
                        account = json.loads(line)
                        RunSummary.model_validate(account)
                        self._accounts.appendleft(account)
        except FileNotFoundError:
            pass
        except OSError as error:
            logger.warning("%s: recent runs cannot be read: %s", path, os_error_text(error))
        return n_lines

    def recent(self, limit: int, before: str | None = None) -> list[Mapping[str, Any]]:
        """Return up to `limit` accounts, the newest first; only those older than the run `before`."""
        accounts = list(self._accounts)
        if before is not None:
            position = next((i for i, one in enumerate(accounts) if one["run_id"] == before), len(accounts))
            accounts = accounts[position + 1 :]
        return accounts[:limit]

    def of(self, run_id: str) -> Mapping[str, Any] | None:
        """Return the account of a run."""
        return next((account for account in self._accounts if account["run_id"] == run_id), None)

    def add(self, account: Mapping[str, Any]) -> bool:
        """Keep an account. Return False if it is known already. Raise `ValueError` if it is none."""
        if self.of(RunSummary.model_validate(account).run_id):
            return False
        shortened = {key: value[:LISTED] if key in _LISTS else value for key, value in account.items()}
        is_shortened = any(len(account.get(key) or ()) > LISTED for key in _LISTS)
        self._accounts.appendleft(shortened | ({"lists_truncated": True} if is_shortened else {}))
        return True

    def write(self, run_id: str) -> None:
        """Append an account to the file. It may block."""
        account = self.of(run_id)
        if self._path is None or account is None:
            return
        try:
            if self._n_lines >= MAX_LINES:
                self._path.replace(self._path.with_suffix(".jsonl.1"))
                self._n_lines = 0
            with self._path.open("ab+") as file:
                # A full disk may have taken a part of the last line.
                file.seek(max(0, file.tell() - 1))
                separator = b"" if file.read(1) in (b"", b"\n") else b"\n"
                file.write(separator + json.dumps(account).encode() + b"\n")
            self._n_lines += 1
        except OSError as error:
            logger.warning("%s: a run cannot be kept: %s", self._path, os_error_text(error))

    async def follow(self, driver: DriverFeed) -> None:
        """Take the account of each run of the driver. Does not return."""
        with driver.watching() as watcher:
            was_reachable, in_progress = False, None
            async for status in watcher.statuses():
                is_reachable = bool(status.raw) and status.status != UNREACHABLE
                if status.is_end or (is_reachable and not was_reachable):
                    await self._take(driver)
                was_reachable = is_reachable
                if not is_reachable:
                    continue
                if in_progress and in_progress.run_id != status.run_id and await self._take(driver):
                    await self._keep(without_account(in_progress))
                in_progress = status if status.is_busy and status.run_id else None

    async def _take(self, driver: DriverFeed) -> bool:
        """Keep the account of the driver's last run. Return whether the driver has answered."""
        try:
            async with driver.client() as client:
                account = await client.last_result()
        except (DriverError, OSError) as error:
            logger.warning("the account of a run could not be requested: %s", error)
            return False
        try:
            if account is not None:
                await self._keep(account)
        except ValueError as error:
            logger.warning("the driver has sent an account that is not valid: %s", error)
        return True

    async def _keep(self, account: Mapping[str, Any]) -> None:
        if self.add(account):
            with contextlib.suppress(TimeoutError):
                await call(lambda: self.write(account["run_id"]))


def without_account(status: DriverStatus) -> dict[str, Any]:
    """Return what the last status of a run says about it."""
    counts = ("n_image", "count", "n_damaged", "n_overwritten", "n_failed", "n_skipped")
    return {
        "run_id": status.run_id,
        "outcome": "error",
        "reason": f"the driver ended, or was not reachable, in the state {status.status}; last counts",
        "source": status.raw.get("source"),
        **{name: getattr(status, name) for name in counts},
        # The others may not have been made.
        "files": {"raw": status.files.get("raw", [])},
    }


async def follow_runs(runs: Runs, driver: DriverFeed) -> None:
    """Follow the driver, again after an error. Does not return."""
    while True:
        try:
            await runs.follow(driver)
        except Exception as error:  # noqa: BLE001  (the page works without the list of runs)
            logger.error("recent runs: unexpected %r", error)
        await asyncio.sleep(1)
