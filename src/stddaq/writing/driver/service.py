"""`std_det_driver`: takes commands over a WebSocket and lets the writers record.

This module is the server: connections, the 10 Hz status, the statistics line. What a run is stands in
`driver`, how images are divided in `distributor`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed

from stddaq.config import DetectorConfig
from stddaq.daemon import log, statistics
from stddaq.daemon import main as daemon
from stddaq.daemon.arguments import ArgumentParser, Seconds, existing_directory, port_number
from stddaq.errors import ConfigError
from stddaq.wire.default_addresses import DEFAULT_PORT
from stddaq.wire.driver_messages import STATUS_PERIOD_S
from stddaq.writing.driver.distributor import Distributor
from stddaq.writing.driver.driver import Driver

NAME = "std_det_driver"
MAX_FRAME_BYTES = 64 * 1024
# A client that does not read is disconnected when so much waits for it: minutes of status messages.
MAX_UNREAD_BYTES = 4 * 2**20
UNWATCHED_PERIOD_S = 0.5
SHUT_DOWN_S = 1.4


class _Session:
    """One WebSocket connection as the driver sees it."""

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection

    def tell(self, message: str) -> None:
        if self._connection.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self._connection.transport.abort()
            return
        broadcast([self._connection], message)


class DriverServer:
    """The WebSocket server around a `Driver`."""

    def __init__(self, config: DetectorConfig, source_suffix: str, driver: Driver, distributor: Distributor):
        self._config, self._suffix = config, source_suffix
        self._driver, self._distributor = driver, distributor

    async def serve(self, host: str, port: int, stop: daemon.StopRequest) -> None:
        """Serve until asked to stop. Raises `ConfigError` when the address cannot be bound."""
        # Handshakes that fail (port scanners, browsers) are the library's errors and nobody's news.
        quiet = logging.getLogger("stddaq.websockets")
        quiet.propagate, quiet.disabled = False, True
        stopped, retire = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(stop.fileno(), lambda: stop.poll() and stopped.set())
        loop.add_signal_handler(signal.SIGUSR1, retire.set)
        connections: WeakSet[ServerConnection] = WeakSet()

        class Connection(ServerConnection):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **options)
                connections.add(self)

        try:
            server = await serve(
                self._session,
                host,
                port,
                max_size=MAX_FRAME_BYTES,
                # It would save little of small messages, for 0.3 MB of memory of each client.
                compression=None,
                logger=quiet,
                create_connection=Connection,
            )
        except OSError as error:
            raise ConfigError(
                f"--host {host} --port {port}: cannot listen there: {error.strerror}"
            ) from error
        async with server:
            bound = next(iter(server.sockets)).getsockname()
            log.event("ready: listening on ws://%s:%d", bound[0], bound[1])
            ticker = asyncio.create_task(self._tick())
            reporter = asyncio.create_task(self._report())
            retiring = asyncio.create_task(self._retire(retire, stopped))
            await stopped.wait()
            await self._driver.shut_down(within=SHUT_DOWN_S)
            ticker.cancel()
            reporter.cancel()
            retiring.cancel()
            server.close(close_connections=False)
            await asyncio.sleep(0)  # What was accepted last gets its transport.
            # All, and not only the open ones: a handshake, or a goodbye, may take ten seconds.
            for made in connections:
                made.transport.abort()

    async def _session(self, connection: ServerConnection) -> None:
        session = _Session(connection)
        session.tell(self._driver.greeting())
        self._driver.clients.add(session)
        log.event("client %s connected", connection.id)
        try:
            async for frame in connection:
                await self._driver.answer(session, frame)
        except ConnectionClosed:
            pass
        finally:
            self._driver.clients.discard(session)
            log.event("client %s disconnected", connection.id)

    async def _retire(self, asked: asyncio.Event, stopped: asyncio.Event) -> None:
        """End when nobody is disturbed by it: after the run that goes on, without another one."""
        await asked.wait()
        log.event("asked to end after the run: no further run is admitted")
        await self._driver.retire()
        stopped.set()

    async def _tick(self) -> None:
        """The status at 10 Hz."""
        while True:
            # Whoever connects is greeted at once; with nobody there the driver need not wake up so often.
            await asyncio.sleep(STATUS_PERIOD_S if self._driver.clients else UNWATCHED_PERIOD_S)
            self._driver.tell_all()

    async def _report(self) -> None:
        """The statistics line, once a period."""
        timer = statistics.StatisticsTimer(self._config.stats_collection_period)
        before = 0
        while True:
            await asyncio.sleep(timer.due_in)
            elapsed = timer.restart()
            received = self._distributor.n_received
            n, before = received - before, received
            statistics.log_statistics(
                self._config.detector_name,
                {
                    "source": self._suffix,
                    "processed_times": n,
                    "repetition_rate_hz": n / elapsed,
                    "n_active_connections": len(self._driver.clients),
                },
            )


def main(argv: Sequence[str] | None = None) -> int:
    """The command `std_det_driver`."""
    parser = ArgumentParser(NAME, "Control the writers and divide the images over them.")
    parser.add_config()
    parser.add_source_suffix('suffix of the metadata stream (default "image")')
    parser.add_argument(
        "-p", "--port", type=port_number, default=DEFAULT_PORT, help="websocket port (default 8080)"
    )
    parser.add_argument(
        "-m", "--with_metadata_writer", action="store_true", help="a metadata writer takes part in the runs"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument(
        "--allowed-root",
        type=existing_directory,
        action="append",
        default=[],
        metavar="DIRECTORY",
        help="files are written below this directory only; may be given several times (default: anywhere)",
    )
    parser.add_argument(
        "--writer-timeout",
        type=Seconds(),
        default=10.0,
        metavar="SECONDS",
        help="a connected writer that answers nothing for so long ends the run (default 10)",
    )
    return daemon.run(parser, _serve, argv)


def _serve(config: DetectorConfig, args: argparse.Namespace, stop: daemon.StopRequest) -> None:
    if config.number_of_writers < 1:
        raise ConfigError(
            f"{args.detector_json_filename}: number_of_writers: found {config.number_of_writers}, "
            "allowed for a driver is 1 or more"
        )
    distributor = Distributor(
        config,
        args.source_suffix,
        with_metadata_writer=args.with_metadata_writer,
        patience=args.writer_timeout,
    )
    distributor.start()
    try:
        driver = Driver(config, args.source_suffix, distributor, args.allowed_root)
        server = DriverServer(config, args.source_suffix, driver, distributor)
        asyncio.run(server.serve(args.host, args.port, stop))
    finally:
        distributor.stop()
