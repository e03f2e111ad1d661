"""The compressor between the source and a run is killed or hangs."""

from __future__ import annotations

import signal

import numpy as np
import pytest
from support.assertions.faults import SMALL
from support.processes.deployment import Service, wait_until
from support.processes.recording import Image, MakeRig, Rig, assert_saved, images_of
from support.tools.fault_table import Seen

SUFFIX = "h5bitshuffle-lz4"
N_SLOTS = 1000


def make_compressing_rig(make_rig: MakeRig) -> tuple[Rig, Service]:
    rig = make_rig(driver=["-s", SUFFIX], writers=False, **SMALL)
    rig.writers = [rig.deployment.start("std_det_writer", i, "-s", SUFFIX) for i in range(2)]
    return rig, start_compressor(rig)


def start_compressor(rig: Rig) -> Service:
    """Start a compressor. Return when source, compressor and driver are connected."""
    started = rig.deployment.start("std_data_compress_h5bitshuffle_lz4", "-t", 2)
    assert rig.source.wait_for_subscribers(1, 60)
    started.wait_for_line("n_subscribers=1")
    return started


def begin(rig: Rig, n_images: int, prefix: str = "file") -> None:
    rig.client.start(rig.directory, n_image=n_images, file_prefix=prefix)
    rig.client.wait_until_ready(60)


@pytest.mark.fault(
    fault="compressor: SIGKILL, restarted",
    state="recording",
    promise="the run continues; images that it did not compress are listed as skipped; none is wrong",
)
def test_a_run_continues_when_the_compressor_is_killed_and_restarted(make_rig: MakeRig, seen: Seen):
    rig, compressor = make_compressing_rig(make_rig)
    images = images_of(range(150), shape=rig.config.image_shape)
    begin(rig, 100)
    rig.publish(images[:50])
    rig.wait_for_count(50)
    compressor.kill()
    wait_until(lambda: rig.source.count_subscribers() == 0, what="the end of the compressor")
    rig.publish(images[50:100])
    start_compressor(rig)
    rig.publish(images[100:])
    account = rig.end()
    assert_saved(account, [*images[:50], *images[100:]])
    assert account["skipped"] == [[50, 99]]
    seen(
        f"{account['outcome']}; {account['n_good']} of {account['count']} images good in the files, "
        f"{account['n_skipped']} skipped"
    )


@pytest.mark.fault(
    fault="compressor: SIGSTOP, after 1.4 rings SIGCONT",
    state="recording",
    promise="each image that it missed is named, and has status 3 and no pixels; the next run is perfect",
)
def test_images_that_were_overwritten_while_a_compressor_hung_are_named(make_rig: MakeRig, seen: Seen):
    rig, compressor = make_compressing_rig(make_rig)
    images = images_of(range(1400), shape=rig.config.image_shape)
    begin(rig, 1400)
    compressor.send(signal.SIGSTOP)
    rig.publish(images)
    compressor.send(signal.SIGCONT)
    account = rig.end()
    # A writer that lags behind the compressor may find the slots of some damaged images overwritten too.
    named = {*account["damaged_ids"], *account["overwritten_ids"]}
    # The source overwrote these, or may have done so in the meantime.
    missed = named | set(range(1400 - N_SLOTS))
    assert named == missed
    assert (account["n_failed"], account["n_dropped"]) == (0, 0)
    nothing = np.zeros(rig.config.image_shape, rig.config.dtype)
    assert_saved(account, [Image(i.image_id, nothing, 3) if i.image_id in missed else i for i in images])
    seen(f"file_saved; {account['n_good']} of 1400 good, {len(missed)} missed, 400 of them overwritten")
    begin(rig, 100, "next")
    following = images_of(range(2000, 2100), shape=rig.config.image_shape)
    rig.publish(following)
    assert_saved(rig.end(), following)
    seen("next run perfect")
