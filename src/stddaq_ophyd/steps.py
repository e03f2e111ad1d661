"""The steps of a device: each runs in the event loop of the device, and a Status reports its end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from ophyd import Device
from ophyd.status import DeviceStatus

from stddaq.text import mismatch
from stddaq_ophyd.core.errors import AcquisitionError
from stddaq_ophyd.core.loop_thread import LoopThread

# Longer than a slow file system takes for a published images file.
CALL_TIMEOUT_S = 120.0

S = TypeVar("S", bound="StepStatus")
T = TypeVar("T")


class StepStatus(DeviceStatus):
    """The Status of one step; its representation includes the reason of a failure."""

    def __init__(self, device: Device) -> None:
        # The device itself ends what a failed step leaves open.
        super().__init__(device, call_stop_on_failure=False)

    def __iter__(self) -> Iterator[Device]:
        # bluesky's lazily_stage_wrapper takes what `stage` returns for a list of devices.
        return iter((self.device,))

    def __str__(self) -> str:
        state = f"failed: {self._exception}" if self._exception else "done" if self.done else "running"
        return f"{type(self).__name__}({state})"

    __repr__ = __str__


class AcquisitionStatus(StepStatus):
    """The Status of a step that waits for images; it reports how many are recorded."""

    def __init__(self, device: Device, n_images: int) -> None:
        self._n_images, self._n = n_images, 0
        self._began = time.monotonic()
        super().__init__(device)

    def watch(self, func: Callable[..., Any]) -> None:
        """Call `func` with the number of images whenever it changes, as bluesky's progress bars expect."""
        self._watchers.append(func)
        self._notify(func)

    def progress(self, n: int) -> None:
        """Report that `n` images are recorded."""
        self._n = n
        for watcher in tuple(self._watchers):
            self._notify(watcher)

    def _notify(self, watcher: Callable[..., Any]) -> None:
        elapsed = time.monotonic() - self._began
        left = self._n_images - self._n
        watcher(
            name=self.device.name,
            current=self._n,
            initial=0,
            target=self._n_images,
            unit="images",
            precision=0,
            fraction=left / self._n_images if self._n_images else 0.0,
            time_elapsed=elapsed,
            time_remaining=elapsed / self._n * left if self._n else None,
        )

    def _settled(self) -> None:
        if self._exception is None:
            self.progress(self._n_images)


class Steps:
    """Runs the steps of one device in order, in an event loop in a thread of its own.

    Attributes:
        error: the first failure since it was set to None.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop = LoopThread(name)
        self._order = asyncio.Lock()
        self._unfinished: set[StepStatus] = set()
        self.error: Exception | None = None

    def submit(
        self, step: Callable[[S], Coroutine[Any, Any, None]], status: S, *, can_be_abandoned: bool = True
    ) -> S:
        """Run `step` after those before, and let `status` report how it ended."""

        async def run() -> None:
            try:
                async with self._order:
                    await step(status)
            except Exception as error:  # noqa: BLE001  (the waiter of the status receives it)
                if status in self._unfinished or not can_be_abandoned:
                    self._unfinished.discard(status)
                    self.error = self.error or error
                    status.set_exception(error)
                else:
                    # A plan that was paused before it waited for the status does so after the replay.
                    status.set_finished()
            else:
                self._unfinished.discard(status)
                status.set_finished()

        if can_be_abandoned:
            self._unfinished.add(status)
        self._loop.submit(run())
        return status

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Return the result of `coroutine`, which runs beside the steps. Raises `AcquisitionError`."""
        called = self._loop.submit(coroutine)
        try:
            return called.result(CALL_TIMEOUT_S)
        except concurrent.futures.TimeoutError:
            if called.done():
                raise
            called.cancel()
            expected = f"the files to be read or written within {CALL_TIMEOUT_S:g} s"
            raise AcquisitionError(mismatch(self._name, expected, "no answer of the file system")) from None

    def abandon(self, status: StepStatus | None = None) -> None:
        """Let an unfinished step, by default all of them, report its end but no failure any more."""
        if status is None:
            self._unfinished.clear()
        else:
            self._unfinished.discard(status)

    def wait_until_done(self, timeout: float) -> bool:
        """Return whether all steps ended within `timeout` seconds."""

        async def done() -> None:
            async with self._order:
                pass

        try:
            self._loop.submit(done()).result(timeout)
        except TimeoutError:
            return False
        return True
