"""The steps from the services that run to those that a changed configuration asks for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from stddaq.cli.supervisor.spec import ServiceSpec


@dataclass(frozen=True, slots=True)
class Change:
    """Which services end and which start, each in the order in which services end."""

    retiring: tuple[ServiceSpec, ...]
    """These exit by themselves after the run in progress, before anything else happens."""
    ending: tuple[ServiceSpec, ...]
    """All that end, including those that retire."""
    starting: tuple[ServiceSpec, ...]

    def __bool__(self) -> bool:
        return bool(self.ending or self.starting)


def plan_change(
    present: Sequence[ServiceSpec],
    wanted: Sequence[ServiceSpec],
    *,
    finished: Collection[str] = (),
    down: Collection[str] = (),
) -> Change:
    """Return the change from `present` to `wanted`.

    Services named in `finished` (replays) do not run again; those in `down` are tried again. If a service
    that takes part in runs is concerned, every service that conducts runs is restarted, too.
    """
    by_name = {spec.name: spec for spec in wanted}

    def has_to_end(spec: ServiceSpec) -> bool:
        if spec.name not in by_name:
            return True
        return spec.name not in finished and (spec.name in down or spec != by_name[spec.name])

    ending = {spec.name for spec in present if has_to_end(spec)}
    staying = {spec.name for spec in present} - ending
    joining = [spec for spec in wanted if spec.name not in staying]
    retiring: tuple[ServiceSpec, ...] = ()
    if any(spec.records for spec in (*joining, *(spec for spec in present if spec.name in ending))):
        retiring = tuple(spec for spec in present if spec.conducts)
        ending |= {spec.name for spec in retiring}
        staying -= ending
    return Change(
        retiring,
        tuple(spec for spec in present if spec.name in ending),
        tuple(spec for spec in wanted if spec.name not in staying),
    )
