"""Datagrams that are received in the places where they are expected."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import numpy as np
import pytest
from support.processes.deployment import wait_until

from stddaq.udp.batch_memory import BATCH
from stddaq.udp.batch_socket import BatchSocket

HEADER = np.dtype("u1")
N_BYTES = 16
EMPTY = 0xEE


@pytest.fixture
def batch_socket() -> Iterator[BatchSocket]:
    batch = BatchSocket(("127.0.0.1", 0), HEADER, N_BYTES, 2**16)
    yield batch
    batch.close()


def send(batch: BatchSocket, *payloads: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for number, payload in enumerate(payloads):
            sender.sendto(bytes([number]) + payload, ("127.0.0.1", batch.port))


def receive(batch: BatchSocket, n: int, place: np.ndarray | None) -> None:
    received = 0

    def has_arrived() -> bool:
        nonlocal received
        received = received or batch.receive(place)
        return received > 0

    wait_until(has_arrived, 20.0, "datagrams")
    assert received == n


def test_payloads_go_into_the_rows_of_an_array_and_nowhere_else(batch_socket: BatchSocket) -> None:
    memory = np.full((6, N_BYTES), EMPTY, np.uint8)
    send(batch_socket, bytes(N_BYTES), b"\1" * 3, b"\2" * (N_BYTES + 9), b"\3" * N_BYTES)
    receive(batch_socket, 3, memory[1:4])
    assert memory[0].tolist() == memory[4].tolist() == [EMPTY] * N_BYTES
    assert memory[1:4].tolist() == [[0] * N_BYTES, [1] * 3 + [EMPTY] * (N_BYTES - 3), [2] * N_BYTES]
    assert batch_socket.memory.lengths[:3].tolist() == [N_BYTES + 1, 4, N_BYTES + 10]
    assert batch_socket.memory.headers[:3].tolist() == [0, 1, 2]


def test_payloads_go_into_the_memory_of_the_socket_again(batch_socket: BatchSocket) -> None:
    memory = np.full((2, N_BYTES), EMPTY, np.uint8)
    send(batch_socket, *[bytes([i]) * N_BYTES for i in range(5)])
    receive(batch_socket, 2, memory)
    receive(batch_socket, 3, None)
    assert memory[:, 0].tolist() == [0, 1]
    assert batch_socket.memory.payloads[:3, 0].tolist() == [2, 3, 4]
    assert len(batch_socket.memory.payloads) == BATCH
