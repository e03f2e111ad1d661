"""How a detector device triggers its camera: by an ophyd signal, a callable, or the simulator.

A camera that runs freely, or is triggered by hardware, needs nothing of this.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

from ophyd import Component, Device, Kind, Signal
from ophyd.status import StatusBase

from stddaq.client.simulator import SimulatorState
from stddaq.text import mismatch
from stddaq_ophyd.core.camera import Camera, Exposure
from stddaq_ophyd.core.errors import SettingError
from stddaq_ophyd.core.simulated_camera import SimulatorCamera
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
        # The simulator decides about what was not set here.
        self.wanted: dict[str, float] = {}
        self._simulator = SimulatorCamera(prefix, name, _noting(self))
        self._simulator.wanted = self.wanted

    def stage(self) -> list[object]:
        """Apply the settings, and show those of the simulator. Raises `AcquisitionError` as `fire`."""
        staged = super().stage()
        try:
            self._simulator.configure()
        except BaseException:
            super().unstage()
            raise
        return staged

    def fire(self, n_images: int) -> Exposure:
        """Publish a burst of `n_images`. Raises `AcquisitionError` when the simulator does not answer."""
        return self._simulator.fire(n_images)

    def stop(self, *, success: bool = False) -> None:
        """Publish nothing until the next trigger. Raises `AcquisitionError` as `fire`."""
        self._simulator.stop()

    def status(self) -> SimulatorState:
        """Return what the simulator is doing. Raises `SimulatorError`."""
        return self._simulator.status()

    def destroy(self) -> None:
        """Close the connection."""
        self._simulator.close()
        super().destroy()


def _noting(camera: SimulatedCamera) -> Callable[[SimulatorState], None]:
    """Return a function that shows a state, without keeping the camera alive."""
    found = weakref.ref(camera)

    def note(state: SimulatorState) -> None:
        camera = found()
        if camera is None:
            return
        for signal, value in ((camera.rate, state.rate), (camera.exposure_time, state.exposure_time)):
            if signal.get() != value:
                signal.put(value, internal=True)

    return note
