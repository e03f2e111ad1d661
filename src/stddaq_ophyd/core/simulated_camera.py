"""The simulated detector as a camera, for devices of any framework."""

from __future__ import annotations

import threading
from collections.abc import Callable

from stddaq.client.simulator import SimulatorClient, SimulatorError, SimulatorState
from stddaq_ophyd.core.camera import Camera, Exposure
from stddaq_ophyd.core.errors import AcquisitionError


class SimulatorCamera(Camera):
    """Triggers the source of `stddaq simulate --trigger` or `stddaq up --source simulate --trigger`.

    Attributes:
        wanted: settings that are sent with the next trigger, `rate` in images per second and `exposure_time`
            in seconds; the simulator keeps the others.
    """

    def __init__(
        self, detector: str, name: str = "", on_state: Callable[[SimulatorState], None] = lambda state: None
    ) -> None:
        """`detector` is its name in its configuration; `name` begins every message; `on_state` receives what
        the simulator answers."""
        self._detector, self._name, self._on_state = detector, name or detector, on_state
        self.wanted: dict[str, float] = {}
        self._client: SimulatorClient | None = None
        # A device fires it in one thread, and a plan stops it in another.
        self._guard = threading.RLock()

    def configure(self) -> None:
        """Send the settings. Raises `AcquisitionError` as `fire`."""
        try:
            with self._guard:
                rate, exposure_time = map(self.wanted.get, ("rate", "exposure_time"))
                self._on_state(self._connected().configure(rate=rate, exposure_time=exposure_time))
        except SimulatorError as error:
            raise AcquisitionError(f"{self._name}: {error}") from error

    def fire(self, n_images: int) -> Exposure:
        """Publish a burst of `n_images`. Raises `AcquisitionError` when the simulator does not answer."""
        try:
            with self._guard:
                # Another session may have changed the settings.
                burst = self._connected().trigger(n_images, **self.wanted)
                self._on_state(burst.state)
                return Exposure(first_id=burst.first_id)
        except SimulatorError as error:
            raise AcquisitionError(f"{self._name}: {error}") from error

    def stop(self) -> None:
        """Publish nothing until the next trigger. Raises `AcquisitionError` as `fire`."""
        try:
            with self._guard:
                self._connected().stop()
        except SimulatorError as error:
            raise AcquisitionError(f"{self._name}: {error}") from error

    def status(self) -> SimulatorState:
        """Return what the simulator is doing. Raises `SimulatorError`."""
        with self._guard:
            state = self._connected().status()
        self._on_state(state)
        return state

    def close(self) -> None:
        """Close the connection."""
        with self._guard:
            if self._client is not None:
                self._client.close()
                self._client = None

    def _connected(self) -> SimulatorClient:
        if self._client is None:
            self._client = SimulatorClient(self._detector)
        return self._client

    def __repr__(self) -> str:
        return f"SimulatorCamera({self._detector!r})"
