"""Stopping a run, and the limit of the wait for its files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from stddaq.errors import StdDaqError
from stddaq.text import command_line

if TYPE_CHECKING:
    from stddaq.client import DriverClient, DriverStatus

# A writer that is silent for 10 s ends a run, but large files on slow storage take longer.
TIMEOUT_S = 60.0


class RunNotEndedError(StdDaqError, TimeoutError):
    """A run that was stopped has not ended in time."""


def stop_run(driver: DriverClient, timeout: float) -> Iterator[DriverStatus]:
    """Stop the current run of `driver`, and yield its statuses to the last one.

    Raise `RunNotEndedError` when it has not ended after `timeout` seconds.
    """
    from stddaq.client import DriverTimeoutError

    statuses = driver.watch_run(timeout)
    driver.stop()
    try:
        yield from statuses
    except DriverTimeoutError:
        raise RunNotEndedError(
            f"the run has not ended within {timeout:g} s, the driver is {driver.latest.status}; "
            f"{command_line('stddaq', 'status', '--url', driver.url)} shows how it continues"
        ) from None
