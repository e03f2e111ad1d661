"""Steps of the tests of faults: bring a run into a state, wait for its error, record the next run."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

import pytest
from support.assertions.accounts import Checked, check_perfect
from support.processes.deployment import Service, wait_until
from support.processes.machine import assert_within
from support.processes.recording import Image, Publishing, Rig, images_of

from stddaq.client import RunFailedError

PROMISED_S = 2.0
KILL_OR_STOP = [signal.SIGKILL, signal.SIGSTOP]
State = Literal["waiting_for_first_image", "recording", "saving_file"]
STATES: list[State] = ["waiting_for_first_image", "recording", "saving_file"]
# A master file over this many irregular gaps takes long enough to be interrupted.
N_GAPS = 4000
# Few enough images to fit into the ring, whatever their gaps.
BATCH = 300
# Images recorded before a fault in the state `recording`.
N_IMAGES = 200
UNENDING = 10**6
# Small images are published and compared quickly.
SMALL = {"image_pixel_height": 8, "image_pixel_width": 16}


def bring_to(rig: Rig, state: State, begin: Callable[[int], object] | None = None) -> list[Image]:
    """Start a run and publish until it is in `state`. Return the published images.

    In `saving_file` writer 0 and its child, which makes the master file, are stopped until `release`. `begin`
    starts a run of a given number of images and waits until it records; by default the rig's own client does.
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

    def is_in_the_making() -> bool:
        assert not rig.path("fileMaster.h5").exists(), (
            "the master file was finished before the test could stop it"
        )
        return bool(makers_of_master(rig))

    wait_until(is_in_the_making, 30, "the master file in the making")
    rig.writers[0].send(signal.SIGSTOP)
    for pid in makers_of_master(rig):
        os.kill(pid, signal.SIGSTOP)
    return images


def makers_of_master(rig: Rig) -> list[int]:
    """Return the child of writer 0 that makes the master file; the name of its temporary file has the pid."""
    return [int(path.suffix[1:]) for path in rig.directory.glob(".fileMaster.h5.*")]


def release(rig: Rig) -> None:
    """Let writer 0 finish the master file."""
    for pid in makers_of_master(rig):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    rig.writers[0].send(signal.SIGCONT)


def irregular_ids(n: int) -> list[int]:
    """Return rising ids with random gaps: a master file needs a mapping for almost each of them."""
    steps = random.Random(1)
    return list(itertools.accumulate(steps.randint(1, 3) for _ in range(n)))


def count_of(rig: Rig) -> int:
    """Return the driver's count. It is requested, because status messages come only ten times a second."""
    return rig.client.status().count or 0


def wait_for_error(rig: Rig, within: float = PROMISED_S) -> tuple[dict[str, Any], float]:
    """Wait for the run to end as an error. Return its account and the seconds that this took."""
    begin = time.monotonic()
    with pytest.raises(RunFailedError):
        rig.client.wait_until_saved(30)
    seconds = time.monotonic() - begin
    assert_within(seconds, within)
    rig.client.wait(["idle"], 20)
    account = rig.account()
    assert account["outcome"] == "error"
    assert "keep up" not in account["reason"], "a dead writer was reported as a slow one"
    return account, seconds


def record_under_load(rig: Rig, prefix: str = "next", n_images: int = 100) -> Checked:
    """Record a run, which must be perfect, from a source that publishes all the time."""
    with Publishing(rig, first_id=10**6) as source:
        return record_from(rig, source, prefix, n_images)


def record_from(rig: Rig, source: Publishing, prefix: str = "next", n_images: int = 100) -> Checked:
    """Record a run of `n_images`, which must be perfect, while `source` publishes."""
    rig.client.start(rig.directory, file_prefix=prefix, n_image=n_images)
    rig.client.wait_until_ready(30)
    due = source.next_id + 1  # The image before may have been published before the run recorded.
    rig.client.wait_until_saved(20)
    account = rig.account()
    assert account["count"] == n_images
    return check_perfect(account, published_so_far(source, account), due=due)


def published_so_far(source: Publishing, account: dict[str, Any]) -> list[Image]:
    """Return the published images, at least up to the last image of a run."""
    last = account["last_id"]
    if last is not None:
        wait_until(
            lambda: source.images and source.images[-1].image_id >= last, what="the last image of the run"
        )
    return source.images[:]


def in_seconds(action: Callable[[], Any]) -> float:
    """Return how many seconds an action takes."""
    begin = time.monotonic()
    action()
    return time.monotonic() - begin


def end_in_time(service: Service, signal_number: int = signal.SIGTERM) -> float:
    """Terminate a service: exit code 0 within 2 s, and nothing on standard error. Return the seconds."""
    seconds = in_seconds(lambda: service.send(signal_number) or service.wait())
    assert service.returncode == 0, service.output
    assert_within(seconds, PROMISED_S)
    assert service.stderr == []
    return seconds


def first_sentence(account: dict[str, Any]) -> str:
    """Return the reason of an error, shortened for the table."""
    return account["reason"].split(";")[0]
