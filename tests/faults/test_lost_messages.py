"""Messages of the metadata stream are lost in transit."""

from __future__ import annotations

import pytest
from support.assertions.accounts import check_run
from support.assertions.faults import SMALL
from support.peers.cpp_services import CppSource
from support.processes.recording import Image, MakeRig, Rig, images_of
from support.tools.fault_table import Seen

from stddaq.dataplane.ring_buffer import RingBuffer

N_IMAGES = 200
LOST = {*range(20, 23), 50, *range(100, 140), 197}


def begin_run(rig: Rig) -> list[Image]:
    """Start a run of the images whose announcements arrive. Return all images to publish."""
    rig.client.start(rig.directory, n_image=N_IMAGES - len(LOST))
    rig.client.wait_until_ready(60)
    return images_of(range(N_IMAGES), shape=rig.config.image_shape)


@pytest.mark.fault(
    fault="45 of 200 metadata messages lost in transit",
    state="recording",
    promise="each is counted as dropped and listed as skipped",
)
def test_every_lost_message_is_counted_and_listed(make_rig: MakeRig, seen: Seen):
    rig = make_rig(**SMALL)
    rig.wait_for_subscription()
    images = begin_run(rig)
    # The ring numbers these images although they are not announced.
    unannounced: RingBuffer = rig.enter(RingBuffer(rig.config, "image"))
    for image in images:
        if image.image_id in LOST:
            unannounced.begin(image.image_id)[:] = image.pixels.tobytes()
            unannounced.commit(image.image_id)
        else:
            rig.publish([image])
    account = rig.end()
    assert account["n_dropped"] == len(LOST) == account["n_skipped"]
    checked = check_run(account, images, undelivered=LOST, due=0)
    assert checked.n_good == N_IMAGES - len(LOST)
    seen(f"file_saved; {checked}, {account['n_dropped']} counted as dropped")


@pytest.mark.fault(
    fault="45 of 200 metadata messages of a third-party source lost in transit",
    state="recording",
    promise="each is listed as skipped",
)
def test_every_lost_message_of_a_third_party_source_is_listed(make_rig: MakeRig, seen: Seen):
    rig = make_rig(**SMALL)
    source = rig.enter(CppSource(rig.deployment.config))
    source.wait_for_subscriber()
    images = begin_run(rig)
    for image in images:
        source.ring.write(image.image_id, image.pixels.tobytes())
        if image.image_id not in LOST:
            source.announce(source.message(image.image_id))
    account = rig.end()
    checked = check_run(account, images, undelivered=LOST, numbered=False, due=0)
    assert checked.n_good == N_IMAGES - len(LOST)
    seen(f"file_saved; {checked}")
