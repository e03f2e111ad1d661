"""`std_udp_recv_gf`, `std_udp_recv_jf`, `std_udp_recv_eg`: the packets of one module, assembled to frames.

A receiver listens on UDP port `start_udp_port + module_id`, puts frames into the frame ring of its module and
announces them. One thread does all.
"""

from __future__ import annotations

import argparse
import functools
import gc
import math
import select
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stddaq.config import DetectorConfig
from stddaq.config.model import DetectorType
from stddaq.daemon import metrics
from stddaq.daemon.arguments import IntegerRange, Seconds, ipv4_address
from stddaq.daemon.log import event, logger, ready
from stddaq.daemon.main import StopRequest, run
from stddaq.daemon.metrics import Registry
from stddaq.daemon.statistics import Period, StatisticsLine
from stddaq.errors import ConfigError
from stddaq.text import mismatch
from stddaq.udp.arguments import UdpArgumentParser
from stddaq.udp.batch_memory import BATCH
from stddaq.udp.batch_socket import SOCKET_BUFFER_BYTES, BatchSocket, buffer_limit
from stddaq.udp.frame_ring import FramePublisher
from stddaq.udp.packets import Packets, packets_of
from stddaq.udp.steady_assembly import SteadyAssembly

if TYPE_CHECKING:
    from stddaq.udp.steady_frames import SteadyFrames

# A wake-up costs as much as many packets: when no packet is left, wait until the frame should be complete,
SHORTEST_WAIT_S, LONGEST_WAIT_S = 0.0005, 0.002
# or the fastest link has filled this share of the socket's buffer.
BUFFER_SHARE, FASTEST_LINK_BYTES_PER_S = 0.25, 1.25e9
# What may be removed from outside is checked, and wrong cabling looked for, this often.
CHECK_PERIOD_S = 0.5
# Batches between two looks at the clock for that: 10 ms at the highest rates.
CHECK_BATCHES = 16


class ModuleReceiver:
    """A running receiver: its socket, its ring and its loop."""

    def __init__(
        self,
        config: DetectorConfig,
        module: int,
        packets: Packets,
        address: tuple[str, int],
        *,
        program: str,
        buffer_bytes: int = SOCKET_BUFFER_BYTES,
        idle_time: float | None = None,
    ) -> None:
        """Raise `EndpointError` or `GeometryError`."""
        self._config, self._module, self._packets = config, module, packets
        self._check_at, self._n_subscribers = 0.0, 0
        self._logged: set[str] = set()
        self._problems: dict[str, str] = {}
        self._n_restarts_logged = 0
        # The ring first: its lock names a receiver that has the module already.
        self._publisher = FramePublisher(config, module)
        try:
            self._socket = BatchSocket(
                address,
                packets.header,
                packets.row_bytes,
                buffer_bytes,
                has_times=not packets.has_epochs,
            )
            self._assembly = SteadyAssembly(packets, self._publisher, idle_time)
            self._steady = self._make_steady()
        except BaseException:
            self._publisher.close()
            raise
        filled_s = BUFFER_SHARE * self.buffer_bytes / FASTEST_LINK_BYTES_PER_S
        self._longest_wait = max(SHORTEST_WAIT_S, min(LONGEST_WAIT_S, filled_s))
        self._statistics = StatisticsLine(config, self._registry(program), self._pairs)

    def _make_steady(self) -> SteadyFrames | None:
        """Return the compiled loop; None without the extra `udp`, when all packets need more CPU time."""
        try:
            from stddaq.udp.steady_frames import SteadyFrames
        except ModuleNotFoundError as error:
            if error.name != "numba":
                raise
            advice = "packets need about twice the CPU time; pip install 'stddaq[udp]'"
            logger.warning("%s", mismatch("package numba", "it, for compiled code", "none", advice))
            return None
        steady = SteadyFrames(
            self._packets, self._socket.memory, self._assembly, self._publisher.socket.underlying
        )
        steady.compile(self._publisher.frames)
        return steady

    @property
    def port(self) -> int:
        """UDP port."""
        return self._socket.port

    @property
    def endpoint(self) -> str:
        """Where frames are announced."""
        return self._publisher.endpoint

    @property
    def buffer_bytes(self) -> int:
        """Size of the socket's buffer."""
        return self._socket.buffer_bytes

    def close(self) -> None:
        """Announce the open frames; release socket and ring."""
        self._socket.close()
        try:
            self._assembly.close()
        finally:
            self._publisher.close()

    def serve(self, stop: StopRequest) -> None:
        """Receive until asked to stop. Raise `GeometryError` or `EndpointError` if the ring is lost."""
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        poller.register(stop, select.POLLIN)
        # The same for compiled code: structures of poll(2).
        polled = np.array([each.fileno() | select.POLLIN << 32 for each in (self._socket, stop)])
        while not stop.poll():
            if self._steady is not None and self._steady.start():
                self._receive_steady(self._steady, polled)
            self._receive_queued()
            self._check()
            # Whole milliseconds, rounded up: otherwise it would wake too early, and again.
            readable = poller.poll(math.ceil(self._due_in() * 1000))
            if readable and (delay := self._assembly.next_takes) > SHORTEST_WAIT_S:
                time.sleep(min(delay, self._longest_wait))

    def _receive_steady(self, steady: SteadyFrames, polled: np.ndarray) -> None:
        """Receive by compiled code while frames arrive in order and complete, until a check is due."""
        due = min(self._check_at, time.monotonic() + self._statistics.due_in)
        wait, publisher = (SHORTEST_WAIT_S, self._longest_wait), self._publisher
        is_steady = True
        # Frames that are complete at every call must not keep it from its checks.
        while is_steady and time.monotonic() < due:
            is_steady = steady.receive(polled, due, wait, self._assembly.idle_time, publisher.frames)
            for message in steady.unannounced():
                publisher.send(message.tobytes())
            if steady.is_full:
                steady.settle()
        self._socket.count(*steady.counts())
        steady.leave(time.monotonic())
        if self._assembly.examples:
            self._keep_examples()

    def _receive_queued(self) -> None:
        """Receive until no packet is left, or a check is due."""
        receive, aim, add = self._socket.receive, self._assembly.aim, self._assembly.add
        memory = self._socket.memory
        for _ in range(CHECK_BATCHES):
            now = time.monotonic()
            place = aim()
            n = receive(place)
            payloads = memory.payloads if place is None else place
            if n:
                # Not `now`: if this process was paused since, the frame would count as idle.
                received_at = time.monotonic()
                add(memory.headers[:n], payloads[:n], memory.lengths[:n], memory.times, received_at)
                if self._assembly.examples:
                    self._keep_examples()
            if n < min(BATCH, len(payloads)):
                # All that had arrived at `now` was received.
                self._assembly.close_idle(now)
                if n:
                    self._wait(now)
                return
            if self._steady is not None and self._assembly.steady is not None:
                return

    def _wait(self, now: float) -> None:
        """Wait for the last packets of the frame, if one is open, or expected soon."""
        delay = self._assembly.complete_in(now + SHORTEST_WAIT_S)
        if delay is not None:
            time.sleep(min(max(delay, SHORTEST_WAIT_S), self._longest_wait))

    def _keep_examples(self) -> None:
        """Keep the first invalid packet of each kind with the address of its sender."""
        examples, self._assembly.examples = self._assembly.examples, {}
        for kind, (place, problem) in examples.items():
            if kind not in self._problems:
                self._problems[kind] = f"{problem}, from {self._socket.memory.sender(place)}"

    def _due_in(self) -> float:
        delay = self._statistics.due_in
        idle_in = self._assembly.idle_in(time.monotonic())
        return delay if idle_in is None else min(delay, idle_in)

    def _check(self) -> None:
        now = time.monotonic()
        if now < self._check_at:
            return
        self._check_at = now + CHECK_PERIOD_S
        self._n_subscribers = self._publisher.count_subscribers()
        self._log_problems()
        if self._statistics.write_if_due():
            self._logged.clear()

    def _log_problems(self) -> None:
        """Name each kind of problem once a period; the statistics line counts all."""
        assembly = self._assembly
        problems, self._problems = self._problems, {}
        if len(assembly.headers) and (misplaced := self._packets.misplaced(assembly.headers)):
            problems["place"] = misplaced
        for kind, problem in problems.items():
            if kind not in self._logged:
                self._logged.add(kind)
                logger.warning("module %d: UDP port %d: %s", self._module, self.port, problem)
        if assembly.n_restarts != self._n_restarts_logged:
            self._n_restarts_logged = assembly.n_restarts
            event("the ids of module %d restart (restart %d)", self._module, assembly.n_restarts)

    def _registry(self, program: str) -> Registry:
        registry = Registry(self._config.detector_name, program, str(self._module))
        assembly, bad = self._assembly, self._assembly.n_bad
        registry.add(metrics.PACKETS_RECEIVED, lambda: assembly.n_packets)
        registry.add(metrics.PACKETS_MISSING, lambda: assembly.n_missing)
        registry.add(metrics.PACKETS_DROPPED, lambda: self._socket.n_dropped)
        registry.add(metrics.RECEIVE_CALLS, lambda: self._socket.n_calls)
        registry.add(metrics.FRAMES_ANNOUNCED, lambda: assembly.n_frames)
        registry.add(metrics.FRAMES_CORRUPTED, lambda: assembly.n_corrupted)
        registry.add(metrics.IDS_RESTARTED, lambda: assembly.n_restarts)
        registry.add(metrics.PACKETS_REJECTED, lambda: assembly.n_late, reason="late")
        registry.add(metrics.PACKETS_REJECTED, lambda: assembly.n_repeated, reason="repeated")
        for kind in self._packets.kinds:
            registry.add(
                metrics.PACKETS_REJECTED, functools.partial(bad.__getitem__, kind), reason=f"bad_{kind}"
            )
        return registry

    def _pairs(self, period: Period) -> Mapping[str, object]:
        """Return the pairs of the statistics line, counts of the period; first those of std_daq (C++)."""
        count, rejected = period.count, metrics.PACKETS_REJECTED
        n_calls = count(metrics.RECEIVE_CALLS)
        n_datagrams = count(metrics.PACKETS_RECEIVED) + sum(
            count(rejected, reason=f"bad_{kind}") for kind in self._packets.kinds
        )
        return {
            "module_id": self._module,
            **period.rate(metrics.PACKETS_RECEIVED),
            "frames_counter": count(metrics.FRAMES_ANNOUNCED),
            "n_corrupted_frames": count(metrics.FRAMES_CORRUPTED),
            "n_missed_packets": count(metrics.PACKETS_MISSING),
            "n_dropped_by_kernel": count(metrics.PACKETS_DROPPED),
            "n_late": count(rejected, reason="late"),
            "n_repeated": count(rejected, reason="repeated"),
            **{f"n_bad_{kind}": count(rejected, reason=f"bad_{kind}") for kind in self._packets.kinds},
            "n_restarts": count(metrics.IDS_RESTARTED),
            "n_subscribers": self._n_subscribers,
            "packets_per_call": n_datagrams / n_calls if n_calls else 0.0,
            "socket_buffer_bytes": self.buffer_bytes,
        }


def _main(program: str, types: Sequence[DetectorType], argv: Sequence[str] | None) -> int:
    parser = UdpArgumentParser(program, f"Receive the UDP packets of one module of a detector ({types[0]}).")
    parser.add_config()
    parser.add_module()
    parser.add_argument(
        "--address",
        type=ipv4_address,
        default="0.0.0.0",
        metavar="ADDRESS",
        help="IPv4 address to listen on (default: all)",
    )
    parser.add_argument(
        "--idle-time",
        type=Seconds(60),
        metavar="S",
        help="seconds after its last packet when an incomplete frame is closed "
        "(default: 0.01 and one frame period)",
    )
    parser.add_argument(
        "--socket-buffer",
        type=IntegerRange(4096, 2**30),
        default=SOCKET_BUFFER_BYTES,
        metavar="BYTES",
        help=f"size of the socket's buffer (default: {SOCKET_BUFFER_BYTES})",
    )
    if types[0] == "gigafrost":
        parser.add_argument(
            "--do-not-store-bit",
            type=int,
            choices=(0, 15),
            default=15,
            help="bit of the image status that means 'do not store' (default: 15)",
        )
    code = run(parser, functools.partial(_serve, program, types), argv)
    # At its exit the interpreter would visit every object of the compiler, which takes 0.5 s.
    gc.freeze()
    return code


def _serve(
    program: str,
    types: Sequence[DetectorType],
    config: DetectorConfig,
    args: argparse.Namespace,
    stop: StopRequest,
) -> None:
    where, module = args.detector_json_filename, args.module_id
    if config.detector_type not in types:
        expected = f"{' or '.join(types)} for {program}"
        raise ConfigError(mismatch(f"{where}: detector_type", expected, config.detector_type))
    port = config.start_udp_port + module
    if port > 65535:
        raise ConfigError(mismatch(f"{where}: start_udp_port + module_id", "at most 65535", f"{port}"))
    packets = packets_of(config, module, do_not_store_bit=getattr(args, "do_not_store_bit", 15))
    receiver = ModuleReceiver(
        config,
        module,
        packets,
        (args.address, port),
        program=program,
        buffer_bytes=args.socket_buffer,
        idle_time=args.idle_time,
    )
    try:
        granted = receiver.buffer_bytes
        if granted < args.socket_buffer:
            logger.warning(
                "socket buffer: expected %d bytes, got %d (net.core.rmem_max is %d); packets may be lost",
                args.socket_buffer,
                granted,
                buffer_limit(),
            )
        ready(
            "module %d: UDP port %d, socket buffer of %d bytes (%d asked for), frames on %s",
            module,
            receiver.port,
            granted,
            args.socket_buffer,
            receiver.endpoint,
        )
        receiver.serve(stop)
    finally:
        receiver.close()


def main_gf(argv: Sequence[str] | None = None) -> int:
    """Run a receiver of a GigaFRoST. Return the exit code."""
    return _main("std_udp_recv_gf", ("gigafrost",), argv)


def main_eg(argv: Sequence[str] | None = None) -> int:
    """Run a receiver of an Eiger. Return the exit code."""
    return _main("std_udp_recv_eg", ("eiger",), argv)


def main_jf(argv: Sequence[str] | None = None) -> int:
    """Run a receiver of a Jungfrau. Return the exit code."""
    return _main("std_udp_recv_jf", ("jungfrau-raw", "jungfrau-converted"), argv)
