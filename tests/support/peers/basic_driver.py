"""A std_daq driver with `status`, `count` and `reason` only, sent ten times a second.

A session receives the state at once after its own command and then every 0.1 s, so that it misses short
states. No files are written; images arrive at a given rate. For tests of clients; `support.peers.cpp_driver`
records.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

PERIOD_S = 0.1


class BasicDriver:
    """Runs in a thread; a context manager."""

    def __init__(self, image_rate: float = 1000.0, preparation_s: float = 0.02, port: int = 0) -> None:
        """Images arrive at `image_rate` per second; each state except `recording` lasts `preparation_s`."""
        self.image_rate = image_rate
        self.preparation_s = preparation_s
        self.fails_with: str | None = None
        self.commands: list[dict[str, Any]] = []
        self.port = port
        self._state: dict[str, Any] = {"status": "idle"}
        self._stop = asyncio.Event()
        self._run: asyncio.Task[None] | None = None
        self._server: Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(60)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self) -> None:
        self._server = await serve(self._session, "127.0.0.1", self.port)
        self.port = next(iter(self._server.sockets)).getsockname()[1]

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()
        if self._run is not None:
            self._run.cancel()
            await asyncio.gather(self._run, return_exceptions=True)

    async def _session(self, connection: ServerConnection) -> None:
        broadcasts = asyncio.create_task(self._broadcast(connection))
        try:
            async for frame in connection:
                command = json.loads(frame)
                self.commands.append(command)
                await connection.send(json.dumps(self._obey(command)))
        except ConnectionClosed:
            pass
        finally:
            broadcasts.cancel()

    async def _broadcast(self, connection: ServerConnection) -> None:
        while True:
            await connection.send(json.dumps(self._state))
            await asyncio.sleep(PERIOD_S)

    def _obey(self, command: dict[str, Any]) -> dict[str, Any]:
        if command["command"] == "stop":
            self._stop.set()
        elif self._run is not None and not self._run.done():
            return {"status": "rejected", "reason": "driver is busy"}
        else:
            self._stop.clear()
            self._state = {"status": "started"}
            self._run = self._loop.create_task(self._record(command))
        return self._state

    async def _record(self, command: dict[str, Any]) -> None:
        if not Path(command["path"]).is_dir():
            await self._fail(f"{command['path']} is not a directory")
            return
        self._state = {"status": "creating_file"}
        try:
            await self._create_files(command)
        except OSError as error:
            await self._fail(str(error))
            return
        for state in ("creating_file", "file_created", "waiting_for_first_image"):
            self._state = {"status": state}
            await asyncio.sleep(self.preparation_s)
        count = await self._count(command.get("n_image", 2**24 - 1))
        if self.fails_with:
            await self._fail(self.fails_with)
            return
        self._state = {"status": "saving_file", "count": count}
        await self._close_files()
        for state in ("saving_file", "file_saved"):
            self._state = {"status": state, "count": count}
            await asyncio.sleep(self.preparation_s)
        self._state = {"status": "idle"}

    async def _create_files(self, command: dict[str, Any]) -> None:
        """Do nothing; `RecordingCppDriver` has files."""

    async def _close_files(self) -> None:
        """Do nothing; `RecordingCppDriver` has files."""

    async def _count(self, n_image: int) -> int:
        begin, count = time.monotonic(), 0
        while count < n_image and not self._stop.is_set() and not (self.fails_with and count):
            await asyncio.sleep(min(0.01, 1 / self.image_rate))
            count = min(n_image, int((time.monotonic() - begin) * self.image_rate))
            self._state = {"status": "recording", "count": count}
        return count

    async def _fail(self, reason: str) -> None:
        self._state = {"status": "error", "reason": reason}
        await asyncio.sleep(2 * PERIOD_S)
        self._state = {"status": "idle"}
