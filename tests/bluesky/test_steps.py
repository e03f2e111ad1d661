"""Steps of a device: their order, and what their Status reports."""

from __future__ import annotations

import threading

import pytest
from ophyd import Device

from stddaq_ophyd.steps import Steps, StepStatus


@pytest.mark.parametrize("is_abandoned", [False, True])
def test_the_status_of_a_failed_step_ends_and_has_the_failure_unless_it_was_abandoned(is_abandoned: bool):
    """A plan that was paused before it waited for the status would otherwise wait for it for ever."""
    steps, may_fail = Steps("steps"), threading.Event()

    async def fail(status: StepStatus) -> None:
        assert may_fail.wait(60)
        raise ValueError("no image")

    status = steps.submit(fail, StepStatus(Device(name="device")))
    if is_abandoned:
        steps.abandon(status)
    may_fail.set()
    if is_abandoned:
        status.wait(60)
        assert steps.error is None
    else:
        with pytest.raises(ValueError, match="no image"):
            status.wait(60)
        assert str(steps.error) == "no image"
