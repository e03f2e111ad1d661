"""The errors of driver clients."""

from __future__ import annotations

from typing import Any

from stddaq.errors import StdDaqError


class DriverError(StdDaqError):
    """Base of the errors of driver clients."""


class DriverUnreachableError(DriverError, ConnectionError):
    """No driver answers at the url."""


class DriverNotAllowedError(DriverError, PermissionError):
    """The driver refuses the connection: it demands a token, and this client has none or another one."""


class ConnectionLostError(DriverError, ConnectionError):
    """The connection closed, or the driver sent nothing for too long. A run may continue."""


class DriverTimeoutError(DriverError, TimeoutError):
    """A wait reached its timeout. The connection stays usable."""


class CommandRefusedError(DriverError):
    """The driver refused a command; nothing has changed.

    Attributes:
        error_type: an `ErrorType` of `stddaq.wire.driver_messages`, or "unknown" when the driver sends none.
        reason: the driver's message.
    """

    def __init__(self, error_type: str, reason: str) -> None:
        super().__init__(reason)
        self.error_type = error_type
        self.reason = reason


class DriverBusyError(CommandRefusedError):
    """`start` during a run."""


class RunFailedError(DriverError):
    """A run ended in the state `error`.

    Attributes:
        reason: the driver's message.
        result: the account of the run; None when the driver keeps none.
    """

    def __init__(self, reason: str, result: dict[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.result = result


class UnsupportedError(DriverError, NotImplementedError):
    """This driver is not stddaq's and does not support the command."""
