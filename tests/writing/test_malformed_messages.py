"""Messages on the metadata stream that are not valid images are counted, and the run continues."""

from __future__ import annotations

from typing import Any

import pytest
from support.peers.cpp_services import CppSource
from support.processes.recording import MakeRig, Rig, assert_saved, images_of


def broken_messages(source: CppSource) -> list[bytes]:
    """Return messages that must not reach a file."""

    def changed(**fields: Any) -> bytes:
        message = source.message(5)
        for name, value in fields.items():
            setattr(message, name, value)
        return message.SerializeToString()

    return [
        b"no protobuf at all \xff\xff\xff",
        b"\x08",
        changed(height=33),
        changed(height=2**63),
        changed(width=0xFFFFFFFF),
        changed(size=2**40),
        changed(size=10),
        changed(dtype=4),
        changed(compression=1),
        source.message(5).SerializeToString() + b"\x28\x63",  # dtype 99
        source.message(5).SerializeToString() + b"\x30\x63",  # status 99
        source.message(5).SerializeToString() + b"\x38\x63",  # compression 99
    ]


@pytest.mark.fault(
    fault="malformed metadata: not protobuf, unknown enums, size larger than a slot, absurd height",
    state="waiting_for_first_image, recording",
    promise="dropped and counted; the run is perfect",
)
def test_malformed_messages_are_counted_and_the_run_continues(make_rig: MakeRig):
    rig = make_rig(driver=["-m"])
    rig.deployment.start("std_det_meta_writer_gf")
    source = rig.enter(CppSource(rig.deployment.config))
    source.wait_for_subscriber()
    images = images_of(range(30))
    broken = broken_messages(source)
    rig.client.start(rig.directory, n_image=30)
    rig.client.wait_until_ready(60)
    source.announce(broken[0])  # They may also be the first messages of a run.
    for image, message in zip(images, broken * 3, strict=False):
        source.announce(message)
        source.publish(image.image_id, image.pixels)
    account = rig.end()
    assert_saved(account, images)
    assert account["n_malformed"] == 31


def test_fields_that_a_source_leaves_unset_are_accepted(rig: Rig):
    source = rig.enter(CppSource(rig.deployment.config))
    source.wait_for_subscriber()
    images = images_of(range(4))
    rig.client.start(rig.directory, n_image=4)
    rig.client.wait_until_ready(60)
    for image in images:
        source.ring.write(image.image_id, image.pixels.tobytes())
        message = source.message(image.image_id)
        for name in ("height", "width", "dtype", "size"):
            message.ClearField(name)
        source.announce(message)
    assert_saved(rig.end(), images)


@pytest.mark.fault(
    fault="empty message on the metadata stream",
    state="waiting_for_first_image",
    promise="recorded as damaged, never as good",
)
def test_an_empty_message_is_image_0_without_a_known_status(rig: Rig):
    """Protobuf cannot distinguish it from a message with all fields unset, so it is recorded as damaged."""
    source = rig.enter(CppSource(rig.deployment.config))
    source.wait_for_subscriber()
    rig.client.start(rig.directory, n_image=1)
    rig.client.wait_until_ready(60)
    source.ring.write(0, b"\1")
    source.announce(b"")
    account = rig.end()
    assert (account["count"], account["n_good"], account["damaged_ids"]) == (1, 0, [0])
