"""Notifications to systemd: the service is ready, its main loop works, it ends (the protocol of `sd_notify`).

The main loop itself feeds the watchdog, never another thread, so that systemd restarts a service whose loop
hangs. Without `NOTIFY_SOCKET` in the environment nothing is sent. No call waits for systemd: what its socket
does not take is sent by a later turn of the loop.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Mapping

from stddaq.text import escaped

MAX_STATUS = 200
RETRY_S = 1.0
# Of a loop that waits for something else.
SIGN_OF_LIFE_PERIOD_S = 1.0
VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")


class ServiceManager:
    """The notifications of this process. It sends none before it is `ready`."""

    def __init__(
        self, environment: Mapping[str, str] = os.environ, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`environment` holds the variables that systemd sets."""
        self._environment, self._clock = environment, clock
        self._address = ""
        self._pid = 0
        self._unsent: list[str] = []
        self._is_stopping = False
        # Seconds between two signs of life, and when the loop has something to send.
        self._period = self._due_at = math.inf

    def ready(self, status: str) -> None:
        """Report that the service has started; `systemctl status` shows `status`."""
        self._address = _address(self._environment.get("NOTIFY_SOCKET", ""))
        if not self._address:
            return
        self._pid = os.getpid()
        # Twice as often as systemd recommends, because a loop may take a second for a turn.
        self._period = _watchdog_s(self._environment, self._pid) / 4
        self._send("READY=1", f"STATUS={escaped(status)[:MAX_STATUS]}")

    def alive(self) -> None:
        """Feed the watchdog if that is due. Call it in every turn of the main loop; it takes 0.1 us."""
        if self._clock() >= self._due_at:
            self._send()

    async def show_alive(self) -> None:
        """Feed the watchdog as a task of an asyncio loop."""
        import asyncio

        while True:
            self.alive()
            await asyncio.sleep(SIGN_OF_LIFE_PERIOD_S)

    def stopping(self) -> None:
        """Report, once, that the service ends. Signal handlers may call it."""
        if self._address and not self._is_stopping:
            self._is_stopping = True
            self._send("STOPPING=1")

    def _send(self, *assignments: str) -> None:
        if os.getpid() != self._pid:
            return  # A fork of the service.
        self._unsent += assignments
        sign_of_life = [] if self._period == math.inf else ["WATCHDOG=1"]
        was_sent = self._put("\n".join([*self._unsent, *sign_of_life]))
        if was_sent:
            self._unsent.clear()
        self._due_at = self._clock() + (self._period if was_sent else min(RETRY_S, self._period))

    def _put(self, message: str) -> bool:
        """Return whether systemd's socket has taken `message`."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto(message.encode(), self._address)
        except OSError:
            return False
        return True


def _address(text: str) -> str:
    """Return the address of systemd's socket: a path, or an abstract name; empty if there is none."""
    if text.startswith("@"):
        return f"\0{text[1:]}"
    return text if text.startswith("/") else ""


def _watchdog_s(environment: Mapping[str, str], pid: int) -> float:
    """Return after how long without a sign of life systemd restarts process `pid`; infinite if never."""
    text = environment.get("WATCHDOG_USEC", "")
    is_for_this = environment.get("WATCHDOG_PID", str(pid)) == str(pid)
    return int(text) / 1e6 if is_for_this and text.isascii() and text.isdecimal() and int(text) else math.inf


def without_notifications(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a child process that systemd does not watch."""
    return {name: value for name, value in environment.items() if name not in VARIABLES}


# The notifications of the service that this process is.
service_manager = ServiceManager()
