"""A driver has left when its connection stays lost, with a fake clock."""

from __future__ import annotations

from stddaq.writing.writer.driver_presence import DRIVER_ABSENCE_S, DriverPresence


def test_a_driver_that_has_not_connected_yet_is_not_lost():
    presence = DriverPresence()
    assert not presence.is_lost
    assert not presence.update(connected=True)


def test_a_lost_driver_has_left_after_the_time_of_absence():
    now = [100.0]
    presence = DriverPresence(lambda: now[0])
    presence.update(connected=True)
    presence.update(connected=False)
    assert presence.is_lost
    assert not presence.has_left
    now[0] += DRIVER_ABSENCE_S
    assert presence.has_left


def test_a_driver_that_reconnects_is_noticed_once():
    presence = DriverPresence()
    presence.update(connected=False)
    assert presence.update(connected=True)
    assert not presence.is_lost
    assert not presence.update(connected=True)
