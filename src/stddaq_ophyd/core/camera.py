"""What a device needs of a camera: it takes images on a software trigger, and may be stopped."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from stddaq.client.waiting import patient_timeout
from stddaq.text import mismatch
from stddaq_ophyd.core.errors import AcquisitionError, AcquisitionStoppedError
from stddaq_ophyd.core.worker import Worker

# An aborted plan waits this long for a camera that does not answer.
STOP_TIMEOUT_S = 10.0
# How soon a camera that does not start is noticed to be not wanted.
CANCEL_PERIOD_S = 0.1


def _no_failure() -> BaseException | None:
    return None


@dataclass(frozen=True, slots=True)
class Exposure:
    """Images that a camera takes.

    Attributes:
        first_id: the id of the first one, if the camera knows it; earlier images belong to another trigger.
            A camera knows it always, or never.
        failure: returns why the images cannot come any more, or None. It must not block.
    """

    first_id: int | None = None
    failure: Callable[[], BaseException | None] = _no_failure


@runtime_checkable
class Camera(Protocol):
    """Takes images on a software trigger.

    A camera may have a method `stop()`, which ends what it takes. The device calls it before the first images
    of a staging, when images of a point or flight did not come, and when it is stopped or unstaged.
    Both may be coroutine functions, for the event loop of the device; otherwise they run in a thread, one at
    a time.
    """

    def fire(self, n_images: int) -> Exposure | Awaitable[Exposure | None] | None:
        """Start to take `n_images`; it may return before they are taken."""
        ...


class CameraControl:
    """Fires the camera of one staging, and stops it when its images are not wanted any more."""

    def __init__(self, camera: Camera | None, device: str) -> None:
        """`device` begins every message."""
        self._camera, self._device = camera, device
        self._stop: Callable[[], Any] = getattr(camera, "stop", _do_nothing)
        self._has_fired = self._is_clear = self._is_cancelled = False
        self._thread = Worker(f"camera of {device}")

    async def fire(self, n_images: int) -> Exposure:
        """Start to take `n_images`. Raises `AcquisitionError`."""
        if self._camera is None:
            return Exposure()
        exposure = await self._unless_cancelled(self._fire(self._camera, n_images))
        return exposure if isinstance(exposure, Exposure) else Exposure()

    async def _fire(self, camera: Camera, n_images: int) -> Any:
        await self._clear()
        # When it is cancelled the thread goes on with it.
        before, self._has_fired = self._has_fired, True
        try:
            return await self._try(camera.fire, "triggered", n_images)
        except AcquisitionError:
            self._has_fired = before
            raise

    def cancel(self) -> None:
        """Make `fire` and `clear` raise `AcquisitionStoppedError`. Safe from any thread."""
        self._is_cancelled = True

    def allow_restart(self) -> None:
        """After `cancel`, let the camera be fired again."""
        self._is_cancelled = False

    async def _unless_cancelled(self, starting: Coroutine[Any, Any, Any]) -> Any:
        task = asyncio.ensure_future(starting)
        try:
            while not (await asyncio.wait([task], timeout=CANCEL_PERIOD_S))[0]:
                if self._is_cancelled:
                    raise AcquisitionStoppedError(f"{self._device}: stopped before the camera was triggered")
            return await task
        finally:
            task.cancel()

    async def clear(self) -> None:
        """Stop the camera once, before its first images. Raises `AcquisitionError`.

        It may still take images for a process that was killed.
        """
        await self._unless_cancelled(self._clear())

    async def _clear(self) -> None:
        if not self._is_clear:
            await self._try(self._stop, "triggered")
            self._is_clear = True

    async def stop(self) -> None:
        """Stop the camera if it was fired. Raises `AcquisitionError`."""
        if not self._has_fired:
            return
        try:
            async with patient_timeout(STOP_TIMEOUT_S):
                await self._try(self._stop, "stopped")
        except TimeoutError as error:
            # It may also hang in `fire`.
            expected = f"stopped within {STOP_TIMEOUT_S:g} s"
            raise AcquisitionError(mismatch(f"{self._device}: camera", expected, "no answer")) from error

    async def _try(self, method: Callable[..., Any], what: str, *args: Any) -> Any:
        try:
            return await self._call(method, *args)
        except Exception as error:
            raise AcquisitionError(f"{self._device}: the camera cannot be {what}: {error}") from error

    async def _call(self, method: Callable[..., Any], *args: Any) -> Any:
        if inspect.iscoroutinefunction(method):
            return await method(*args)
        return await self._thread.run(method, *args)


def _do_nothing() -> None:
    pass
