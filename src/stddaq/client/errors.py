"""What can go wrong between a client and its driver, each as a type of its own."""

from __future__ import annotations

from typing import Any

from stddaq.errors import StdDaqError


class DriverError(StdDaqError):
    """Base of the errors of driver clients."""


class DriverUnreachableError(DriverError):
    """Nobody who speaks the driver's protocol answers at the url."""


class ConnectionLostError(DriverError):
    """The driver vanished, or said nothing for longer than it may. What it was doing may go on."""


class DriverTimeoutError(DriverError):
    """What was waited for did not happen in time. The connection stays usable."""


class CommandRefusedError(DriverError):
    """The driver does not carry out a command; nothing has changed.

    Attributes:
        error_type: an `ErrorType` of `stddaq.wire.driver_messages`, or "unknown" when it does not say.
        reason: the driver's words.
    """

    def __init__(self, error_type: str, reason: str) -> None:
        super().__init__(reason)
        self.error_type = error_type
        self.reason = reason


class DriverBusyError(CommandRefusedError):
    """A start while a run is going on."""


class RunFailedError(DriverError):
    """A run ended in the state `error`.

    Attributes:
        reason: the driver's words.
        result: the account of the run; None when the driver does not keep one.
    """

    def __init__(self, reason: str, result: dict[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.result = result


class UnsupportedError(DriverError):
    """This driver (another implementation) cannot do what was asked for."""
