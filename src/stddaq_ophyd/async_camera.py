"""How an ophyd-async detector triggers its camera, and what it sets before."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from bluesky.protocols import Status
from ophyd_async.core import (
    Command,
    DetectorTriggerLogic,
    SignalDict,
    SignalRW,
    SignalW,
    TriggerInfo,
)

from stddaq.text import mismatch
from stddaq_ophyd.core.camera import Camera, Exposure
from stddaq_ophyd.core.errors import SettingError

AsyncTrigger = Camera | Command[[], Any] | SignalW[Any] | Callable[[], Any] | None


def as_async_camera(trigger: AsyncTrigger, value: Any = 1) -> Camera | None:
    """Return a camera that executes a command, sets a signal to `value`, or calls a function.

    Raises `TypeError` when `trigger` is none of these.
    """
    if trigger is None or isinstance(trigger, Camera):
        return trigger
    if isinstance(trigger, Command):
        return _StartingCamera(trigger.execute, trigger.name)
    if isinstance(trigger, SignalW):
        return _StartingCamera(lambda: trigger.set(value), f"{trigger.name} = {value!r}")
    if inspect.iscoroutinefunction(trigger):
        return _AwaitingCamera(trigger)
    if callable(trigger):
        return _CallingCamera(trigger)
    raise TypeError(mismatch("trigger", "a command, a signal, a function, a camera or None", repr(trigger)))


class _StartingCamera(Camera):
    """Starts something that may last until the images are taken."""

    def __init__(self, start: Callable[[], Any], name: str) -> None:
        self._start, self._name = start, name

    async def fire(self, n_images: int) -> Exposure:
        return _exposure_of(self._start())

    def __repr__(self) -> str:
        return self._name


class _AwaitingCamera(Camera):
    def __init__(self, function: Callable[[], Awaitable[Any]]) -> None:
        self._function = function

    async def fire(self, n_images: int) -> Exposure:
        return _exposure_of(await self._function())

    def __repr__(self) -> str:
        return getattr(self._function, "__qualname__", repr(self._function))


class _CallingCamera(Camera):
    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function

    def fire(self, n_images: int) -> Exposure:
        return _exposure_of(self._function())

    def __repr__(self) -> str:
        return getattr(self._function, "__qualname__", repr(self._function))


def _exposure_of(returned: Any) -> Exposure:
    """Return an exposure that fails as `returned` does, if that is a status, which is not waited for."""
    if isinstance(returned, Exposure):
        return returned
    if isinstance(returned, Status):
        return Exposure(failure=lambda: returned.exception() if returned.done else None)
    return Exposure()


class ExposureLogic(DetectorTriggerLogic):
    """Sets the live time and the number of images of a camera that takes images on a software trigger."""

    def __init__(
        self, exposure_time: SignalRW[float] | None, n_frames: SignalRW[int] | None, deadtime: float | None
    ) -> None:
        """Without a signal the camera keeps its setting."""
        self._exposure_time, self._n_frames, self._deadtime = exposure_time, n_frames, deadtime

    def config_sigs(self) -> set[Any]:
        return {signal for signal in (self._exposure_time, self._n_frames) if signal is not None}

    def get_deadtime(self, config_values: SignalDict) -> float:
        return self._deadtime or 0.0

    async def prepare_internal(self, num: int, livetime: float, deadtime: float) -> None:
        if livetime:
            if self._exposure_time is None:
                raise SettingError(
                    mismatch("livetime", "0, because no exposure_time is known", f"{livetime:g}")
                )
            await self._exposure_time.set(livetime)
        if self._n_frames is not None:
            await self._n_frames.set(num)

    async def default_trigger_info(self) -> TriggerInfo:
        """Return what the signals say, for stock plans with OPHYD_ASYNC_PRESERVE_DETECTOR_STATE=YES."""
        livetime = await self._exposure_time.get_value() if self._exposure_time else 0.0
        n_frames = await self._n_frames.get_value() if self._n_frames else 1
        return TriggerInfo(livetime=livetime, collections_per_event=max(1, n_frames))
