"""`std_det_driver`: receives commands over a WebSocket and has the writers record.

This module is the server: connections, signals, the statistics line. `driver` carries out the commands,
`distributor` divides the images.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args
from weakref import WeakSet

from websockets.asyncio.server import Server, ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from stddaq.config import DetectorConfig
from stddaq.daemon import log, metrics
from stddaq.daemon import main as daemon
from stddaq.daemon.access import Access, AccessError, access_of
from stddaq.daemon.arguments import ArgumentParser
from stddaq.daemon.metrics import Registry
from stddaq.daemon.peer_user import uid_of_peer
from stddaq.daemon.roots import allowed_roots
from stddaq.daemon.statistics import Period, StatisticsLine
from stddaq.errors import ConfigError
from stddaq.text import mismatch
from stddaq.wire.default_addresses import GREETING_PATH
from stddaq.wire.driver_messages import RUN_STATES, ErrorType
from stddaq.writing.driver.connection_limits import ACCEPTED_AT_ONCE, ConnectionLimits
from stddaq.writing.driver.distributor import Distributor
from stddaq.writing.driver.driver import Driver
from stddaq.writing.driver.options import add_driver_options
from stddaq.writing.driver.requester import ANYONE, Requester
from stddaq.writing.driver.session import Connection, Session

NAME = "std_det_driver"
MAX_FRAME_BYTES = 64 * 1024
SHUT_DOWN_TIMEOUT_S = 1.4


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


class DriverServer:
    """The WebSocket server around a `Driver`."""

    def __init__(
        self,
        config: DetectorConfig,
        source_suffix: str,
        driver: Driver,
        distributor: Distributor,
        access: Access,
    ) -> None:
        self._suffix = source_suffix
        self._driver, self._access = driver, access
        self._n_refused = 0
        self._trusted_uids = config.trusted_uids
        registry = Registry(config.detector_name, NAME)
        registry.add(metrics.IMAGES_RECEIVED, lambda: distributor.n_received, source=source_suffix)
        registry.add(metrics.CLIENTS_CONNECTED, lambda: len(driver.watchers))
        _register(registry, driver, source_suffix)
        self._statistics = StatisticsLine(config, registry, self._pairs)
        self._connections: WeakSet[ServerConnection] = WeakSet()
        self._limits = ConnectionLimits()

    async def serve(self, host: str, port: int, stop: daemon.StopRequest) -> None:
        """Serve until asked to stop. Raises `ConfigError` when the address cannot be bound."""
        stopped, retire = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(stop.fileno(), lambda: stop.poll() and stopped.set())
        # Not loop.add_signal_handler, which takes the signals' descriptor away from `stop`.
        signal.signal(signal.SIGUSR1, lambda *_: loop.call_soon_threadsafe(retire.set))
        server = await self._listen(host, port)
        async with server:
            bound = next(iter(server.sockets)).getsockname()
            log.ready("listening on ws://%s:%d", bound[0], bound[1])
            tasks = [
                asyncio.create_task(self._driver.watchers.notify_periodically()),
                asyncio.create_task(self._limits.close_vanished()),
                asyncio.create_task(self._log_statistics()),
                asyncio.create_task(self._retire(retire, stopped)),
            ]
            await stopped.wait()
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            await self._driver.shut_down(SHUT_DOWN_TIMEOUT_S)
            for task in tasks:
                task.cancel()
            server.close(close_connections=False)
            await asyncio.sleep(0)  # The connection accepted last gets its transport.
            # All of them, not only the open ones: an opening or closing handshake may take ten seconds.
            for connection in self._connections:
                connection.transport.abort()

    async def _listen(self, host: str, port: int) -> Server:
        # The library logs failed handshakes of port scanners and browsers as errors, which they are not here.
        quiet = logging.getLogger("stddaq.websockets")
        quiet.propagate, quiet.disabled = False, True
        connections, limits = self._connections, self._limits

        class Tracked(ServerConnection):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **options)
                connections.add(self)

            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                super().connection_made(transport)
                limits.admit(self)

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
            raise ConfigError(f"--host {host} --port {port}: cannot listen: {error.strerror}") from error

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
        watchers = self._driver.watchers
        path = connection.request.path if connection.request else ""
        watchers.add(session, at_once=path.partition("?")[0].endswith(GREETING_PATH))
        log.event("client %s connected", connection.id)
        try:
            async for frame in connection:
                with watchers.replying_to(session):
                    await self._driver.receive(session, frame)
        except ConnectionClosed:
            pass
        finally:
            watchers.remove(session)
            log.event("client %s disconnected", connection.id)

    async def _retire(self, asked: asyncio.Event, stopped: asyncio.Event) -> None:
        """Exit after the present run, without admitting another one."""
        await asked.wait()
        log.event("retiring: no further run is admitted")
        await self._driver.retire()
        stopped.set()

    async def _log_statistics(self) -> None:
        """Write the statistics line, once a period."""
        while True:
            await asyncio.sleep(self._statistics.due_in)
            self._statistics.write_if_due()

    def _pairs(self, period: Period) -> dict[str, object]:
        return {
            "source": self._suffix,
            **period.rate(metrics.IMAGES_RECEIVED),
            "n_active_connections": period.total(metrics.CLIENTS_CONNECTED),
        }


def _register(registry: Registry, driver: Driver, source_suffix: str) -> None:
    driver.totals.register(registry, source_suffix)
    registry.add(metrics.RUN_ACTIVE, lambda: driver.status != "idle")
    for status in ("idle", *RUN_STATES, "error"):
        registry.add(metrics.RUN_STATE, lambda status=status: driver.status == status, state=status)
    for outcome in ("file_saved", "error"):
        registry.add(
            metrics.RUNS_FINISHED, lambda outcome=outcome: driver.n_finished[outcome], outcome=outcome
        )
    for error in get_args(ErrorType):
        registry.add(metrics.COMMANDS_REFUSED, lambda error=error: driver.n_refused[error], error=error)


def main(argv: Sequence[str] | None = None) -> int:
    """The command `std_det_driver`."""
    parser = ArgumentParser(NAME, "Control the writers and divide the images among them.")
    parser.add_config()
    add_driver_options(parser)
    return daemon.run(parser, _serve, argv)


def _serve(config: DetectorConfig, args: argparse.Namespace, stop: daemon.StopRequest) -> None:
    if config.number_of_writers < 1:
        raise ConfigError(
            mismatch(
                f"{args.detector_json_filename}: number_of_writers",
                "1 or more for a driver",
                str(config.number_of_writers),
            )
        )
    access, roots = access_of(args), allowed_roots(config, args)
    distributor = Distributor(
        config,
        args.source_suffix,
        with_metadata_writer=args.with_metadata_writer,
        writer_timeout=args.writer_timeout,
    )
    distributor.start()
    try:
        asyncio.run(_serve_clients(config, args, distributor, access, roots, stop))
    finally:
        distributor.stop()


async def _serve_clients(
    config: DetectorConfig,
    args: argparse.Namespace,
    distributor: Distributor,
    access: Access,
    roots: Sequence[Path],
    stop: daemon.StopRequest,
) -> None:
    driver = Driver(
        config,
        args.source_suffix,
        distributor,
        roots,
        Path(args.detector_json_filename),
        overwrite=args.overwrite,
    )
    server = DriverServer(config, args.source_suffix, driver, distributor, access)
    await server.serve(args.host, args.port, stop)
