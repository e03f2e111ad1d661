"""Receivers connect to a simulated PCO camera and disappear."""

from __future__ import annotations

import json

import numpy as np
import pytest
import zmq
from support.processes.deployment import make_config, wait_until

from stddaq.config import DetectorConfig
from stddaq.sources.bsread.camera_server import CameraServer


@pytest.mark.timeout(30)
def test_an_image_whose_receiver_disappears_waits_for_the_next_receiver() -> None:
    """Under load the server waited in libzmq for a receiver, and no longer reacted to signals."""
    config = DetectorConfig.parse(make_config(detector_type="pco"))
    server = CameraServer(config, "tcp://127.0.0.1:*", zmq.PUSH, "none")
    with zmq.Context() as context:
        receiver = context.socket(zmq.PULL)
        receiver.connect(server.endpoint)
        assert server.can_take(5.0)
        receiver.close(linger=0)
        wait_until(lambda: server.count_subscribers() == 0, what="the receiver to disconnect")
        # The socket learns it a moment after its monitor.
        wait_until(lambda: not server.can_take(0.0), what="the socket without a receiver")
        server.begin(7)[:] = np.arange(32 * 48, dtype=np.uint16).reshape(32, 48)
        server.commit(7)
        assert not server.can_take(0.0)

        with context.socket(zmq.PULL) as receiver:
            receiver.linger = 0
            receiver.connect(server.endpoint)
            assert server.can_take(5.0)
            server.begin(8)[:] = 1
            server.commit(8)
            received = []
            for _ in range(2):
                assert receiver.poll(60_000)
                received.append(receiver.recv_multipart())
    server.close()
    assert [json.loads(parts[0])["pulse_id"] for parts in received] == [7, 8]
    assert np.array_equal(np.frombuffer(received[0][2], np.uint16), np.arange(32 * 48))
