"""Steps of the tests of faults: bring a run into a state, wait for its error, record the next run."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import pytest
from support.assertions.accounts import Checked, check_perfect
from support.processes.deployment import Service, wait_until
from support.processes.machine import assert_within
from support.processes.recording import Image, Publishing, Rig, images_of
from support.processes.storage import Storage

from stddaq.client import RunFailedError

PROMISED_S = 2.0
KILL_OR_STOP = [signal.SIGKILL, signal.SIGSTOP]
State = Literal["waiting_for_first_image", "recording", "saving_file"]
STATES: list[State] = ["waiting_for_first_image", "recording", "saving_file"]
# Images of a run that is interrupted while it is saved: few enough to fit into the ring, whatever their gaps.
N_GAPS = 300
# Images recorded before a fault in the state `recording`.
N_IMAGES = 200
UNENDING = 10**6
# Small images are published and compared quickly.
SMALL = {"image_pixel_height": 8, "image_pixel_width": 16}


def bring_to(rig: Rig, state: State, begin: Callable[[int], object] | None = None) -> list[Image]:
    """Start a run and publish until it is in `state`. Return the published images.

    In `saving_file` writer 0 and its child, which makes the master file, are stopped until `release`. It is
    another writer 0, whose child stops when it has written the file under its temporary name. `begin` starts
    a run of a given number of images and waits until it records; by default the rig's own client does.
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
    storage = Storage(rig.directory.parent)
    replace_writer(rig, storage, "stddaq.files.master_file:_verify")
    images = images_of(irregular_ids(N_GAPS), shape=shape)
    begin(N_GAPS)
    with storage.stopping():
        rig.publish(images)
        wait_until(lambda: any(map(is_stopped, makers_of_master(rig))), what="the master file in the making")
    rig.writers[0].send(signal.SIGSTOP)
    return images


def replace_writer(rig: Rig, storage: Storage, function: str) -> None:
    """Start another writer 0, in which `function` can block. The driver knows it."""
    # One that is ready may still have to connect, and a driver does not say that it has gone.
    rig.driver.wait_for_line("writer 0 connected")
    n_lines = len(rig.driver.stdout)
    assert rig.writers[0].end() == 0
    rig.driver.wait_for_line("writer 0 disconnected", start=n_lines)
    rig.writers[0] = storage.start(rig.deployment, function, "std_det_writer", 0)
    rig.driver.wait_for_line("writer 0 connected", start=n_lines)


def makers_of_master(rig: Rig) -> list[int]:
    """Return the child of writer 0 that makes the master file; the name of its temporary file has the pid."""
    return [int(path.suffix[1:]) for path in rig.directory.glob(".fileMaster.h5.*")]


def is_stopped(pid: int) -> bool:
    """Return whether a process is stopped by a signal."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


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
        rig.client.wait_until_saved(60)
    seconds = time.monotonic() - begin
    assert_within(seconds, within)
    rig.client.wait(["idle"], 60)
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
    rig.client.wait_until_ready(60)
    with source.spared():
        due = source.next_id + 1  # The image before may have been published before the run recorded.
        rig.client.wait_until_saved(60)
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
