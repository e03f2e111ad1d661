"""`std_buffer_driver`: receives commands over a WebSocket, and sends replayed images to consumers."""

from __future__ import annotations

import argparse
import asyncio
import zlib
from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import get_args

from stddaq.buffer.driver import ReplayDriver
from stddaq.buffer.replay import Consumers, ReaderLink
from stddaq.config import DetectorConfig
from stddaq.daemon import log, metrics
from stddaq.daemon import main as daemon
from stddaq.daemon.access import Access, access_of, add_token_option
from stddaq.daemon.arguments import ArgumentParser, port_number, stream_address
from stddaq.daemon.metrics import Registry
from stddaq.daemon.statistics import Period, StatisticsLine
from stddaq.dataplane.ring_reader import RingReader
from stddaq.wire.default_addresses import DEFAULT_PORT
from stddaq.wire.driver_messages import ErrorType
from stddaq.writing.driver.websocket_server import WebSocketServer

NAME = "std_buffer_driver"
SHUT_DOWN_TIMEOUT_S = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """The command `std_buffer_driver`."""
    parser = ArgumentParser(NAME, "Control replays of stored images, and send the images to consumers.")
    parser.add_config()
    parser.add_argument(
        "--stream_address",
        type=stream_address,
        required=True,
        metavar="ADDRESS",
        help="tcp://HOST:PORT or ipc://PATH to bind; consumers pull images (array-1.0) from it",
    )
    parser.add_argument(
        "-p",
        "--port",
        type=port_number,
        default=DEFAULT_PORT,
        help=f"WebSocket port of the driver (default: {DEFAULT_PORT})",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address that the driver listens on (default: 127.0.0.1)"
    )
    add_token_option(parser)
    return daemon.run(parser, _serve, argv)


def _serve(config: DetectorConfig, args: argparse.Namespace, stop: daemon.StopRequest) -> None:
    access = access_of(args)
    asyncio.run(_serve_clients(config, args, access, stop))


async def _serve_clients(
    config: DetectorConfig, args: argparse.Namespace, access: Access, stop: daemon.StopRequest
) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_reader(stop.fileno(), lambda: stop.poll() and stopped.set())
    with ExitStack() as stack:
        consumers = stack.enter_context(Consumers(config, args.stream_address))
        log.event("images for consumers at %s", consumers.endpoint)
        # No other driver can bind this address; one that is started again takes the place of this one.
        link = stack.enter_context(ReaderLink(config, zlib.crc32(consumers.endpoint.encode())))
        ring = stack.enter_context(closing(RingReader(config, "image")))
        driver = ReplayDriver(link, ring, consumers)
        server = WebSocketServer(driver, access)
        statistics = _statistics(config, driver)
        await server.serve(
            args.host, args.port, stopped, lambda: driver.shut_down(SHUT_DOWN_TIMEOUT_S), _log(statistics)
        )


async def _log(statistics: StatisticsLine) -> None:
    """Write the statistics line, once a period."""
    while True:
        await asyncio.sleep(statistics.due_in)
        statistics.write_if_due()


def _statistics(config: DetectorConfig, driver: ReplayDriver) -> StatisticsLine:
    registry = Registry(config.detector_name, NAME)
    registry.add(metrics.CLIENTS_CONNECTED, lambda: len(driver.watchers))
    registry.add(metrics.IMAGES_REPLAYED, lambda: driver.n_sent)
    registry.add(metrics.REPLAY_ACTIVE, lambda: driver.is_replaying)
    for error in get_args(ErrorType):
        registry.add(metrics.COMMANDS_REFUSED, lambda error=error: driver.n_refused[error], error=error)

    def pairs(period: Period) -> dict[str, object]:
        return {
            "source": "replay",
            **period.rate(metrics.IMAGES_REPLAYED),
            "n_active_connections": period.total(metrics.CLIENTS_CONNECTED),
        }

    return StatisticsLine(config, registry, pairs)
