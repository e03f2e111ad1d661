"""The action after the exit of a service, with a fake clock."""

from __future__ import annotations

import signal

from stddaq.cli.supervisor.restarts import RESTART_WINDOW_S, Restarts


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_each_restart_waits_for_the_next_delay_until_the_service_is_given_up():
    restarts = Restarts((0.5, 2.0), clock=Clock())
    decisions = [restarts.decide(1, was_ready=True) for _ in range(3)]
    assert [(d.action, d.delay) for d in decisions] == [("restart", 0.5), ("restart", 2.0), ("give up", 0.0)]
    assert decisions[0].message == "ended with exit code 1; starting it again in 0.5 s"
    assert decisions[2].message == "ended with exit code 1, 3 times within 60 s; ending"


def test_restarts_outside_the_window_do_not_count():
    clock = Clock()
    restarts = Restarts((0.5, 2.0), clock=clock)
    for _ in range(5):
        assert restarts.decide(1, was_ready=True).delay == 0.5
        clock.now += RESTART_WINDOW_S


def test_a_signal_is_named():
    decision = Restarts().decide(-signal.SIGSEGV, was_ready=True)
    assert decision.message == "was killed by SIGSEGV; starting it again in 0.5 s"


def test_a_service_that_refuses_before_all_are_ready_ends_all_at_once():
    decision = Restarts().decide(2, was_ready=False)
    assert (decision.action, decision.message) == ("refuse", "refuses to start; ending")


def test_a_service_that_refuses_later_is_restarted_once_and_then_stays_down():
    restarts = Restarts((0.5,), clock=Clock())
    assert restarts.decide(2, was_ready=True).action == "restart"
    assert restarts.decide(2, was_ready=True).action == "stay down"


def test_exit_code_0_is_a_finish_only_for_services_that_may_finish():
    assert Restarts(may_finish=True).decide(0, was_ready=True).action == "finish"
    assert Restarts().decide(0, was_ready=True).action == "restart"
    assert Restarts(may_finish=True).decide(1, was_ready=True).action == "restart"
