"""A relay of TCP connections that loses them as a broken network does: nothing arrives, and nothing ends."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit


class SilentRelay:
    """Relays connections to the service at an address.

    Attributes:
        url: of the relay.
    """

    def __init__(self, url: str) -> None:
        self._to = urlsplit(url)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._relays: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        listening = asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(listening, self._loop).result(20)
        self.url = f"{self._to.scheme}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()

    def silence(self) -> None:
        """Relay nothing more of the present connections, which stay open. Later ones are not concerned."""
        asyncio.run_coroutine_threadsafe(self._silence(), self._loop).result(20)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward_reader, onward = await asyncio.open_connection(self._to.hostname, self._to.port)
        self._writers += [writer, onward]
        for source, target in ((reader, onward), (onward_reader, writer)):
            task = asyncio.create_task(_relay(source, target))
            self._relays.add(task)
            task.add_done_callback(self._relays.discard)

    async def _silence(self) -> None:
        relays = list(self._relays)
        for task in relays:
            task.cancel()
        await asyncio.gather(*relays, return_exceptions=True)

    async def _end(self) -> None:
        self._server.close()
        await self._silence()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)


async def _relay(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    target.close()
