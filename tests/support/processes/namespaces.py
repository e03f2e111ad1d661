"""Two network namespaces that are joined by a cable, which can be cut, slowed down, and lose packets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid

import pytest

from stddaq.closing import Closing


class Network(Closing):
    """The namespaces of two servers; a context manager. Needs root.

    Attributes:
        first_address: of the first server, seen from the second one.
        on_first, on_second: what a command starts with to run in a namespace.
    """

    first_address = "10.99.0.1"
    _second_address = "10.99.0.2"

    def __init__(self) -> None:
        """Skip the test where namespaces cannot be made."""
        name = f"sd{uuid.uuid4().hex[:8]}"
        self._names = f"{name}a", f"{name}b"
        if os.geteuid() or not shutil.which("ip") or not shutil.which("tc") or not shutil.which("nsenter"):
            pytest.skip("network namespaces need root, iproute2 and nsenter")
        made = subprocess.run(
            ["ip", "netns", "add", self._names[0]], capture_output=True, text=True, check=False
        )
        if made.returncode:
            pytest.skip(f"no network namespaces here: {made.stderr.strip()}")
        try:
            _run("ip", "netns", "add", self._names[1])
            # The ends of the cable are named after their namespaces, and move there at once.
            _run(
                *("ip", "link", "add", self._names[0], "netns", self._names[0], "type", "veth"),
                *("peer", "name", self._names[1], "netns", self._names[1]),
            )
            for end, address in zip(self._names, (self.first_address, self._second_address), strict=True):
                _run("ip", "-n", end, "address", "add", f"{address}/24", "dev", end)
                _run("ip", "-n", end, "link", "set", "lo", "up")
                _run("ip", "-n", end, "link", "set", end, "up")
        except BaseException:
            self.close()
            raise
        self.on_first, self.on_second = (("nsenter", f"--net=/run/netns/{end}") for end in self._names)

    def disturb(self) -> None:
        """Let the cable be slow: packets wait in a queue so short that bursts lose some, which TCP repeats.

        A token bucket does so in every kernel; netem, which has figures for delay and loss, is not in all.
        """
        for end in self._names:
            _run(
                *("tc", "-n", end, "qdisc", "replace", "dev", end, "root", "tbf"),
                *("rate", "10mbit", "burst", "5kb", "limit", "10kb"),
            )

    @property
    def n_lost_packets(self) -> int:
        """Return how many packets to the second server the slow cable has lost."""
        (queue,) = json.loads(
            _run("tc", "-n", self._names[0], "-s", "-j", "qdisc", "show", "dev", self._names[0])
        )
        return queue["drops"]

    def cut(self) -> None:
        """Lose all packets from now on, until `mend`."""
        _run("ip", "-n", self._names[1], "link", "set", self._names[1], "down")

    def mend(self) -> None:
        """Join what was cut."""
        _run("ip", "-n", self._names[1], "link", "set", self._names[1], "up")

    def close(self) -> None:
        """Remove both namespaces, and the cable with them."""
        for end in self._names:
            subprocess.run(["ip", "netns", "delete", end], capture_output=True, check=False)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout
