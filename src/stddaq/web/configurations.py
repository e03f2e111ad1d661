"""The configurations that the service was started with, and how it calls what may block on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from stddaq.config.store import ConfigStore, ConfigUnreadableError
from stddaq.daemon.isolation import run_in_thread
from stddaq.daemon.log import logger
from stddaq.text import mismatch, shown
from stddaq.web.errors import RequestInvalidError, UnknownDetectorError

T = TypeVar("T")
TIMEOUT_S = 10.0


class Configurations:
    """Configuration files, each of one detector."""

    def __init__(self, stores: Sequence[ConfigStore]) -> None:
        self._stores = tuple(stores)

    def of(self, detector: str | None) -> ConfigStore:
        """Return the configuration with this `detector_name`; None stands for the only one."""
        if detector is None and len(self._stores) == 1:
            return self._stores[0]
        by_name = self.by_name()
        expected = f"one of {', '.join(by_name)}"
        if detector is None:
            raise RequestInvalidError(mismatch("detector", expected, "nothing"))
        if detector not in by_name:
            raise UnknownDetectorError(mismatch("detector", expected, shown(detector)))
        return by_name[detector]

    def by_name(self) -> dict[str, ConfigStore]:
        """Return the stores by the names that are in the files now; invalid files are left out."""
        found: dict[str, ConfigStore] = {}
        for store in self._stores:
            try:
                found[store.read().config.detector_name] = store
            except ConfigUnreadableError as error:
                logger.warning("%s", error)
        return found


async def call(function: Callable[[], T]) -> T:
    """Run a function that may block in a thread. Raise `TimeoutError` after `TIMEOUT_S`."""
    return await run_in_thread(function, TIMEOUT_S, "request")
