"""The images that a source publishes, by its state and the requests of clients; without sockets."""

from __future__ import annotations

import numpy as np
import pytest

from stddaq.sources.image_ids import ImageIds
from stddaq.sources.plan import ImagePlan
from stddaq.wire.simulator_messages import RequestError


def make_plan(
    n_images: int | None = 100, free_running: bool = False, first: int = 0, skip_every: int | None = None
) -> ImagePlan:
    return ImagePlan(ImageIds(first, skip_every=skip_every), n_images, free_running)


def publish(plan: ImagePlan, n: int) -> list[int]:
    published: list[int] = []
    for _ in range(n):
        published.append(plan.next_id)
        plan.advance()
    return published


def test_trigger_adds_images_and_returns_their_ids() -> None:
    plan = make_plan(first=7)
    assert plan.n_wanted == 0
    assert plan.trigger(3) == (7, 3)
    assert plan.trigger(2) == (10, 2)
    assert publish(plan, plan.n_wanted) == [7, 8, 9, 10, 11]
    assert plan.n_wanted == 0


def test_trigger_is_limited_to_the_images_left_and_then_refused() -> None:
    plan = make_plan(n_images=4)
    assert plan.trigger(10) == (0, 4)
    with pytest.raises(RequestError, match="trigger: expected a source with images left"):
        plan.trigger(1)


def test_free_running_source_wants_all_images_and_refuses_triggers() -> None:
    plan = make_plan(n_images=4, free_running=True)
    assert plan.n_wanted == 4
    with pytest.raises(
        RequestError, match="expected a stopped source, got a free-running one; stop it first"
    ):
        plan.trigger(1)


def test_start_and_stop_discard_triggered_images() -> None:
    plan = make_plan()
    plan.trigger(5)
    plan.start()
    plan.stop()
    assert plan.n_wanted == 0


def test_source_without_a_limit_publishes_any_number_of_images() -> None:
    plan = make_plan(n_images=None, free_running=True)
    publish(plan, 5)
    assert plan.n_limit is None
    assert (plan.n_published, plan.n_wanted > 2**62) == (5, True)


def test_rearm_starts_an_epoch_with_the_same_gaps() -> None:
    plan = make_plan(skip_every=2)
    plan.trigger(3)
    assert publish(plan, 3) == [0, 2, 4]
    plan.rearm(10, last_id=100)
    plan.trigger(2)
    assert publish(plan, 2) == [10, 12]
    assert plan.n_restarts == 1


def test_rearm_is_refused_with_pending_images_and_with_impossible_ids() -> None:
    plan = make_plan()
    with pytest.raises(RequestError, match="first_id: expected 0 to 100 for this detector, got 101"):
        plan.rearm(101, last_id=100)
    plan.trigger(3)
    with pytest.raises(RequestError, match="rearm: expected no pending images, got 3 triggered images"):
        plan.rearm(0, last_id=100)


def test_rearm_is_refused_when_ids_come_from_a_file() -> None:
    plan = ImagePlan(ImageIds(listed=np.array([3, 1], np.uint64)), None, free_running=False)
    with pytest.raises(RequestError, match="rearm: expected a source that counts its ids"):
        plan.rearm(0, last_id=100)
