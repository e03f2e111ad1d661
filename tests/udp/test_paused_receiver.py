"""A receiver that the system pauses at any time closes no frame that is still arriving."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing

import numpy as np
import pytest
from support.peers.udp_detectors import eiger_frame, free_udp_ports
from support.processes.deployment import Deployment, wait_until

from stddaq.config import DetectorConfig
from stddaq.daemon.main import StopRequest
from stddaq.udp.batch_socket import BatchSocket
from stddaq.udp.frame_ring import FrameSubscriber
from stddaq.udp.packets import packets_of
from stddaq.udp.receiver import ModuleReceiver

# So long may this process stand still after the pause.
IDLE_S, PAUSE_S = 3.0, 3.2


@pytest.mark.slow
def test_a_pause_while_packets_are_received_does_not_make_their_frame_idle(
    make_deployment: Callable[..., Deployment], monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = make_deployment(
        detector_type="eiger", n_modules=4, bit_depth=8, start_udp_port=free_udp_ports(4)
    )
    config, receive = DetectorConfig.load(deployment.config_path), BatchSocket.receive
    paused = threading.Event()

    def receive_and_pause(self: BatchSocket, place: np.ndarray | None = None) -> int:
        n = receive(self, place)
        if n:
            time.sleep(PAUSE_S)
            paused.set()
        return n

    monkeypatch.setattr(BatchSocket, "receive", receive_and_pause)
    address, packets = ("127.0.0.1", config.start_udp_port), packets_of(config, 0)
    first, *rest = eiger_frame(1, np.ones((256, 512), np.uint8))
    messages: list[np.ndarray] = []
    stop = StopRequest()
    with (
        closing(ModuleReceiver(config, 0, packets, address, program="test", idle_time=IDLE_S)) as receiver,
        FrameSubscriber(config, 0) as subscriber,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        serving = threading.Thread(target=receiver.serve, args=(stop,))
        serving.start()
        try:
            wait_until(lambda: receiver._n_subscribers, what="the subscription")
            sender.sendto(first, address)
            assert paused.wait(60.0)
            time.sleep(0.05)
            for packet in rest:
                sender.sendto(packet, address)
            wait_until(lambda: messages.extend(subscriber.receive(1)) or messages)
        finally:
            stop.request()
            serving.join()
    stop.close()
    assert int(messages[0]["n_missing_packets"]) == 0
