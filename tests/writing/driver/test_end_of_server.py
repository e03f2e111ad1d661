"""The end of the driver's server, while clients connect."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from typing import Any, cast

import pytest

from stddaq.daemon import log
from stddaq.daemon.access import Access
from stddaq.writing.driver.websocket_server import WebSocketServer


# How long the driver works at its end, in turns of the loop: a connection that is accepted has its transport
# some turns later.
@pytest.mark.parametrize("n_turns", range(6))
# asyncio forgets connections that it accepts just before the server closes: their sockets close when they are
# collected as garbage.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_clients_that_connect_at_the_end_are_disconnected(
    n_turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses: list[tuple[str, int]] = []
    monkeypatch.setattr(log, "ready", lambda _, *address: addresses.append(address))

    async def shut_down() -> None:
        for _ in range(n_turns):
            await asyncio.sleep(0)

    async def end_while_clients_connect(clients: contextlib.ExitStack) -> list[socket.socket]:
        stopped = asyncio.Event()
        server = WebSocketServer(cast(Any, None), Access())
        serving = asyncio.create_task(server.serve("127.0.0.1", 0, stopped, shut_down))
        async with asyncio.timeout(10):
            while not addresses:
                await asyncio.sleep(0.01)
            # None of them is accepted before the loop goes on.
            connected = [
                clients.enter_context(socket.create_connection(addresses[0], timeout=60)) for _ in range(8)
            ]
            stopped.set()
            await serving
        return connected

    with contextlib.ExitStack() as clients:
        connected = asyncio.run(end_while_clients_connect(clients))
        gc.collect()
        for client in connected:
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
