"""The services that end and start when the configuration changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stddaq.cli.supervisor.change import Change, plan_change
from stddaq.cli.supervisor.spec import ServiceSpec

SOURCE = ServiceSpec("replay", ("replay",), "", may_finish=True, records=True)
STREAM = ServiceSpec("live_stream a", ("live",), "")
DRIVER = ServiceSpec("driver", ("driver",), "", conducts=True)
WRITERS = [ServiceSpec(f"writer {i}", ("writer",), "", records=True) for i in range(2)]
ALL = [SOURCE, STREAM, DRIVER, *WRITERS]


def names(specs: Sequence[ServiceSpec]) -> list[str]:
    return [spec.name for spec in specs]


def steps(change: Change) -> tuple[list[str], list[str], list[str]]:
    return names(change.retiring), names(change.ending), names(change.starting)


def test_nothing_changes_when_all_services_are_the_same():
    assert not plan_change(ALL, ALL)


def test_a_service_that_takes_no_part_in_runs_is_replaced_while_the_driver_keeps_running():
    changed = [replace(spec, start_up="other") if spec is STREAM else spec for spec in ALL]
    assert steps(plan_change(ALL, changed)) == ([], ["live_stream a"], ["live_stream a"])


def test_the_driver_retires_before_a_service_of_runs_is_replaced():
    changed = [replace(spec, start_up="other") if spec is WRITERS[1] else spec for spec in ALL]
    ending = ["driver", "writer 1"]
    assert steps(plan_change(ALL, changed)) == (["driver"], ending, ending)


def test_the_driver_retires_before_a_service_of_runs_joins_or_leaves():
    fewer = ALL[:-1]
    assert steps(plan_change(ALL, fewer)) == (["driver"], ["driver", "writer 1"], ["driver"])
    assert steps(plan_change(fewer, ALL)) == (["driver"], ["driver"], ["driver", "writer 1"])


def test_a_finished_replay_does_not_run_again():
    changed = [replace(spec, start_up="other") if spec is SOURCE else spec for spec in ALL]
    assert not plan_change(ALL, changed, finished={"replay"})
    assert plan_change(ALL, changed)


def test_a_finished_replay_that_is_no_longer_configured_is_removed():
    assert steps(plan_change(ALL, ALL[1:], finished={"replay"}))[1] == ["replay", "driver"]


def test_a_service_that_is_down_is_started_again_even_if_it_has_not_changed():
    assert steps(plan_change(ALL, ALL, down={"live_stream a"})) == ([], ["live_stream a"], ["live_stream a"])
