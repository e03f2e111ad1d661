"""Messages of the metadata stream that are lost on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import zmq
from support.accounts import check_run
from support.fault_table import Seen
from support.faults import SMALL
from support.foreign import ForeignSource
from support.runs import MakeRig, images_of

from stddaq.acquisition.publisher import ImagePublisher

N_IMAGES = 200
LOST = {*range(20, 23), 50, *range(100, 140), 197}


@contextmanager
def losing(source: ImagePublisher) -> Iterator[None]:
    """While it lasts, announcements reach nobody. The images are in the ring all the same."""
    socket = source.socket
    with zmq.Context() as context, context.socket(zmq.PUB) as nowhere:
        source.socket = nowhere
        yield
        source.socket = socket


@pytest.mark.fault(
    fault="45 of 200 metadata messages lost on the way",
    state="recording",
    promise="each is counted as lost and listed as skipped",
)
def test_every_lost_message_is_counted_and_listed(make_rig: MakeRig, seen: Seen):
    rig = make_rig(**SMALL)
    images = images_of(range(N_IMAGES), shape=rig.config.image_shape)
    rig.begin(n_image=N_IMAGES - len(LOST))
    for image in images:
        if image.image_id in LOST:
            with losing(rig.source):
                rig.publish([image])
        else:
            rig.publish([image])
    account = rig.end()
    assert account["n_lost"] == len(LOST) == account["n_skipped"]
    checked = check_run(account, images, undelivered=LOST, due=0)
    assert checked.n_good == N_IMAGES - len(LOST)
    seen(f"file_saved; {checked}, {account['n_lost']} known as lost")


@pytest.mark.fault(
    fault="45 of 200 metadata messages of a source of others lost on the way",
    state="recording",
    promise="each is listed as skipped",
)
def test_every_lost_message_of_a_source_of_others_is_listed(make_rig: MakeRig, seen: Seen):
    rig = make_rig(**SMALL)
    images = images_of(range(N_IMAGES), shape=rig.config.image_shape)
    source = rig.enter(ForeignSource(rig.deployment.config))
    source.wait_for_subscriber()
    rig.client.start(rig.directory, n_image=N_IMAGES - len(LOST))
    rig.client.wait_until_ready(10)
    for image in images:
        source.ring.write(image.image_id, image.pixels)
        if image.image_id not in LOST:
            source.announce(source.message(image.image_id))
    account = rig.end()
    checked = check_run(account, images, undelivered=LOST, numbered=False, due=0)
    assert checked.n_good == N_IMAGES - len(LOST)
    seen(f"file_saved; {checked}")
