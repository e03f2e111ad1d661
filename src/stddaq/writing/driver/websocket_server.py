"""The WebSocket server of a driver: connections, their limits, and who may connect.

It serves any `Controller`: the driver of writers, and that of the image buffer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol
from weakref import WeakSet

from websockets.asyncio.server import Server, ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from stddaq.daemon import log
from stddaq.daemon.access import Access, AccessError
from stddaq.daemon.peer_user import uid_of_peer
from stddaq.daemon.tasks import start_lasting_task
from stddaq.errors import ConfigError
from stddaq.text import bind_error_text
from stddaq.wire.default_addresses import GREETING_PATH
from stddaq.writing.driver.connection_limits import ACCEPTED_AT_ONCE, ConnectionLimits
from stddaq.writing.driver.requester import ANYONE, Requester
from stddaq.writing.driver.session import Connection, Session
from stddaq.writing.driver.status import Client, Watchers

MAX_FRAME_BYTES = 64 * 1024

# From the event loop's acceptance of a connection until it has its transport: one turn for a task, one for a
# callback.
TURNS_TO_CONNECT = 3


class Controller(Protocol):
    """Carries out the commands of clients.

    Attributes:
        watchers: the connected clients.
    """

    watchers: Watchers

    async def receive(self, client: Client, frame: str | bytes) -> None:
        """Carry out the command in a client's frame and reply."""
        ...


class _Outgoing(Connection):
    """The sending side of a WebSocket connection."""

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection

    def unsent_bytes(self) -> int:
        return self._connection.transport.get_write_buffer_size()

    def write(self, message: str) -> None:
        broadcast([self._connection], message)

    def abort(self) -> None:
        self._connection.transport.abort()


class WebSocketServer:
    """The server around a `Controller`."""

    def __init__(self, controller: Controller, access: Access, trusted_uids: Sequence[int] = ()) -> None:
        """`trusted_uids`: users that may ask for files of any user."""
        self._controller, self._access, self._trusted_uids = controller, access, trusted_uids
        self._n_refused = 0
        self._connections: WeakSet[ServerConnection] = WeakSet()
        self._is_closing = False
        self._limits = ConnectionLimits()

    async def serve(
        self,
        host: str,
        port: int,
        stopped: asyncio.Event,
        shut_down: Callable[[], Awaitable[None]],
        *further: Coroutine[Any, Any, None],
    ) -> None:
        """Serve until `stopped`, then call `shut_down`, and disconnect. `further` runs meanwhile.

        Raises `ConfigError` when the address cannot be bound.
        """
        try:
            server = await self._listen(host, port)
        except ConfigError:
            for coroutine in further:
                coroutine.close()
            raise
        async with server:
            bound = next(iter(server.sockets)).getsockname()
            log.ready("listening on ws://%s:%d", bound[0], bound[1])
            running = (self._limits.close_vanished(), *further)
            tasks = [start_lasting_task(coroutine) for coroutine in running]
            await stopped.wait()
            await shut_down()
            for task in tasks:
                task.cancel()
            server.close(close_connections=False)
            # All of them, not only the open ones: an opening or closing handshake may take ten seconds.
            for connection in list(self._connections):
                connection.transport.abort()
            # Those that were just accepted get their transports in the next turns of the loop.
            self._is_closing = True
            for _ in range(TURNS_TO_CONNECT):
                await asyncio.sleep(0)

    async def _listen(self, host: str, port: int) -> Server:
        # The library logs failed handshakes of port scanners and browsers as errors, which they are not here.
        quiet = logging.getLogger("stddaq.websockets")
        quiet.propagate, quiet.disabled = False, True
        served, limits = self, self._limits

        class Tracked(ServerConnection):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                super().connection_made(transport)
                served._connections.add(self)
                limits.admit(self)
                if served._is_closing:
                    self.transport.abort()

            def connection_lost(self, exc: Exception | None) -> None:
                limits.forget(self)
                super().connection_lost(exc)

        try:
            return await serve(
                self._session,
                host,
                port,
                process_request=self._refusal,
                backlog=ACCEPTED_AT_ONCE,
                max_size=MAX_FRAME_BYTES,
                # It saves little on small messages and costs 0.3 MB of memory per client.
                compression=None,
                # Keepalive of TCP finds hosts that have disappeared; a client that is busy stays connected.
                ping_interval=None,
                logger=quiet,
                create_connection=Tracked,
            )
        except OSError as error:
            reason = bind_error_text(error)
            raise ConfigError(f"--host {host} --port {port}: cannot listen: {reason}") from error

    def _refusal(self, connection: ServerConnection, request: Request) -> Response | None:
        """Return the answer to a handshake that is refused; None if it may continue."""
        try:
            self._access.check(request.headers.get_all)
        except AccessError as error:
            self._n_refused += 1
            if self._n_refused & (self._n_refused - 1) == 0:  # The first, second, fourth, ...
                log.logger.warning("%d connections were refused, the last one: %s", self._n_refused, error)
            response = connection.respond(error.status, f"{error}\n")
            if error.status == 401:
                # `Basic` would make browsers ask for a password, and send it by themselves from then on.
                response.headers["WWW-Authenticate"] = "Bearer"
            return response
        return None

    def _requester(self, connection: ServerConnection) -> Requester:
        if self._access.demands_token:
            return ANYONE
        own, peer = connection.local_address, connection.remote_address
        return Requester(lambda: uid_of_peer(own, peer), self._trusted_uids)

    async def _session(self, connection: ServerConnection) -> None:
        session = Session(_Outgoing(connection), self._requester(connection))
        watchers = self._controller.watchers
        path = connection.request.path if connection.request else ""
        watchers.add(session, at_once=path.partition("?")[0].endswith(GREETING_PATH))
        log.event("client %s connected", connection.id)
        try:
            async for frame in connection:
                with watchers.replying_to(session):
                    await self._controller.receive(session, frame)
        except ConnectionClosed:
            pass
        finally:
            watchers.remove(session)
            log.event("client %s disconnected", connection.id)
