"""`std_det_driver`: receives commands over a WebSocket and has the writers record.

This module is the server: connections, signals, the statistics line. `driver` carries out the commands,
`distributor` divides the images.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from stddaq.config import DetectorConfig
from stddaq.daemon import log, metrics
from stddaq.daemon import main as daemon
from stddaq.daemon.access import Access, access_of
from stddaq.daemon.arguments import ArgumentParser
from stddaq.daemon.metrics import Registry
from stddaq.daemon.roots import allowed_roots
from stddaq.daemon.statistics import Period, StatisticsLine
from stddaq.errors import ConfigError
from stddaq.text import mismatch
from stddaq.wire.driver_messages import RUN_STATES, ErrorType
from stddaq.writing.driver.distributor import Distributor
from stddaq.writing.driver.driver import Driver
from stddaq.writing.driver.options import add_driver_options
from stddaq.writing.driver.websocket_server import WebSocketServer

NAME = "std_det_driver"
SHUT_DOWN_TIMEOUT_S = 1.4


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
        self._driver = driver
        self._server = WebSocketServer(driver, access, config.trusted_uids)
        registry = Registry(config.detector_name, NAME)
        registry.add(metrics.IMAGES_RECEIVED, lambda: distributor.n_received, source=source_suffix)
        registry.add(metrics.CLIENTS_CONNECTED, lambda: len(driver.watchers))
        _register(registry, driver, source_suffix)
        self._statistics = StatisticsLine(config, registry, self._pairs)

    async def serve(self, host: str, port: int, stop: daemon.StopRequest) -> None:
        """Serve until asked to stop. Raises `ConfigError` when the address cannot be bound."""
        stopped, retire = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(stop.fileno(), lambda: stop.poll() and stopped.set())
        # Not loop.add_signal_handler, which takes the signals' descriptor away from `stop`.
        signal.signal(signal.SIGUSR1, lambda *_: loop.call_soon_threadsafe(retire.set))
        await self._server.serve(
            host, port, stopped, self._shut_down, self._log_statistics(), self._retire(retire, stopped)
        )

    async def _shut_down(self) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        await self._driver.shut_down(SHUT_DOWN_TIMEOUT_S)

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
