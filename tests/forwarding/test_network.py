"""The TCP sockets between the servers: what waits for a slow receiver is limited in bytes, on both sides."""

from __future__ import annotations

import pytest
import zmq
from support.processes.deployment import free_port, wait_until

from stddaq.errors import EndpointError
from stddaq.forwarding import network
from stddaq.forwarding.network import NetworkPublisher, NetworkSubscriber

MESSAGE = bytes(2**20)
N_PUBLISHED = 150
# What the kernel and libzmq hold beside the queues.
N_IN_BUFFERS = 24


@pytest.mark.parametrize(("n_at_sender", "n_at_receiver"), [(30, 2), (2, 30)])
def test_what_waits_for_a_slow_receiver_is_limited(
    monkeypatch: pytest.MonkeyPatch, n_at_sender: int, n_at_receiver: int
) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    monkeypatch.setattr(network, "MAX_QUEUED_BYTES", n_at_sender * len(MESSAGE))
    with NetworkPublisher(address, len(MESSAGE)) as publisher:
        monkeypatch.setattr(network, "MAX_QUEUED_BYTES", n_at_receiver * len(MESSAGE))
        with NetworkSubscriber(address, len(MESSAGE)) as subscriber:
            wait_until(publisher.count_subscribers)
            for _ in range(N_PUBLISHED):
                publisher.socket.send(MESSAGE, copy=False)
            n_received = 0
            while subscriber.socket.poll(20_000 if n_received < n_at_sender else 500):
                subscriber.socket.recv(zmq.NOBLOCK, copy=False)
                n_received += 1
    assert n_at_sender <= n_received <= n_at_sender + n_at_receiver + N_IN_BUFFERS


def test_an_address_that_cannot_be_bound_is_refused_with_the_cure() -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    # That of the documentation (RFC 5737), which no machine has.
    elsewhere = "tcp://192.0.2.1:9100"
    with NetworkPublisher(address, len(MESSAGE)):
        for bound, cure in ((address, "choose another port"), (elsewhere, "give an address of this machine")):
            with pytest.raises(EndpointError, match=rf"^{bound}: cannot be bound: [A-Z][a-z ]+; .*{cure}"):
                NetworkPublisher(bound, len(MESSAGE))
