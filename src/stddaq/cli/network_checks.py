"""What the network of a server lacks to receive the packets of a detector."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from stddaq.cli.findings import CommandError, Finding, Server
from stddaq.cli.network_card import (
    card_settings,
    cores_in_file,
    local_cores,
    n_receive_queues,
    network_cards,
    pinned_services,
    port_rules,
    queue_interrupts,
    receiver_cores,
)
from stddaq.config import DetectorConfig
from stddaq.config.modules import expected_modules
from stddaq.udp.batch_socket import SOCKET_BUFFER_BYTES

# Packets of the detectors are up to 8240 bytes, and have headers.
JUMBO_MTU = 9000


def network_findings(config: DetectorConfig, server: Server) -> list[Finding]:
    """Return the findings for a detector that sends packets. Raise `ConfigError` for an unknown interface."""
    cards = network_cards(server)
    findings = [_receive_buffers(server), _packet_size(cards)]
    if not cards:
        return [*findings, Finding("receive queues", "ok", "no network card"), _interrupts(server)]
    card = _Card(config, server, cards)
    findings += [card.queues(), card.ring(), card.rules(), _interrupts(server)]
    return [*findings, card.interrupt_cores(), card.receiver_cores()]


def _receive_buffers(server: Server) -> Finding:
    name, path = "network buffers", "proc/sys/net/core/rmem_max"
    limit = server.number(path)
    if limit is None:
        return Finding(name, "advice", "net.core.rmem_max cannot be read", str(SOCKET_BUFFER_BYTES))
    if limit >= SOCKET_BUFFER_BYTES:
        return Finding(name, "ok", f"net.core.rmem_max = {limit}")
    cure = f"sysctl -w net.core.rmem_max={SOCKET_BUFFER_BYTES}"
    return Finding(name, "missing", f"net.core.rmem_max = {limit}", f"{SOCKET_BUFFER_BYTES}", cure)


def _packet_size(cards: Mapping[str, int]) -> Finding:
    name = "packet size"
    shown = ", ".join(f"{interface} has MTU {mtu}" for interface, mtu in cards.items()) or "no network card"
    if not cards or max(cards.values()) >= JUMBO_MTU:
        return Finding(name, "ok", shown)
    cure = f"ip link set dev {shlex.quote(max(cards, key=cards.__getitem__))} mtu {JUMBO_MTU}"
    expected = f"{JUMBO_MTU} on the interface of the detector"
    # Other networks may not transport packets of this size.
    return Finding(name, "advice", shown, expected, cure, is_for_all=len(cards) == 1)


def _interrupts(server: Server) -> Finding:
    """irqbalance moves interrupts of the network card to cores that receive."""
    for path in (server.root / "proc").glob("[0-9]*/comm"):
        try:
            if path.read_text().strip() == "irqbalance":
                cure = "systemctl disable --now irqbalance"
                return Finding("interrupts", "advice", "irqbalance moves them", "fixed cores", cure)
        except OSError:
            continue  # The process has ended.
    return Finding("interrupts", "ok", "irqbalance does not run")


class _Card:
    """Checks of the card that receives: the named one, or that with the largest packets."""

    def __init__(self, config: DetectorConfig, server: Server, cards: Mapping[str, int]) -> None:
        self._config, self._server = config, server
        self._name = max(cards, key=cards.__getitem__)
        # Settings of another card must not change by themselves.
        self._is_sure = len(cards) == 1
        self._n_queues = n_receive_queues(server, self._name)
        self._receivers = receiver_cores(config, server)
        # With two sets of links, the units have more receivers than an image has modules.
        self._modules = sorted({*expected_modules(config), *self._receivers})

    @property
    def _n_needed(self) -> int:
        return self._modules[-1] + 1

    @property
    def _may_interrupt(self) -> bool:
        """Some settings stop the network for a moment: not while services have ring buffers."""
        return self._is_sure and not any((self._server.root / "dev/shm").glob("*-image*"))

    def queues(self) -> Finding:
        """With a queue for the port of each module, its packets stay on the core of its receiver."""
        name, found = "receive queues", f"{self._name} has {self._n_queues}"
        if self._n_queues >= self._n_needed:
            return Finding(name, "ok", found)
        expected = f"{self._n_needed}, one for the port of each module"
        try:
            maximums = card_settings(self._server, self._name, "-l").maximums
        except CommandError as error:
            return self._not_shown(name, error)
        # Most cards have queues that both send and receive.
        kind, highest = next(((k, maximums[k]) for k in ("Combined", "RX") if maximums.get(k)), ("", 1))
        if highest < self._n_needed:
            return Finding(name, "advice", f"{found}, and {highest} at most", expected)
        cure = f"ethtool -L {shlex.quote(self._name)} {kind.lower()} {self._n_needed}"
        return Finding(name, "advice", found, expected, cure, self._may_interrupt)

    def ring(self) -> Finding:
        """The ring of the card holds packets until the kernel fetches them."""
        name = "receive ring"
        try:
            settings = card_settings(self._server, self._name, "-g")
        except CommandError as error:
            return self._not_shown(name, error)
        size, highest = settings.current.get("RX", 0), settings.maximums.get("RX", 0)
        found = f"{self._name} holds {size} packets"
        if size >= highest:
            return Finding(name, "ok", found)
        cure = f"ethtool -G {shlex.quote(self._name)} rx {highest}"
        return Finding(name, "advice", found, f"{highest}, for bursts", cure, self._may_interrupt)

    def rules(self) -> Finding:
        """The rule of each module leads the packets of its port to its queue."""
        name, card = "packet rules", shlex.quote(self._name)
        if self._n_needed > self._n_queues:
            return Finding(name, "advice", "none possible", "a receive queue for each module first")
        if self._n_queues == 1:
            return Finding(name, "ok", f"{self._name} has one queue")
        try:
            rules = port_rules(self._server, self._name)
        except CommandError as error:
            return self._not_shown(name, error)
        queues = {self._config.start_udp_port + module: module for module in self._modules}
        wrong = [rule for rule in rules if rule.port in queues and rule.queue != queues[rule.port]]
        right = {rule.port for rule in rules if rule.port in queues} - {rule.port for rule in wrong}
        if len(right) == len(queues):
            return Finding(name, "ok", f"{self._name} leads {len(queues)} ports to their queues")
        cure = [f"ethtool -K {card} ntuple on"]
        cure += [f"ethtool -U {card} delete {rule.number}" for rule in wrong]
        cure += [
            f"ethtool -U {card} flow-type udp4 dst-port {port} action {queue}"
            for port, queue in queues.items()
            if port not in right
        ]
        found = f"{self._name} leads {len(right)} of {len(queues)} ports to their queues"
        if wrong:
            found += f", {', '.join(str(rule.port) for rule in wrong)} elsewhere"
        expected = f"port {self._config.start_udp_port} to queue 0, and so on"
        return Finding(name, "advice", found, expected, " && ".join(cure), self._is_sure)

    def interrupt_cores(self) -> Finding:
        """The interrupt of a queue belongs on the core of its receiver, others where no service is pinned."""
        name, server = "interrupt cores", self._server
        interrupts = queue_interrupts(server, self._name)
        if not interrupts:
            return Finding(name, "ok", f"{self._name} has no interrupts of its queues")
        paths = {queue: f"proc/irq/{number}/smp_affinity_list" for queue, number in interrupts.items()}
        allowed = {queue: cores_in_file(server, path) for queue, path in paths.items()}
        if self._receivers:
            expected = "each on the core of its receiver, others on cores without service"
            targets = self._targets()
        else:
            expected = "a core for each queue, that of its receiver"
            targets = self._spread(allowed)
        given = {queue: targets.get(queue, targets[None]) for queue in sorted(allowed)}
        wrong = {queue: cores for queue, cores in given.items() if cores and not allowed[queue] <= cores}
        if not wrong:
            return Finding(name, "ok", f"of {len(interrupts)} queues of {self._name}")
        shown = ", ".join(f"queue {queue} on {_list(allowed[queue])}" for queue in wrong)
        cure = " && ".join(
            f"echo {_list(cores)} > {shlex.quote(str(server.root / paths[queue]))}"
            for queue, cores in wrong.items()
        )
        # Without units, the cores of the receivers are not known.
        return Finding(name, "advice", shown, expected, cure, self._is_sure and bool(self._receivers))

    def _targets(self) -> dict[int | None, frozenset[int]]:
        """Return the cores for the interrupt of each queue with a receiver; under None, those for others."""
        pinned = frozenset[int]().union(*pinned_services(self._config, self._server).values())
        return {**self._receivers, None: local_cores(self._server, self._name) - pinned}

    def _spread(self, allowed: Mapping[int, frozenset[int]]) -> dict[int | None, frozenset[int]]:
        """Return a core for the queue of each module: that of its interrupt now, unless it is shared."""
        targets: dict[int | None, frozenset[int]] = {None: frozenset()}
        used = set[int]()
        queues = [module for module in self._modules if module in allowed]
        for queue in queues:
            if len(allowed[queue]) == 1 and not allowed[queue] & used:
                targets[queue] = allowed[queue]
                used |= allowed[queue]
        cores = sorted(local_cores(self._server, self._name))
        free = [core for core in cores if core not in used] or cores
        rest = [queue for queue in queues if queue not in targets]
        return targets | {queue: frozenset({free[i % len(free)]}) for i, queue in enumerate(rest) if free}

    def receiver_cores(self) -> Finding:
        """Packets that cross to the memory of another NUMA node take longer."""
        name = "receiver cores"
        if not self._receivers:
            return Finding(name, "ok", "no unit pins a receiver")
        near = local_cores(self._server, self._name)
        far = [module for module in sorted(self._receivers) if near and not self._receivers[module] <= near]
        if not far:
            return Finding(name, "ok", f"on the NUMA node of {self._name}")
        found = f"receivers {', '.join(map(str, far))} on another NUMA node than {self._name}"
        return Finding(name, "advice", found, f"cores {_list(near)} in the deployment")

    def _not_shown(self, name: str, error: CommandError) -> Finding:
        if "not supported" in str(error).lower():
            return Finding(name, "ok", f"{self._name} has no such setting")
        return Finding(name, "advice", f"cannot be read: {error}", "ethtool, which shows it")


def _list(cores: frozenset[int]) -> str:
    """Return cores as the kernel lists them, such as `0-3,8`."""
    shown, ordered = list[str](), sorted(cores)
    for core in ordered:
        if core - 1 not in cores:
            last = core
            while last + 1 in cores:
                last += 1
            shown.append(f"{core}" if last == core else f"{core}-{last}")
    return ",".join(shown)
