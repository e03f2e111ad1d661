"""`std_buffer_reader` and `std_buffer_driver`: replays of stored images, and their faults."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import zmq
from support.peers.cpp_buffer import CppBuffer
from support.processes.deployment import wait_until
from support.processes.image_buffers import ImageBufferRig, ReplayClient, Replayed
from support.processes.machine import assert_within
from support.processes.recording import DAMAGED, Image, assert_saved, image_of, images_of
from support.processes.stream_readers import StreamReader

from stddaq.buffer.leases import replayed_ranges
from stddaq.client import DriverClient
from stddaq.client.buffer_index import BufferIndex
from stddaq.config import DetectorConfig
from stddaq.wire.image_buffer import image_key
from stddaq.wire.std_daq import image_buffer_pb2 as pb

pytestmark = pytest.mark.external
FAULT = pytest.mark.fault


@pytest.fixture
def stored(buffer: ImageBufferRig) -> CppBuffer:
    """Return the store of a writer in C++, without a process."""
    return CppBuffer(buffer.files, buffer.redis.client, buffer.camera.detector_name)


def assert_replayed(replayed: Replayed, images: Sequence[Image]) -> None:
    assert replayed.ids == [image.image_id for image in images]
    for found, image in zip(replayed.images, images, strict=True):
        np.testing.assert_array_equal(found.pixels, image.pixels)
    assert replayed.result["n_sent"] == len(images)
    ids = [image.image_id for image in images] or [None]
    assert (replayed.result["first_id"], replayed.result["last_id"]) == (ids[0], ids[-1])


def account(replayed: Replayed) -> tuple[int, int, int]:
    return tuple(replayed.result[key] for key in ("n_skipped", "n_damaged", "n_overwritten"))  # type: ignore


def test_what_was_stored_is_replayed_and_recorded(buffer: ImageBufferRig, directory: Path) -> None:
    images = [*images_of(range(1000, 1005)), image_of(1005, status=DAMAGED), *images_of([2**24 - 1, 2**32])]
    buffer.source.metadata.gf.scan_id = 7
    buffer.start_writer()
    buffer.store(images)
    client = buffer.client()
    _, url = buffer.replayed.start_driver()
    buffer.replayed.start_writers()
    config = DetectorConfig.parse(buffer.replayed.config)
    files = directory / "files"
    files.mkdir()
    with StreamReader(buffer.replayed, config=config) as reader, DriverClient(url) as driver:
        driver.start(files, n_image=len(images))
        driver.wait_until_ready(timeout=60)
        replayed = client.replay(start_image_id=0)
        received = reader.receive(len(images))
        driver.wait_until_saved(timeout=60)
        result = driver.last_result()
    assert result is not None
    assert replayed.statuses == ["replaying", "finishing", "finished", "idle"]
    assert_replayed(replayed, images)
    assert account(replayed) == (0, 0, 0)
    assert [image.status for image in replayed.images] == [None] * 5 + ["missing_packets"] + [None] * 2
    for found, image in zip(received, images, strict=True):
        assert found.is_held
        assert (found.image_id, found.status) == (image.image_id, image.status)
        assert (found.metadata.gf.scan_id, found.metadata.compression) == (7, 0)
        assert found.metadata.size == len(found.content)
        np.testing.assert_array_equal(found.pixels, image.pixels)
    assert_saved(result, images)


def test_ranges(buffer: ImageBufferRig, stored: CppBuffer) -> None:
    images = images_of([*range(1000, 1020), *range(2000, 2003), 7_000_000])
    stored.store(*images)
    client = buffer.client()

    def replay(first: int, last: int | None = None) -> None:
        fields = {} if last is None else {"end_image_id": last}
        expected = [i for i in images if first <= i.image_id <= (2**60 if last is None else last)]
        replayed = client.replay(start_image_id=first, **fields)
        assert_replayed(replayed, expected)
        assert account(replayed) == (0, 0, 0)

    replay(1005)  # In the middle of a file.
    replay(0, 1002)  # Before the first.
    replay(1500, 2001)  # In a gap.
    replay(2001, 2001)
    replay(7_000_001)  # After the last.
    replay(1025, 1999)  # Nothing there.


@FAULT(
    fault="keys have expired; files are short, missing, or have other bytes",
    state="a replay",
    promise="the images are skipped and counted; no image has pixels of another",
)
def test_images_that_cannot_be_read_are_counted(buffer: ImageBufferRig, seen: Callable[[str], None]) -> None:
    images = images_of([*range(10), *range(1000, 1010), *range(2000, 2010), *range(3000, 3003)])
    buffer.start_writer()
    buffer.store(images)
    client, name = buffer.client(), buffer.camera.detector_name
    buffer.redis.client.delete(image_key(name, 3), image_key(name, 4))
    path = buffer.files / "0000000" / "1000.dat"
    with path.open("r+b") as file:
        file.truncate(buffer.record(1005).offset + 10)
    (buffer.files / "0000000" / "2000.dat").unlink()
    # Within an image, after the header of its chunk.
    record = buffer.record(3001)
    with (buffer.files / "0000000" / "3000.dat").open("r+b") as file:
        file.seek(record.offset + record.metadata.size - 8)
        file.write(b"\xa5" * 8)
    buffer.redis.client.set(image_key(name, 9), b"\xff\xff")
    replayed = client.replay(start_image_id=0)
    damaged = {9, *range(1005, 1010), *range(2000, 2010), 3001}
    assert_replayed(replayed, [i for i in images if i.image_id not in {3, 4} | damaged])
    assert account(replayed) == (2, len(damaged), 0)
    seen(f"2 skipped, {len(damaged)} damaged, all others with their own pixels")


@FAULT(
    fault="std_buffer_reader is not running",
    state="start of a replay",
    promise="an error within 2 s that names its socket; the next replay works",
)
def test_a_reader_that_does_not_answer_is_an_error(
    buffer: ImageBufferRig, stored: CppBuffer, seen: Callable[[str], None]
) -> None:
    stored.store(*images_of(range(3)))
    _, url, stream = buffer.start_driver()
    with ReplayClient(url, stream) as client:
        begin = time.monotonic()
        client.command("start", start_image_id=0)
        assert client.wait_for("error")[-1] == "error"
        assert_within(time.monotonic() - begin, 2.2)
        client.wait_for("idle")
        reason = client.command("last_result")["result"]["reason"]
        assert "expected an answer of std_buffer_reader within 1.8 s, got none" in reason
        buffer.start_reader()
        assert_replayed(client.replay(start_image_id=0), images_of(range(3)))
    seen("error within 2 s; the replay after it sent all images")


def test_a_reader_with_the_name_of_the_camera_warns_that_its_images_are_taken_for_new_ones(
    buffer: ImageBufferRig,
) -> None:
    options = ("--root_dir", buffer.root, "--db_address", buffer.redis.address)
    reader = buffer.camera.start("std_buffer_reader", *options, ready=None)
    name = buffer.camera.detector_name
    reader.wait_for_line(rf"\[warning\] detector_name: expected REPLAY-{name}, got {name}; .* for new ones")
    # The camera has the stream already.
    assert reader.wait() == 2


@FAULT(
    fault="Redis ends",
    state="a replay",
    promise="the replay ends as an error that names the address, with an exact account",
)
def test_a_database_that_is_lost_ends_the_replay(
    buffer: ImageBufferRig, stored: CppBuffer, seen: Callable[[str], None]
) -> None:
    stored.store(*images_of(range(5)))
    client = buffer.client()
    client.command("start", start_image_id=0, follow=True)
    assert [image.image_id for image in client.receive(5)] == list(range(5))
    buffer.redis.kill()
    client.wait_for("error")
    client.wait_for("idle")
    result = client.command("last_result")["result"]
    assert f"{buffer.redis.address}: expected a Redis database that answers" in result["reason"]
    assert (result["n_sent"], result["last_id"]) == (5, 4)
    seen("error with the address; 5 images sent")


@FAULT(
    fault="a std_daq writer (C++) has restarted, and counts offsets from 0 again",
    state="a replay of its images",
    promise="images at wrong offsets are counted as damaged; none has pixels of another",
)
def test_wrong_offsets_of_a_restarted_writer_are_noticed(
    buffer: ImageBufferRig, stored: CppBuffer, seen: Callable[[str], None]
) -> None:
    # Of equal size, so that a wrong offset points to a whole chunk.
    flat = [Image(i, np.full((32, 48), i, "<u2")) for i in range(9)]
    stored.store(*flat[:3])
    CppBuffer(buffer.files, buffer.redis.client, buffer.camera.detector_name).store(*flat[3:])
    replayed = buffer.client().replay(start_image_id=0)
    assert_replayed(replayed, flat[:3])
    assert account(replayed) == (0, 6, 0)
    seen("3 images before the restart replayed, 6 after it counted as damaged")


def test_commands_during_a_replay(buffer: ImageBufferRig, stored: CppBuffer) -> None:
    images = images_of(range(20))
    stored.store(*images)
    client = buffer.client()
    client.command("start", start_image_id=0, follow=True, rate=200)
    assert client.command("start", start_image_id=0)["reason"] == "driver is busy!"
    client.receive(20)
    assert client.command("pause")["paused"]
    stored.store(*images_of([20, 21]))
    assert client.command("status")["count"] == 20
    assert not client.has_image()
    assert not client.command("resume")["paused"]
    client.receive(2)
    assert client.command("stop")["status"] == "stop"
    assert client.wait_for("idle")[-3:] == ["finishing", "finished", "idle"]
    result = client.command("last_result")["result"]
    assert (result["n_sent"], result["is_stopped"]) == (22, True)
    assert client.command("record")["error"] == "unknown_command"


@pytest.mark.parametrize("end", ["stop", "error"])
def test_images_of_a_replay_that_was_ended_can_be_removed(
    buffer: ImageBufferRig, stored: CppBuffer, end: str
) -> None:
    stored.store(*images_of(range(20)))
    client, index = buffer.client(), BufferIndex(buffer.redis.address, buffer.camera.detector_name)
    if end == "stop":
        client.command("start", start_image_id=0, follow=True)
        client.receive(10)
        assert replayed_ranges(index)
        client.command("stop")
    else:
        # Its images have no timestamps.
        client.command("start", start_image_id=0, as_recorded=True)
    client.wait_for("idle")
    assert replayed_ranges(index) == []
    index.close()


def test_two_replays_of_a_reader_keep_their_images(buffer: ImageBufferRig, stored: CppBuffer) -> None:
    stored.store(*images_of([*range(10), *range(5000, 5010)]))
    index = BufferIndex(buffer.redis.address, buffer.camera.detector_name)
    first = buffer.client()
    _, url, stream = buffer.start_driver()
    with ReplayClient(url, stream) as second:
        first.command("start", start_image_id=0, rate=1e-3)
        first.receive(1)
        second.command("start", start_image_id=5000, end_image_id=6000, rate=1e-3)
        second.receive(1)
        assert len(replayed_ranges(index)) == 2
        second.command("stop")
        second.wait_for("idle")
        (left,) = replayed_ranges(index)
        assert left[0] <= 1
        first.command("stop")
        first.wait_for("idle")
    assert replayed_ranges(index) == []
    index.close()


def test_a_replay_that_follows_counts_each_image_once(buffer: ImageBufferRig, stored: CppBuffer) -> None:
    stored.store(*images_of([1, 2, 3]))
    name = buffer.camera.detector_name
    buffer.redis.client.delete(image_key(name, 1), image_key(name, 2))
    buffer.redis.client.set(image_key(name, 3), b"\xff\xff")
    client = buffer.client()
    client.command("start", start_image_id=0, follow=True)
    # It looks for new images ten times a second.
    time.sleep(0.5)
    stored.store(*images_of([7]))
    wait_until(lambda: client.command("status")["count"] == 1)
    client.command("stop")
    client.wait_for("idle")
    result = client.command("last_result")["result"]
    assert (result["n_skipped"], result["n_damaged"], result["n_sent"]) == (2, 1, 1)


DRIVER_WITH_A_DEFECT = """
import sys
from stddaq.buffer.driver_service import main
from stddaq.buffer.replay import Replay

async def carry_out(self):
    1 / 0

Replay.carry_out = carry_out
sys.exit(main(sys.argv[1:]))
"""


def test_a_defect_ends_the_replay_and_is_logged_at_once(buffer: ImageBufferRig) -> None:
    program = (sys.executable, "-c", DRIVER_WITH_A_DEFECT, buffer.replayed.config_path)
    driver = buffer.replayed.run(*program, "--stream_address", "tcp://127.0.0.1:0", "--port", 0)
    stream = driver.wait_for_line(r"images for consumers at (tcp://\S+)")[1]
    url = driver.wait_for_line(r"ready: listening on (ws://\S+)")[1]
    with ReplayClient(url, stream) as client:
        client.command("start", start_image_id=0)
        assert client.wait_for("idle")[-2:] == ["error", "idle"]
        assert "see the log" in client.command("last_result")["result"]["reason"]
        driver.wait_for_line("ReplayDriver._carry_out failed unexpectedly")
        driver.wait_for_line("ZeroDivisionError")


def test_images_are_at_least_the_delay_apart(buffer: ImageBufferRig, stored: CppBuffer) -> None:
    stored.store(*images_of(range(11)))
    client = buffer.client()
    begin = time.monotonic()
    assert_replayed(client.replay(start_image_id=0, delay=30), images_of(range(11)))
    assert time.monotonic() - begin > 0.3


def test_a_replay_without_a_consumer_waits_and_can_be_stopped(
    buffer: ImageBufferRig, stored: CppBuffer
) -> None:
    stored.store(*images_of(range(5)))
    buffer.start_reader()
    _, url, stream = buffer.start_driver()
    with ReplayClient(url, "inproc://none") as client:
        client.command("start", start_image_id=0)
        client.message()
        assert client.command("status") | {"status": "replaying", "count": 0} == client.command("status")
        client.command("stop")
        client.wait_for("idle")
    with ReplayClient(url, stream) as client:
        assert_replayed(client.replay(start_image_id=0), images_of(range(5)))


def test_reader_answers_a_driver_in_c_plus_plus(buffer: ImageBufferRig, stored: CppBuffer) -> None:
    """A request without `new_request` and without extensions, as the first one."""
    stored.store(*images_of([1005, 2000]))
    buffer.start_reader()
    name = buffer.replayed.detector_name
    with zmq.Context() as context, context.socket(zmq.REQ) as requests:
        requests.linger = 0
        requests.connect(f"ipc://{buffer.replayed.ipc_directory}/{name}-driver")

        def ask(message: bytes) -> pb.NextImageResponse:
            requests.send(message)
            assert requests.poll(60_000)
            return pb.NextImageResponse.FromString(requests.recv())

        assert ask(pb.RequestNextImage(image_id=1000).SerializeToString()).ack.image_id == 1005
        assert ask(pb.RequestNextImage(image_id=1006).SerializeToString()).ack.image_id == 2000
        assert ask(pb.RequestNextImage(image_id=2001).SerializeToString()).HasField("no_image")
        assert "expected a RequestNextImage" in ask(b"\xff").failure.reason
        again = pb.RequestNextImage(image_id=0, new_request=True)
        assert ask(again.SerializeToString()).ack.image_id == 1005


def test_images_of_floats_are_replayed_in_their_recorded_distances(
    make_buffer: Callable[..., ImageBufferRig],
) -> None:
    buffer = make_buffer(detector_type="jungfrau-converted", image_pixel_height=9, image_pixel_width=50)
    images = images_of(range(3), shape=(9, 50), dtype="<f4")
    buffer.start_writer()
    for image, taken_ms in zip(images, (0, 250, 300), strict=True):
        # The timestamp of another detector is as good, because only this image buffer reads it.
        buffer.source.metadata.pco.global_timestamp_sec = 1_800_000_000
        buffer.source.metadata.pco.global_timestamp_ns = taken_ms * 10**6
        buffer.publish([image])
    buffer.wait_for_ids(range(3))
    client = buffer.client()
    begin = time.monotonic()
    assert_replayed(client.replay(start_image_id=0, as_recorded=True), images)
    assert time.monotonic() - begin > 0.29


def test_recorded_distances_need_timestamps(buffer: ImageBufferRig, stored: CppBuffer) -> None:
    stored.store(*images_of([1]))
    client = buffer.client()
    client.command("start", start_image_id=0, as_recorded=True)
    client.wait_for("error")
    client.wait_for("idle")
    reason = client.command("last_result")["result"]["reason"]
    assert "image 1: expected a timestamp for as_recorded, got none" in reason
    wait_until(lambda: client.command("status")["status"] == "idle")
