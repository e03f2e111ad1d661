"""The state of the driver: allowed transitions, and the statuses for clients."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from stddaq.wire.driver_messages import RUN_STATES, StartCommand, Status
from stddaq.writing.driver.active_run import ActiveRun
from stddaq.writing.driver.start_check import PlannedFiles
from stddaq.writing.driver.state import State, StateMachine

RUN = [
    State.STARTED,
    State.CREATING_FILE,
    State.FILE_CREATED,
    State.WAITING_FOR_FIRST_IMAGE,
    State.RECORDING,
    State.SAVING_FILE,
    State.FILE_SAVED,
]


def a_run() -> ActiveRun:
    start = StartCommand(path="/data")
    return ActiveRun(start, PlannedFiles.of(start, 1, with_metadata=False))


def in_state(last: State) -> StateMachine:
    """Return a state machine in a state of a run, or just before it."""
    machine = StateMachine()
    machine.enter(State.CHECKING_START, run=a_run())
    for state in RUN[: RUN.index(last) + 1]:
        machine.enter(state)
    return machine


def test_a_run_passes_its_states_in_order():
    machine = in_state(State.FILE_SAVED)
    machine.rest()
    assert machine.state is State.IDLE


@pytest.mark.parametrize("state", RUN)
def test_no_state_of_a_run_can_be_omitted(state: State):
    machine = StateMachine()
    with pytest.raises(RuntimeError, match=f"{state.name} cannot follow IDLE"):
        machine.enter(state)
    assert machine.state is State.IDLE


@pytest.mark.parametrize("state", [*RUN, State.CHECKING_START, State.REPAIRING])
def test_only_an_idle_driver_admits_a_start_or_a_repair(state: State):
    machine = StateMachine()
    if state in RUN:
        machine = in_state(state)
    else:
        machine.enter(state)
    for asked in (State.CHECKING_START, State.REPAIRING):
        with pytest.raises(RuntimeError):
            machine.enter(asked)


@pytest.mark.parametrize("state", RUN)
def test_every_state_of_a_run_may_end_in_an_error(state: State):
    machine = in_state(state)
    machine.enter(State.ERROR, "the reason")
    assert (machine.state, machine.reason) == (State.ERROR, "the reason")
    machine.rest()
    assert (machine.state, machine.reason, machine.run) == (State.IDLE, "", None)


def test_an_idle_driver_has_no_error():
    with pytest.raises(RuntimeError):
        StateMachine().enter(State.ERROR)


@pytest.mark.parametrize("state", [State.FILE_CREATED, State.WAITING_FOR_FIRST_IMAGE, State.RECORDING])
def test_a_run_may_be_stopped_from_its_files_on(state: State):
    machine = in_state(state)
    machine.enter(State.STOP)
    machine.enter(State.SAVING_FILE)


def test_clients_see_a_run_only_after_its_check():
    machine = StateMachine()
    run = a_run()
    machine.enter(State.CHECKING_START, run=run)
    assert (machine.run, machine.shown_run, machine.state.status) == (run, None, "idle")
    machine.enter(State.STARTED)
    assert (machine.shown_run, machine.state.status) == (run, "started")


def test_every_state_has_a_status_of_the_protocol():
    seen = {state.status for state in State}
    assert seen == set(get_args(Status)) - {"rejected"}
    assert {state.status for state in RUN} | {"stop"} == set(RUN_STATES)


def test_a_retiring_driver_finishes_its_run_and_refuses_another():
    machine = in_state(State.RECORDING)
    machine.retire()
    assert (machine.state, machine.is_retiring) == (State.RECORDING, True)
    machine.enter(State.SAVING_FILE)
    machine.enter(State.FILE_SAVED)
    machine.rest()
    assert (machine.state, machine.state.status) == (State.RETIRED, "idle")
    with pytest.raises(RuntimeError):
        machine.enter(State.CHECKING_START)


def test_an_idle_driver_retires_at_once():
    machine = StateMachine()
    machine.retire()
    assert machine.state is State.RETIRED


def test_planned_files_follow_the_naming_rules():
    files = PlannedFiles.of(StartCommand(path="/data", file_prefix="scan"), 2, with_metadata=True)
    assert [path.name for path in files.all] == ["scan0.h5", "scan1.h5", "scanMeta.h5", "scanMaster.h5"]
    assert {path.parent for path in files.all} == {Path("/data")}
