"""`std_udp_tools_dump`: writes the datagrams of all modules of a detector into files `<port>.dat`."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import stat
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from stddaq.config import DetectorConfig
from stddaq.daemon.arguments import Seconds, image_count, ipv4_address
from stddaq.daemon.log import event, ready
from stddaq.daemon.main import StopRequest, run
from stddaq.daemon.service_manager import service_manager
from stddaq.errors import EndpointError, OutputExistsError
from stddaq.udp.arguments import UdpArgumentParser
from stddaq.udp.batch_socket import SOCKET_BUFFER_BYTES, bind_udp
from stddaq.udp.dat_file import MAX_DATAGRAM_BYTES, dat_path, receiver_ports, write_datagram

# Datagrams of one port before the next port has its turn.
TURN = 1000
# What had arrived when the end was requested is written, up to this many datagrams of each port.
LAST_TURN = 10_000
LONGEST_WAIT_S = 1.0


class _Port:
    """One port and its file."""

    def __init__(self, address: str, port: int, folder: Path) -> None:
        self.path = dat_path(folder, port)
        try:
            self._file: BinaryIO = self.path.open("xb")
        except FileExistsError as error:
            raise OutputExistsError(f"{self.path}: exists already, move it away") from error
        try:
            self.socket, _ = bind_udp((address, port), SOCKET_BUFFER_BYTES)
        except EndpointError:
            self._file.close()
            self.path.unlink()
            raise
        self.socket.setblocking(False)
        self.n_datagrams = 0

    def receive(self, limit: int) -> None:
        """Write up to `limit` datagrams that have arrived."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(limit):
                write_datagram(self._file, self.socket.recv(MAX_DATAGRAM_BYTES))
                self.n_datagrams += 1

    def close(self) -> None:
        self.socket.close()
        self._file.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool. Return the exit code."""
    parser = UdpArgumentParser(
        "std_udp_tools_dump",
        "Write the datagrams of all modules into files <port>.dat of the working directory, until Enter.",
    )
    parser.add_config()
    parser.add_link_sets()
    parser.add_argument(
        "--address",
        type=ipv4_address,
        default="0.0.0.0",
        metavar="ADDRESS",
        help="IPv4 address to listen on (default: all)",
    )
    parser.add_argument("--duration", type=Seconds(), metavar="S", help="end after this many seconds")
    parser.add_argument(
        "--packets", type=image_count, metavar="N", help="end after this many packets of all modules together"
    )
    return run(parser, _serve, argv)


def _serve(config: DetectorConfig, args: argparse.Namespace, stop: StopRequest) -> None:
    numbers = receiver_ports(config, args.link_sets)
    first, last = numbers[0], numbers[-1]
    with contextlib.ExitStack() as opened:
        ports: list[_Port] = []
        for port in numbers:
            ports.append(opened.enter_context(contextlib.closing(_Port(args.address, port, Path.cwd()))))
        ready("UDP ports %d to %d of %s, files in %s", first, last, args.address, Path.cwd())
        _dump(ports, args.duration, args.packets, stop)
        if args.packets is None:
            for port in ports:
                port.receive(LAST_TURN)
    for port in ports:
        event("%s: %d datagrams", port.path, port.n_datagrams)


def _dump(ports: Sequence[_Port], duration: float | None, limit: int | None, stop: StopRequest) -> None:
    poller = select.poll()
    for readable in (stop, *(port.socket for port in ports)):
        poller.register(readable, select.POLLIN)
    if _is_interactive():
        poller.register(sys.stdin, select.POLLIN)
    deadline = float("inf") if duration is None else time.monotonic() + duration
    n = 0
    while not stop.poll() and (limit is None or n < limit):
        service_manager.alive()
        wait = min(LONGEST_WAIT_S, deadline - time.monotonic())
        if wait <= 0:
            return
        found = {fd for fd, _ in poller.poll(wait * 1000)}
        if sys.stdin is not None and _is_interactive() and sys.stdin.fileno() in found:
            return
        for port in ports:
            port.receive(TURN if limit is None else min(TURN, limit - n))
            n = sum(port.n_datagrams for port in ports)
            if limit is not None and n >= limit:
                return


def _is_interactive() -> bool:
    """Return whether Enter may come from standard input: a terminal or a pipe, not /dev/null."""
    if sys.stdin is None or sys.stdin.closed:
        return False
    mode = os.fstat(sys.stdin.fileno()).st_mode
    return sys.stdin.isatty() or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
