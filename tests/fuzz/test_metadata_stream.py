"""Every message on the metadata stream is recorded or counted as malformed."""

from __future__ import annotations

import h5py
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.processes.recording import MakeRig, Rig, assert_consistent, assert_saved, images_of
from support.tools.fuzzing import U32, U64, Health, examples, mutated

from stddaq.dataplane.metadata import ImageMetadata, parse
from stddaq.files.info import describe
from stddaq.files.reading import open_run

HEIGHT, WIDTH, IMAGE_BYTES, UINT16 = 32, 48, 32 * 48 * 2, 2
LAST_ID = 2**50
IDS = st.one_of(st.integers(0, 40), st.sampled_from([999, 1000, 1001, 2**32, 2**63, 2**64 - 2, 2**64 - 1]))


@st.composite
def valid(draw: st.DrawFn) -> bytes:
    """Generate metadata as a source sends it, of images that are not in the ring buffer."""
    message = ImageMetadata(
        image_id=draw(IDS),
        height=draw(st.sampled_from([HEIGHT, 0])),
        width=WIDTH,
        size=IMAGE_BYTES,
        dtype=UINT16,  # pyright: ignore[reportArgumentType]
        status=draw(st.integers(0, 3)),  # pyright: ignore[reportArgumentType]
        sequence=draw(st.just(0) | U64),
    )
    match draw(st.sampled_from(["gf", "jf", "eg", "pco", "none"])):
        case "gf":
            message.gf.scan_id, message.gf.scan_time, message.gf.frame_timestamp = (
                draw(U32),
                draw(U32),
                draw(U64),
            )
        case "jf":
            message.jf.daq_rec = draw(U64)
        case "eg":
            message.eg.exptime = draw(U64)
        case "pco":
            message.pco.global_timestamp_sec, message.pco.bsread_name = draw(U64), draw(st.text(max_size=50))
        case _:
            pass
    return message.SerializeToString()


@st.composite
def absurd(draw: st.DrawFn) -> bytes:
    """Generate protobuf messages with any value in any field: known, enum out of range, unknown."""
    content = draw(valid())
    for _ in range(draw(st.integers(1, 3))):
        number = draw(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 11, 50, 100, 101, 2**20]))
        if draw(st.booleans()):
            content += varint(number << 3) + varint(draw(U64))
        else:
            content += varint(number << 3 | 2) + varint(len(text := draw(st.binary(max_size=30)))) + text
    return content


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


MESSAGES = st.lists(
    st.one_of(valid(), absurd(), mutated(valid()), st.binary(max_size=40), st.just(b"\x0a" * 100_000)),
    max_size=30,
)


def is_image(message: bytes) -> bool:
    """Return whether the message announces an image of the rig."""
    found = parse(message)
    return (
        found is not None
        and found.height in (0, HEIGHT)
        and found.width in (0, WIDTH)
        and found.size in (0, IMAGE_BYTES)
        and found.dtype in (0, UINT16)
        and found.compression == 0
        and 0 <= found.status <= 3
    )


def record(rig: Rig, messages: list[bytes], start_id: int) -> None:
    """Record a run of these messages. Check that account and files show exactly the images among them."""
    ids = [ImageMetadata.FromString(message).image_id for message in messages if is_image(message)]
    recorded = [image_id for image_id in ids if image_id >= start_id]
    rig.client.stop()  # An earlier example may have failed in any state.
    rig.client.wait(["idle"], 60)
    rig.begin(start_id=start_id, overwrite=True)
    for message in messages:
        rig.source.socket.send(message)
    rig.publish(images_of([LAST_ID]))
    rig.client.wait_for(
        lambda status: status.n_received == len(recorded) + 1, 60, f"{len(recorded)} + 1 images"
    )
    account = rig.end(stop=True)
    assert_consistent(account)
    assert account["outcome"] == "file_saved", account
    assert account["count"] == len(recorded) + 1
    assert account["n_malformed"] == len(messages) - len(ids)
    assert account["n_before_start_id"] == len(ids) - len(recorded)
    assert account["n_failed"] == 0
    in_order = [*recorded, LAST_ID]
    for writer, path in enumerate(account["files"]["raw"]):
        with h5py.File(path) as file:
            rows = next(iter(file.values()))["metadata"][:]
        assert rows["image_id"].tolist() == [image_id for image_id in in_order if image_id % 2 == writer]
    with h5py.File(account["files"]["metadata"]) as file:
        rows = next(iter(file.values()))["metadata"][:]
        assert rows["image_id"].tolist() == in_order
    with open_run(rig.path("fileMaster.h5")) as run:
        assert run.image_ids.tolist() == in_order
    info = describe(rig.path("fileMaster.h5")).ids
    assert info
    # The ids of an epoch in a file rise: there, a late id starts an epoch, too.
    assert info.n_epochs > account["n_restarts"]
    if info.n_epochs == account["n_restarts"] + 1:
        assert info.n_skipped == account["n_skipped"]


@pytest.mark.slow
def test_any_message_is_an_image_or_malformed_and_the_files_hold_exactly_the_images(make_rig: MakeRig):
    rig = make_rig(driver=["-m"])
    meta_writer = rig.deployment.start("std_det_meta_writer_gf")
    images = images_of(range(30))
    assert_saved(rig.record(images, file_prefix="before"), images)
    health = Health([rig.driver, *rig.writers, meta_writer])

    @examples(15)
    @given(MESSAGES, st.sampled_from([0, 0, 0, 20, LAST_ID]))
    def messages_are_accounted_for(messages: list[bytes], start_id: int) -> None:
        record(rig, messages, start_id)
        health.check()

    messages_are_accounted_for()
    assert_saved(rig.record(images, file_prefix="after"), images)
    health.check()
