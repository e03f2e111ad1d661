"""How a detector device triggers its camera: by an ophyd signal, a callable, or the simulator.

A camera that runs freely, or is triggered by hardware, needs nothing of this.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

from ophyd import Component, Device, Kind, Signal
from ophyd.status import StatusBase

from stddaq.client.simulator import SimulatorClient, SimulatorError, SimulatorState
from stddaq.text import mismatch
from stddaq_ophyd.core.camera import Camera, Exposure
from stddaq_ophyd.core.errors import AcquisitionError, SettingError
from stddaq_ophyd.detector_signals import is_number

Trigger = Camera | Signal | Callable[[], Any] | None


def as_camera(trigger: Trigger, value: Any = 1) -> Camera | None:
    """Return a camera that sets a signal to `value` for each point, or calls a function without arguments.

    Raises `TypeError` when `trigger` is neither.
    """
    if trigger is None or isinstance(trigger, Camera):
        return trigger
    if isinstance(trigger, Signal):
        return _SignalCamera(trigger, value)
    if callable(trigger):
        return _CallableCamera(trigger)
    raise TypeError(mismatch("trigger", "an ophyd signal, a callable, a camera or None", repr(trigger)))


class _SignalCamera(Camera):
    def __init__(self, signal: Signal, value: Any) -> None:
        self._signal, self._value = signal, value

    def fire(self, n_images: int) -> None:
        # Not `set`, which waits until it reads the value back: a trigger may reset itself at once.
        self._signal.put(self._value)

    def __repr__(self) -> str:
        return f"{self._signal.name} = {self._value!r}"


class _CallableCamera(Camera):
    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function

    def fire(self, n_images: int) -> Exposure:
        returned = self._function()
        # Not waited for: it may be the Status of the whole acquisition.
        return Exposure(failure=_failure_of(returned)) if isinstance(returned, StatusBase) else Exposure()

    def __repr__(self) -> str:
        return getattr(self._function, "__qualname__", repr(self._function))


def _failure_of(status: StatusBase) -> Callable[[], BaseException | None]:
    def failure() -> BaseException | None:
        # ophyd's annotation allows classes, too.
        found: Any = status.exception() if status.done else None
        return found

    return failure


class _SimulatorSetting(Signal):
    """A setting that is sent with the next trigger; it shows what the simulator answered."""

    def put(self, value: Any, *, internal: bool = False, **kwargs: Any) -> None:
        """Set it; `internal`: only show what the simulator has."""
        super().put(value, **kwargs)
        if not internal:
            camera = self.parent
            assert isinstance(camera, SimulatedCamera)
            camera.wanted[self.attr_name] = float(value)

    def check_value(self, value: Any, **_: Any) -> None:
        if not is_number(value) or not 0 <= value < math.inf:
            raise SettingError(mismatch(self.name, "a finite number, 0 or more", repr(value)))


class SimulatedCamera(Device):
    """The simulated detector of `stddaq simulate --trigger` or `stddaq up --source simulate --trigger`.

    As a component: `camera = Component(SimulatedCamera, "<detector_name>")`.
    """

    rate = Component(
        _SimulatorSetting, value=0.0, kind=Kind.config, doc="images per second, 0: as fast as possible"
    )
    exposure_time = Component(_SimulatorSetting, value=0.0, kind=Kind.config, doc="seconds, for the metadata")

    def __init__(self, prefix: str = "", *, name: str, **kwargs: Any) -> None:
        """`prefix` is the name of the detector in its configuration."""
        super().__init__(prefix, name=name, **kwargs)
        self._client: SimulatorClient | None = None
        # What was set here; the simulator decides about the rest.
        self.wanted: dict[str, float] = {}
        # A detector fires it in its own thread, and a plan stops it in another.
        self._guard = threading.RLock()

    def fire(self, n_images: int) -> Exposure:
        """Publish a burst of `n_images`. Raises `AcquisitionError` when the simulator does not answer."""
        try:
            with self._guard:
                # Another session may have changed the settings.
                burst = self._connected().trigger(n_images, **self.wanted)
                self._note(burst.state)
                return Exposure(first_id=burst.first_id)
        except SimulatorError as error:
            raise AcquisitionError(f"{self.name}: {error}") from error

    def stop(self, *, success: bool = False) -> None:
        """Publish nothing until the next trigger. Raises `AcquisitionError` as `fire`."""
        try:
            with self._guard:
                self._connected().stop()
        except SimulatorError as error:
            raise AcquisitionError(f"{self.name}: {error}") from error

    def status(self) -> SimulatorState:
        """Return what the simulator is doing. Raises `SimulatorError`."""
        with self._guard:
            state = self._connected().status()
        self._note(state)
        return state

    def _note(self, state: SimulatorState) -> None:
        self.rate.put(state.rate, internal=True)
        self.exposure_time.put(state.exposure_time, internal=True)

    def _connected(self) -> SimulatorClient:
        if self._client is None:
            self._client = SimulatorClient(self.prefix)
        return self._client

    def destroy(self) -> None:
        """Close the connection."""
        with self._guard:
            if self._client is not None:
                self._client.close()
                self._client = None
        super().destroy()
