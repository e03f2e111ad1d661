"""The state of the driver: one enum, and the one place that changes it."""

from __future__ import annotations

from enum import Enum, auto
from typing import cast

from stddaq.wire.driver_messages import Status
from stddaq.writing.driver.active_run import ActiveRun


class State(Enum):
    """The activity of the driver."""

    IDLE = auto()
    CHECKING_START = auto()
    """A start was admitted; its path, user and disk space are checked."""
    REPAIRING = auto()
    """A process repairs the files that the last run left open."""
    RETIRED = auto()
    """Permanently idle: the service is about to exit."""
    STARTED = auto()
    CREATING_FILE = auto()
    FILE_CREATED = auto()
    WAITING_FOR_FIRST_IMAGE = auto()
    RECORDING = auto()
    STOP = auto()
    SAVING_FILE = auto()
    FILE_SAVED = auto()
    ERROR = auto()

    @property
    def is_run(self) -> bool:
        """Whether clients see a run in this state."""
        return self not in _BETWEEN_RUNS

    @property
    def status(self) -> Status:
        """The status that clients see."""
        return cast(Status, self.name.lower()) if self.is_run else "idle"


_BETWEEN_RUNS = frozenset({State.IDLE, State.CHECKING_START, State.REPAIRING, State.RETIRED})
# `ERROR` may follow every state of a run.
_FOLLOWERS: dict[State, frozenset[State]] = {
    State.IDLE: frozenset({State.CHECKING_START, State.REPAIRING}),
    State.CHECKING_START: frozenset({State.STARTED}),
    State.REPAIRING: frozenset(),
    State.RETIRED: frozenset(),
    State.STARTED: frozenset({State.CREATING_FILE}),
    State.CREATING_FILE: frozenset({State.FILE_CREATED}),
    State.FILE_CREATED: frozenset({State.WAITING_FOR_FIRST_IMAGE, State.STOP}),
    State.WAITING_FOR_FIRST_IMAGE: frozenset({State.RECORDING, State.STOP, State.SAVING_FILE}),
    State.RECORDING: frozenset({State.STOP, State.SAVING_FILE}),
    State.STOP: frozenset({State.SAVING_FILE}),
    State.SAVING_FILE: frozenset({State.FILE_SAVED}),
    State.FILE_SAVED: frozenset(),
    State.ERROR: frozenset(),
}


class StateMachine:
    """The driver's state, and the run that it concerns.

    Attributes:
        state: changed by `enter`, `rest` and `retire` only.
        reason: why the state is `ERROR`.
        run: the run that is checked or carried out; None in the other states.
    """

    def __init__(self) -> None:
        self.state = State.IDLE
        self.reason = ""
        self.run: ActiveRun | None = None
        self._rest = State.IDLE

    @property
    def is_retiring(self) -> bool:
        """Whether no further run is admitted."""
        return self._rest is State.RETIRED

    @property
    def shown_run(self) -> ActiveRun | None:
        """The run that clients see."""
        return self.run if self.state.is_run else None

    def enter(self, state: State, reason: str = "", run: ActiveRun | None = None) -> None:
        """Change the state. `run` comes with `CHECKING_START` and stays until `rest`.

        Raise `RuntimeError`, a defect, when `state` cannot follow the current one.
        """
        follows = state in _FOLLOWERS[self.state] or (state is State.ERROR and self.state.is_run)
        if not follows:
            raise RuntimeError(f"driver: {state.name} cannot follow {self.state.name}")
        self.state, self.reason, self.run = state, reason, run or self.run

    def rest(self) -> None:
        """Return from any state to `IDLE`, or to `RETIRED`."""
        self.state, self.reason, self.run = self._rest, "", None

    def retire(self) -> None:
        """Rest in `RETIRED`: now, or after the current run."""
        self._rest = State.RETIRED
        if self.state is State.IDLE:
            self.rest()
