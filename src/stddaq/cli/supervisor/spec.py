"""What the supervisor knows about a service before it starts it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """One service to run: its name in the output, its command, and the endpoint that it binds when ready."""

    name: str
    command: tuple[str, ...]
    address: str
    """`ipc://PATH` or `tcp://HOST:PORT`; empty when it cannot be known."""
    may_finish: bool = False
    """Exit code 0 is the end of its work (a replay), not a crash."""
    start_up: str = ""
    """What it reads of the configuration at its start. When that changes, the service must be restarted."""
    records: bool = False
    """It takes part in runs."""
    program: str = ""
    """Its name in metrics."""
    instance_id: str | None = ""
    """Its number or port in metrics; None if it cannot be known."""
    conducts: bool = False
    """It decides when runs start. SIGUSR1 makes it exit after the run in progress."""

    @property
    def group(self) -> str:
        """Services of one group (`writer 0`, `writer 1`) end together."""
        return self.name.partition(" ")[0]
