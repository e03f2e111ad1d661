"""`std_udp_tools_replay`: sends the datagrams of files `<port>.dat` again, all ports in step."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import select
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from stddaq.config import DetectorConfig
from stddaq.daemon.arguments import (
    IntegerRange,
    NumberRange,
    existing_directory,
    image_count,
    ipv4_address,
)
from stddaq.daemon.log import event, logger, ready
from stddaq.daemon.main import StopRequest, run
from stddaq.daemon.service_manager import service_manager
from stddaq.errors import EndpointError, SourceError
from stddaq.text import mismatch
from stddaq.udp.arguments import UdpArgumentParser
from stddaq.udp.dat_file import dat_path, read_datagrams, receiver_ports
from stddaq.udp.packets import packets_of

MAX_RATE_HZ = 1e6
MAX_DELAY_MS = 1e6
LONGEST_WAIT_S = 1.0
# One packet of every port, with its module.
Step = list[tuple[int, bytes]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool. Return the exit code."""
    parser = UdpArgumentParser(
        "std_udp_tools_replay", "Send the datagrams of files <port>.dat to the receivers of a detector."
    )
    parser.add_config()
    parser.add_link_sets()
    parser.add_argument(
        "ms_delay", type=NumberRange(0, MAX_DELAY_MS, "ms"), help="ms between two packets of a port"
    )
    parser.add_argument("folder_path", type=existing_directory, help="folder of the files")
    parser.add_argument(
        "--address",
        type=ipv4_address,
        default="127.0.0.1",
        metavar="ADDRESS",
        help="IPv4 address of the receivers (default: here)",
    )
    parser.add_argument(
        "--first-port",
        type=IntegerRange(1, 65535),
        metavar="PORT",
        help="send the first file to this port, the others to those after it (default: start_udp_port)",
    )
    parser.add_argument(
        "--rate",
        type=NumberRange(1e-3, MAX_RATE_HZ, "Hz"),
        metavar="HZ",
        help="send whole images at this rate, in place of ms_delay",
    )
    parser.add_argument(
        "--loops", type=image_count, default=1, metavar="N", help="send all N times (default: 1)"
    )
    return run(parser, _serve, argv)


def _serve(config: DetectorConfig, args: argparse.Namespace, stop: StopRequest) -> None:
    ports = receiver_ports(config, args.link_sets, args.first_port)
    files = _files(args.folder_path, receiver_ports(config, args.link_sets))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as card:
        ready("%d files of %s to %s:%d", len(files), args.folder_path, args.address, ports[0])
        if args.rate:
            n_packets = packets_of(config, 0).n_packets
            interval = 1 / args.rate
            turns = itertools.chain.from_iterable(
                _images(files, config.n_modules, n_packets) for _ in range(args.loops)
            )
        else:
            interval = args.ms_delay / 1000
            turns = ([step] for _ in range(args.loops) for step in _steps(files))
        start, n = time.monotonic(), 0
        for number, turn in enumerate(turns):
            if _is_stopped(stop, start + number * interval):
                break
            for module, datagram in itertools.chain.from_iterable(turn):
                _send(card, datagram, (args.address, ports[module]))
                n += 1
    event("%d datagrams sent", n)


def _files(folder: Path, ports: Sequence[int]) -> dict[int, Path]:
    """Return the files of the receivers, by `module_id`. Raise `SourceError` if there is none."""
    paths = {module: dat_path(folder, port) for module, port in enumerate(ports)}
    files = {module: path for module, path in paths.items() if path.exists()}
    if not files:
        expected = f"files {ports[0]}.dat to {ports[-1]}.dat"
        raise SourceError(mismatch(f"{folder}", expected, "none of them"))
    if missing := sorted(paths.keys() - files.keys()):
        logger.warning("no file of the modules %s", ", ".join(map(str, missing)))
    return files


def _images(files: dict[int, Path], n_modules: int, n_packets: int) -> Iterator[list[Step]]:
    """Yield the packets of each image, which sets of links send in turn."""
    by_set = itertools.groupby(files.items(), lambda file: file[0] // n_modules)
    waiting = [_steps(dict(of_set)) for _, of_set in by_set]
    while waiting:
        for steps in list(waiting):
            if turn := list(itertools.islice(steps, n_packets)):
                yield turn
            else:
                waiting.remove(steps)


def _steps(files: dict[int, Path]) -> Iterator[Step]:
    """Yield the next packet of each port, with its module, until all files have ended."""
    with contextlib.ExitStack() as opened:
        readers = [
            zip(itertools.repeat(module), read_datagrams(opened.enter_context(path.open("rb")), path))
            for module, path in files.items()
        ]
        for step in itertools.zip_longest(*readers):
            yield [packet for packet in step if packet is not None]


def _is_stopped(stop: StopRequest, due: float) -> bool:
    """Wait until `due`, s (monotonic). Return whether the end is requested before that."""
    while not stop.poll():
        service_manager.alive()
        delay = due - time.monotonic()
        if delay <= 0:
            return False
        select.select([stop], [], [], min(delay, LONGEST_WAIT_S))
    return True


def _send(card: socket.socket, datagram: bytes, receiver: tuple[str, int]) -> None:
    try:
        card.sendto(datagram, receiver)
    except OSError as error:
        raise EndpointError(f"udp://{receiver[0]}:{receiver[1]}: cannot be sent to: {error}") from error
