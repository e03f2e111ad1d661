"""What follows the exit of a service. Only decisions; the supervisor carries them out."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

# The exit code of a service that refuses its arguments or its configuration.
REFUSED = 2
RESTART_DELAYS_S = (0.5, 1.0, 2.0, 4.0, 8.0)
# A service that needs more restarts than there are delays within this time is given up.
RESTART_WINDOW_S = 60.0

Action = Literal["restart", "finish", "stay down", "refuse", "give up"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows the exit of a service. `refuse` and `give up` end all services."""

    action: Action
    message: str
    """Follows the name of the service in the output."""
    delay: float = 0.0
    """Seconds before the restart."""


class Restarts:
    """The restarts of one service.

    Attributes:
        n_restarts: how often it was to be started again.
    """

    def __init__(
        self,
        delays: Sequence[float] = RESTART_DELAYS_S,
        *,
        may_finish: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`delays`: seconds before the first, second, ... restart; there are no more."""
        self._delays, self._may_finish, self._clock = tuple(delays), may_finish, clock
        self._moments: list[float] = []
        self.n_restarts = 0

    def decide(self, code: int, was_ready: bool) -> Decision:
        """Return what follows the exit code `code`. `was_ready`: all services have been ready before."""
        if code == REFUSED and not was_ready:
            return Decision("refuse", "refuses to start; ending")
        if code == 0 and self._may_finish:
            return Decision("finish", "has finished")
        delay = self._next_delay()
        if delay is not None:
            self.n_restarts += 1
            return Decision("restart", f"{_how(code)}; starting it again in {delay:g} s", delay)
        if code == REFUSED:
            # The other services run without it, and the next configuration may correct it.
            return Decision("stay down", "refuses to start; it stays down until the configuration changes")
        n_exits = len(self._delays) + 1
        return Decision("give up", f"{_how(code)}, {n_exits} times within {RESTART_WINDOW_S:g} s; ending")

    def _next_delay(self) -> float | None:
        """Return the seconds before the next start; None after too many."""
        now = self._clock()
        self._moments = [moment for moment in self._moments if now - moment < RESTART_WINDOW_S]
        if len(self._moments) >= len(self._delays):
            return None
        self._moments.append(now)
        return self._delays[len(self._moments) - 1]


def _how(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
