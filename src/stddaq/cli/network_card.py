"""The network card that receives packets: its interrupts, rings and rules, and the cores of its receivers.

Everything is read from the files of the kernel, from `ethtool`, and from the units of the services.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stddaq.cli.findings import Server
from stddaq.config import DetectorConfig
from stddaq.config.services import RECEIVERS
from stddaq.errors import ConfigError
from stddaq.text import mismatch

_CARDS = "sys/class/net"
# Names that drivers give to the interrupt of a receive queue: eth1-TxRx-3, i40e-eth1-rx-3, virtio2-input.3,
# mlx5_comp3@pci:0000:3b:00.0.
_QUEUE = re.compile(r"(?:rx|input|comp|fp)[-_.]?(\d+)(?:@\S+)?$", re.IGNORECASE)
_CORES = re.compile(r"(\d+)(?:-(\d+))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Settings:
    """What `ethtool -g` and `-l` show: numbers by name, without those that the card has not."""

    maximums: Mapping[str, int]
    current: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule that leads the packets of one UDP port somewhere.

    Attributes:
        queue: that it leads them to; None if the packets get lost, or go to another machine.
    """

    number: int
    port: int
    queue: int | None


def network_cards(server: Server) -> dict[str, int]:
    """Return the MTU of each network card by its name, or of the named interface alone.

    Raise `ConfigError` if there is no such interface.
    """
    found, directory = {}, server.root / _CARDS
    interfaces = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    if server.interface and server.interface not in interfaces:
        raise ConfigError(mismatch("--interface", f"one of {', '.join(interfaces)}", server.interface))
    for name in interfaces:
        mtu = server.number(f"{_CARDS}/{name}/mtu")
        # A bond or a VLAN is no card, but may be named.
        is_card = name == server.interface if server.interface else (directory / name / "device").exists()
        if mtu is not None and is_card:
            found[name] = mtu
    return found


def n_receive_queues(server: Server, card: str) -> int:
    """Return the number of receive queues that are in use."""
    return len(list((server.root / _CARDS / card / "queues").glob("rx-*")))


def queue_interrupts(server: Server, card: str) -> dict[int, int]:
    """Return the interrupt of each receive queue; none for a card without interrupts of its own."""
    device = (server.root / _CARDS / card / "device").resolve()
    # Those of a virtual card belong to the device above it.
    own = {path.name for above in (device, device.parent) for path in (above / "msi_irqs").glob("*")}
    found: dict[int, int] = {}
    for line in (server.text("proc/interrupts") or "").splitlines():
        number, _, rest = line.strip().partition(":")
        name = rest.split()[-1] if rest.split() else ""
        if not number.isdecimal() or (number not in own if own else card not in name):
            continue
        queue = _QUEUE.search(name) or re.search(rf"{re.escape(card)}[-.](\d+)$", name)
        if queue is not None:
            found.setdefault(int(queue[1]), int(number))
    return found


def cores_in(text: str) -> frozenset[int]:
    """Return the cores of a list such as `0-3,8`."""
    ranges = (_CORES.fullmatch(part) for part in re.split(r"[,\s]+", text.strip()))
    return frozenset(core for one in ranges if one for core in range(int(one[1]), int(one[2] or one[1]) + 1))


def cores_in_file(server: Server, path: str) -> frozenset[int]:
    """Return the cores that a file of the kernel lists; none without the file."""
    return cores_in(server.text(path) or "")


def pinned_services(config: DetectorConfig, server: Server) -> dict[Path, frozenset[int]]:
    """Return the cores of each unit of the detector that has some."""
    units = (server.root / "etc/systemd/system").glob(f"std_daq-{config.detector_name}-*.service")
    found = {unit: re.findall(r"(?m)^CPUAffinity=(.+)$", unit.read_text()) for unit in units}
    return {unit: cores_in(lines[-1]) for unit, lines in found.items() if lines}


def receiver_cores(config: DetectorConfig, server: Server) -> dict[int, frozenset[int]]:
    """Return the cores of each receiver of packets that is pinned, by the number of its module."""
    found = {}
    program = RECEIVERS.get(config.detector_type, "")
    for unit, cores in pinned_services(config, server).items():
        command = re.search(r"(?m)^ExecStart=(.+)$", unit.read_text())
        if f"-{program}-" in unit.name and command is not None:
            numbers = [word for word in shlex.split(command[1]) if word.isdecimal()]
            if numbers:
                found[int(numbers[-1])] = cores
    return found


def local_cores(server: Server, card: str) -> frozenset[int]:
    """Return the cores of the NUMA node of a card; all of them if the machine has no nodes."""
    node = server.number(f"{_CARDS}/{card}/device/numa_node")
    path = "online" if node is None else f"node/node{node}/cpulist"
    found = cores_in_file(server, f"sys/devices/system/{'cpu/' * (node is None)}{path}")
    return found or cores_in_file(server, "sys/devices/system/cpu/online")


def card_settings(server: Server, card: str, option: str) -> Settings:
    """Return what `ethtool OPTION` shows. Raise `CommandError`."""
    maximums, _, current = server.shown_by("ethtool", option, card).partition("Current hardware settings")
    numbers = (re.findall(r"(?m)^([\w -]+):\s+(\d+)\s*$", text) for text in (maximums, current))
    return Settings(*({name: int(value) for name, value in found} for found in numbers))


def port_rules(server: Server, card: str) -> list[Rule]:
    """Return the rules for single UDP ports. Raise `CommandError`."""
    _, *filters = re.split(r"(?m)^Filter: ", server.shown_by("ethtool", "-n", card))
    rules = []
    for text in filters:
        port = re.search(r"Dest port: (\d+) mask: 0x0\s", text)
        queue = re.search(r"Action: Direct to queue (\d+)", text)
        if "UDP over IPv4" in text and port is not None:
            rules.append(Rule(int(text.split()[0]), int(port[1]), int(queue[1]) if queue else None))
    return rules
