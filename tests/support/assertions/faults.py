"""Steps of the tests of faults: bring a run into a state, wait for its error, do the next run."""

from __future__ import annotations

import itertools
import random
import signal
import time
from collections.abc import Callable
from typing import Any, Literal

import pytest
from support.assertions.accounts import Checked, check_perfect
from support.processes.deployment import Service, wait_until
from support.processes.recording import Image, Publishing, Rig, images_of

from stddaq.client import RunFailedError

PROMISED_S = 2.0
KILL_OR_STOP = [signal.SIGKILL, signal.SIGSTOP]
State = Literal["waiting_for_first_image", "recording", "saving_file"]
STATES: list[State] = ["waiting_for_first_image", "recording", "saving_file"]
# The master file of so many ids with irregular gaps takes a while: long enough to be hit in the middle.
N_GAPS = 4000
# Images that span less than the ring, whatever their gaps.
BATCH = 300
# What is recorded before a fault in the state `recording`.
N_IMAGES = 200
UNENDING = 10**6
# Small, so that so many are published and compared quickly.
SMALL = {"image_pixel_height": 8, "image_pixel_width": 16}


def bring_to(rig: Rig, state: State, begin: Callable[[int], object] | None = None) -> list[Image]:
    """Start a run and publish until it is in `state`. Returns what was published.

    In `saving_file` writer 0 is stopped while it makes the master file, until `release`. `begin` starts a run
    of so many images and waits until it records; without, the rig's own client does.
    """
    shape = rig.config.image_shape
    begin = begin or (lambda n_image: rig.begin(n_image=n_image))
    if state == "waiting_for_first_image":
        begin(UNENDING)
        return []
    if state == "recording":
        images = images_of(range(N_IMAGES), shape=shape)
        begin(UNENDING)
        rig.publish(images)
        rig.wait_for_count(N_IMAGES)
        return images
    images = images_of(irregular_ids(N_GAPS), shape=shape)
    begin(N_GAPS)
    for first in range(0, N_GAPS, BATCH):
        rig.publish(images[first : min(first + BATCH, N_GAPS - 1)])
        wait_until(lambda n=first: count_of(rig) >= min(n + BATCH, N_GAPS - 1), what="images of the run")
    rig.publish(images[-1:])
    in_the_making = rig.path(f".fileMaster.h5.{rig.writers[0].pid}")

    def is_in_the_making() -> bool:
        assert not rig.path("fileMaster.h5").exists(), "the master file was made before it was noticed"
        return in_the_making.exists()

    wait_until(is_in_the_making, 30, "the master file in the making")
    rig.writers[0].send(signal.SIGSTOP)
    return images


def release(rig: Rig) -> None:
    """Let writer 0 finish the master file."""
    rig.writers[0].send(signal.SIGCONT)


def irregular_ids(n: int) -> list[int]:
    """Rising ids at distances that a seed chooses: a master file needs a mapping for almost each of them."""
    steps = random.Random(1)
    return list(itertools.accumulate(steps.randint(1, 3) for _ in range(n)))


def count_of(rig: Rig) -> int:
    """What the driver counts, asked for: it tells by itself only ten times a second."""
    return rig.client.status().count or 0


def wait_for_error(rig: Rig, within: float = PROMISED_S) -> tuple[dict[str, Any], float]:
    """The account of the run, which must end as an error within so many seconds; how many it were."""
    begin = time.monotonic()
    with pytest.raises(RunFailedError):
        rig.client.wait_until_saved(10)
    seconds = time.monotonic() - begin
    assert seconds < within
    rig.client.wait(["idle"], 1)
    account = rig.account()
    assert account["outcome"] == "error"
    assert "keep up" not in account["reason"], "a writer that is gone is not a slow one"
    return account, seconds


def record_under_load(rig: Rig, prefix: str = "next", n_images: int = 100) -> Checked:
    """A run while a source publishes all the time; it must be perfect."""
    with Publishing(rig, first_id=10**6) as source:
        return record_from(rig, source, prefix, n_images)


def record_from(rig: Rig, source: Publishing, prefix: str = "next", n_images: int = 100) -> Checked:
    """A run of `n_images` of what `source` publishes anyway; it must be perfect."""
    rig.client.start(rig.directory, file_prefix=prefix, n_image=n_images)
    rig.client.wait_until_ready(10)
    due = source.next_id + 1  # The one before may have been on its way already.
    rig.client.wait_until_saved(20)
    account = rig.account()
    assert account["count"] == n_images
    return check_perfect(account, published_so_far(source, account), due=due)


def published_so_far(source: Publishing, account: dict[str, Any]) -> list[Image]:
    """What was published, at least up to the last image of a run."""
    last = account["last_id"]
    if last is not None:
        wait_until(lambda: source.images and source.images[-1].image_id >= last, what="the last image noted")
    return source.images[:]


def in_seconds(action: Callable[[], Any]) -> float:
    """How long an action takes."""
    begin = time.monotonic()
    action()
    return time.monotonic() - begin


def end_in_time(service: Service, signal_number: int = signal.SIGTERM) -> float:
    """End a service, which must keep the promise: exit code 0 within 2 s, nothing on standard error."""
    seconds = in_seconds(lambda: service.send(signal_number) or service.wait())
    assert service.returncode == 0, service.output
    assert seconds < PROMISED_S
    assert service.stderr == []
    return seconds


def first_sentence(account: dict[str, Any]) -> str:
    """The reason of an error, as short as a table needs it."""
    return account["reason"].split(";")[0]
