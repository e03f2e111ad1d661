"""Client of a simulated source: software triggers and settings.

Detector devices use `SimulatorClient` in place of a trigger line. Every call is one request with a timeout.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import zmq

from stddaq.client.ownership import Ownership
from stddaq.closing import Closing
from stddaq.config import DetectorConfig
from stddaq.dataplane.connections import open_socket
from stddaq.dataplane.endpoints import software_trigger
from stddaq.dataplane.local_peers import accepts_connections, permission_problem, untrusted_binder
from stddaq.errors import StdDaqError
from stddaq.text import mismatch


class SimulatorError(StdDaqError):
    """A request to a simulated source failed."""


class SimulatorNotReachableError(SimulatorError, TimeoutError):
    """The source did not answer in time."""


class SimulatorPermissionError(SimulatorError, PermissionError):
    """This user may not connect to the source; the message names the owner and the mode of its socket."""


class SimulatorRefusedError(SimulatorError):
    """The source refused the request; the message is its reason."""


@dataclass(frozen=True, slots=True)
class SimulatorState:
    """What a source is doing: rate in images per second (0: as fast as possible), times in seconds."""

    free_running: bool
    rate: float
    burst: int
    exposure_time: float
    next_id: int
    n_published: int
    n_pending: int
    """Triggered images that are not published yet."""
    n_left: int | None
    """Images until the source ends; None: it does not end."""
    n_subscribers: int
    scan_id: int


@dataclass(frozen=True, slots=True)
class TriggeredBurst:
    """The images of one trigger: `n_images` from `first_id` on; `state` of the source before the first."""

    first_id: int
    n_images: int
    state: SimulatorState


class _Requests:
    """The socket of a client, which outlives the client until it is closed."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._context = zmq.Context()
        self._connect()

    def ask(self, request: bytes, timeout: float) -> bytes | None:
        """Return the answer to a request, None when there is none within `timeout` seconds."""
        self._socket.send(request)
        if self._socket.poll(int(timeout * 1000)):
            return self._socket.recv()
        # A REQ socket cannot send again before the answer, which may come late, so it is replaced.
        self._socket.close(linger=0)
        self._connect()
        return None

    def close(self) -> None:
        """Close the socket and its context."""
        self._context.destroy(linger=0)

    def _connect(self) -> None:
        self._socket = open_socket(self._context, zmq.REQ)
        self._socket.connect(self._endpoint)


def _state_in(answer: dict[str, Any]) -> SimulatorState:
    return SimulatorState(**{name: answer[name] for name in SimulatorState.__dataclass_fields__})


def _why_unreachable(endpoint: str) -> str:
    if accepts_connections(endpoint):
        return "the simulator accepts connections but does not answer"
    return "no simulator or replay of this detector is running on this machine"


class SimulatorClient(Closing):
    """Controls the simulator or replay of one detector. Use it in one thread at a time.

    Every method raises `SimulatorNotReachableError` when no answer arrives within the timeout,
    `SimulatorPermissionError` without permission to connect, and `SimulatorRefusedError` when the source
    refuses. A request without an answer may have been carried out.
    """

    def __init__(self, detector: str | DetectorConfig, timeout: float = 5.0) -> None:
        """`detector` is a name or a configuration, `timeout` that of each request in seconds."""
        name = detector if isinstance(detector, str) else detector.detector_name
        self.endpoint = software_trigger(name)
        self._timeout = timeout
        self._requests = _Requests(self.endpoint)
        self._ownership = Ownership(self, self.endpoint, self._requests.close)

    def trigger(
        self, n_images: int | None = None, *, rate: float | None = None, exposure_time: float | None = None
    ) -> TriggeredBurst:
        """Publish one burst, of `n_images` or else of the configured number, with the given settings."""
        answer = self._ask("trigger", n_images=n_images, rate=rate, exposure_time=exposure_time)
        return TriggeredBurst(answer["first_id"], answer["n_images"], _state_in(answer))

    def configure(
        self, rate: float | None = None, burst: int | None = None, exposure_time: float | None = None
    ) -> SimulatorState:
        """Change the given settings: images per second, images per trigger, seconds."""
        return self._state("configure", rate=rate, burst=burst, exposure_time=exposure_time)

    def rearm(self, first_id: int = 0) -> SimulatorState:
        """Restart the image ids at `first_id`."""
        return self._state("rearm", first_id=first_id)

    def start(self) -> SimulatorState:
        """Publish without trigger, at the configured rate."""
        return self._state("start")

    def stop(self) -> SimulatorState:
        """Stop publishing until the next trigger or start. A burst in progress is completed."""
        return self._state("stop")

    def status(self) -> SimulatorState:
        """Return what the source is doing."""
        return self._state("status")

    def close(self) -> None:
        """Release the socket. Closing again does nothing."""
        self._ownership.release()

    def _state(self, command: str, **fields: float | None) -> SimulatorState:
        return _state_in(self._ask(command, **fields))

    def _ask(self, command: str, **fields: float | None) -> dict[str, Any]:
        given = {name: value for name, value in fields.items() if value is not None}
        self._ownership.check()
        if problem := untrusted_binder(self.endpoint) or permission_problem(self.endpoint):
            raise SimulatorPermissionError(problem)
        reply = self._requests.ask(json.dumps({"command": command, **given}).encode(), self._timeout)
        if reply is None:
            why = _why_unreachable(self.endpoint)
            raise SimulatorNotReachableError(
                mismatch(self.endpoint, f"an answer within {self._timeout:g} s", "none", why)
            )
        answer = json.loads(reply)
        if answer["status"] != "ok":
            raise SimulatorRefusedError(answer["reason"])
        return answer
