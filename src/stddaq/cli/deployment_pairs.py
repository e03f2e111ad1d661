"""Servers of one deployment file fit each other: versions, and the pairs of senders and receivers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stddaq.cli.deployment_file import CONNECTED, Instance, Play
from stddaq.config.services import FORWARDERS
from stddaq.text import mismatch

# An address without the host, which may be all interfaces for a sender, and the number of the pair.
Pair = tuple[str, str]


def pair_mistakes(path: str, plays: Sequence[Play]) -> list[str]:
    """Return in words what differs between servers that forward images to each other."""
    forwarding = [play for play in plays if any(_instances([play], *FORWARDERS))]
    mistakes = [
        mismatch(f"{path}: {play.name}: std_daq_sw_version", f"{first.version} as of {first.name}", version)
        for first, play in zip(forwarding[:1] * len(forwarding), forwarding, strict=True)
        if (version := play.version) != first.version
    ]
    for program, other in CONNECTED.items():
        peers = {_pair(instance) for _, instance in _instances(plays, other)}
        for config_file, instance in _instances(plays, program):
            port, part = pair = _pair(instance)
            # Without any, the other server has a file of its own.
            if peers and pair not in peers:
                where = f"{path}:{instance.line}: {program} {instance.number} ({config_file})"
                expected = f"{other} {f'of part {part} ' * bool(part)}with the same port"
                mistakes.append(mismatch(where, expected, f"none at port {port}"))
    return mistakes


def _instances(plays: Sequence[Play], *programs: str) -> Iterator[tuple[str, Instance]]:
    for play in plays:
        for deployment in play.deployments:
            for instance in deployment.instances:
                if instance.program in programs:
                    yield deployment.config_file, instance


def _pair(instance: Instance) -> Pair:
    address = next((word for word in instance.arguments if "://" in word), "")
    numbers = [word for word in instance.arguments if word.isdecimal()]
    return address.rpartition(":")[2], numbers[-1] if numbers else ""
