"""Live streams of runs (`-t stins`) beside a rig, and their consumer."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import zmq
from support.processes.deployment import free_port
from support.processes.live_streams import FORWARD, LiveStreamService
from support.processes.recording import Rig

from stddaq.closing import Closing


def start_run_stream(rig: Rig, *args: object) -> LiveStreamService:
    """Start a stream of the rig's runs. Return it when it receives every published image."""
    address = f"tcp://127.0.0.1:{free_port()}"
    rig.deployment.write_config(live_stream_configs={address: FORWARD | {"socket": "push"}})
    n_before = rig.source.count_subscribers()
    arguments = (address, "-t", "stins", "--url", rig.url, *args)
    stream = LiveStreamService(rig.deployment.start("std_live_stream", *arguments), address)
    assert rig.source.wait_for_subscribers(n_before + 1, 60)
    return stream


class Consumer(Closing):
    """A PULL socket, connected to a stream of runs; a context manager."""

    def __init__(self, stream: LiveStreamService, queue: int = 1000, wait: bool = True) -> None:
        """Connect, and `wait` until the stream has accepted it."""
        n_lines = len(stream.process.stdout)
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.PULL)
        self.socket.rcvhwm = queue
        self.socket.connect(stream.address)
        if wait:
            stream.process.wait_for_line(" connected", start=n_lines)

    def receive(self, timeout: float = 60.0) -> tuple[dict[str, Any], np.ndarray]:
        """Return the header of the next message, and its pixels (height, width); (0,) if it is no image."""
        assert self.socket.poll(int(timeout * 1000)), f"no message within {timeout} s"
        header, *pixels = self.socket.recv_multipart()
        values = json.loads(header)
        if not pixels:
            return values, np.zeros(0)
        return values, np.frombuffer(pixels[0], values["type"]).reshape(values["shape"])

    def receive_series(self) -> list[tuple[dict[str, Any], np.ndarray]]:
        """Return the messages until the end of a series."""
        messages = [self.receive()]
        while messages[-1][0]["htype"] != "series_end":
            messages.append(self.receive())
        return messages

    def close(self) -> None:
        self._context.destroy(linger=0)
