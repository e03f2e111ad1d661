"""`std_live_stream -t stins` as a process: the rows of whole runs for one consumer."""

from __future__ import annotations

import re
import signal
import threading

import numpy as np
import pytest
from support.processes.deployment import Deployment
from support.processes.live_streams import FORWARD
from support.processes.recording import Rig, images_of
from support.processes.run_streams import Consumer, start_run_stream

from stddaq.dataplane.image_publisher import ImagePublisher


def test_consumer_receives_the_header_every_row_and_the_end_of_each_run(rig: Rig) -> None:
    stream = start_run_stream(rig)
    number = 0
    with Consumer(stream) as consumer:
        for start in (1, 50):
            rig.publish(images_of(range(1000, 1005)))  # They belong to no run.
            images = images_of(range(start, start + 20))
            account = rig.record(images, file_prefix=f"run{start}")
            (header, _), *rows, (end, _) = consumer.receive_series()
            assert header == {
                "htype": "header",
                "msg_number": number,
                "filename": account["files"]["master"],
                "run_id": account["run_id"],
                "n_image": 20,
            }
            for row, (message, pixels) in enumerate(rows):
                assert message == {
                    "htype": "image",
                    "msg_number": number + row + 1,
                    "frame": row,
                    "shape": [32, 48],
                    "type": "uint16",
                    "compression": "none",
                    "image_id": start + row,
                }
                assert np.array_equal(pixels, images[row].pixels)
            assert end == {"htype": "series_end", "msg_number": number + 21, "count": 20}
            number += 22
    stream.wait_for(n_sent_images=40, n_overwritten_images=0)


def test_rows_are_those_of_the_files_when_a_running_source_is_recorded_and_stopped(rig: Rig) -> None:
    stream = start_run_stream(rig)
    end = threading.Event()

    def publish() -> None:
        image_id = 0
        while not end.wait(0.002):
            rig.publish(images_of([image_id]))
            image_id += 1 + image_id % 3  # Skipped ids have no rows.

    source = threading.Thread(target=publish)
    with Consumer(stream) as consumer:
        source.start()
        try:
            rig.wait_for_subscription()
            rig.client.start(rig.directory)
            rig.wait_for_count(100)
            account = rig.end(stop=True)
        finally:
            end.set()
            source.join()
        _, *rows, (message, _) = consumer.receive_series()
    assert "error" not in message
    assert len(rows) == message["count"] == account["count"]
    assert (rows[0][0]["image_id"], rows[-1][0]["image_id"]) == (account["first_id"], account["last_id"])
    assert [row["frame"] for row, _ in rows] == list(range(account["count"]))


def test_overwritten_image_is_sent_without_pixels_so_that_the_others_keep_their_rows(rig: Rig) -> None:
    stream = start_run_stream(rig)
    images = images_of(range(1100))
    with Consumer(stream, queue=0) as consumer:
        rig.begin(n_image=len(images))
        stream.process.send(signal.SIGSTOP)
        for first in range(0, len(images), 100):
            rig.publish(images[first : first + 100])
            rig.wait_for_count(first + 100)
        stream.process.send(signal.SIGCONT)
        rig.end()
        _, *rows, (end, _) = consumer.receive_series()
    assert (end["count"], [row["frame"] for row, _ in rows]) == (1100, list(range(1100)))
    assert [row["image_id"] for row, _ in rows] == list(range(1100))
    for (row, pixels), image in zip(rows, images, strict=True):
        if image.image_id < 100:
            assert (row["shape"], row["status"], pixels.size) == ([0, 0], "overwritten", 0)
        else:
            assert "status" not in row
            assert np.array_equal(pixels, image.pixels)


def test_run_that_begins_without_consumer_is_not_sent_but_the_next_one_is(rig: Rig) -> None:
    stream = start_run_stream(rig)
    account = rig.record(images_of(range(10)), file_prefix="unseen")
    stream.process.wait_for_line(f"run {account['run_id']} is not sent: no consumer is connected")
    with Consumer(stream) as consumer:
        account = rig.record(images_of(range(10)), file_prefix="seen")
        assert consumer.receive()[0]["run_id"] == account["run_id"]
    stream.process.wait_for_line("disconnected; ")


def test_second_consumer_waits_until_the_first_one_leaves(rig: Rig) -> None:
    stream = start_run_stream(rig)
    with Consumer(stream) as first:
        second = rig.enter(Consumer(stream, wait=False))
        rig.record(images_of(range(10)), file_prefix="one")
        assert len(first.receive_series()) == 12
        assert not second.socket.poll(0)
        n_lines = len(stream.process.stdout)
    stream.process.wait_for_line(" connected", start=n_lines)
    rig.record(images_of(range(10)), file_prefix="two")
    assert len(second.receive_series()) == 12


def test_series_ends_with_an_error_when_the_driver_is_killed(rig: Rig) -> None:
    stream = start_run_stream(rig)
    with Consumer(stream) as consumer:
        rig.begin(n_image=100)
        rig.publish(images_of(range(10)))
        rig.wait_for_count(10)
        rig.driver.kill()
        messages = consumer.receive_series()
    assert messages[-1][0]["error"] == "the driver was restarted or does not answer"
    assert messages[-1][0]["count"] == len(messages) - 2 <= 10
    stream.process.wait_for_line(r"\[error\] run \w+: row \d+ and later are not sent")


def test_series_ends_with_an_error_when_the_stream_is_stopped(rig: Rig) -> None:
    stream = start_run_stream(rig)
    with Consumer(stream, queue=1) as consumer:
        rig.begin(n_image=100)
        rig.publish(images_of(range(10)))
        rig.wait_for_count(10)
        received = [consumer.receive() for _ in range(11)]
        assert stream.process.end() == 0
        end, _ = consumer.receive()
    assert [message.get("frame") for message, _ in received] == [None, *range(10)]
    assert (end["htype"], end["msg_number"], end["count"]) == ("series_end", 11, 10)
    assert end["error"] == "the stream is stopped"
    stream.process.wait_for_line(r"\[error\] run \w+: row 10 and later are not sent: the stream is stopped")
    rig.end(stop=True)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"type": "batch", "config": [1, 2], "socket": "push"}, 'type: expected "forward"'),
        ({"type": "forward", "config": []}, 'socket: expected "push"'),
        (
            {"type": "forward", "config": [], "socket": "push", "header": ["pulse_id"]},
            "header: expected \\[\\]",
        ),
    ],
)
def test_setting_that_leaves_images_out_is_refused(
    deployment: Deployment, publisher: ImagePublisher, setting: dict[str, object], expected: str
) -> None:
    address = "tcp://127.0.0.1:0"
    deployment.write_config(live_stream_configs={address: setting})
    service = deployment.start("std_live_stream", address, "-t", "stins", ready=None)
    assert service.wait() == 2
    assert re.search(expected, service.stderr[-1]), service.output


def test_stream_of_runs_is_not_announced(deployment: Deployment, publisher: ImagePublisher) -> None:
    address = "tcp://127.0.0.1:0"
    deployment.write_config(live_stream_configs={address: FORWARD | {"socket": "push"}})
    options = ("-t", "stins", "--announce", "redis://127.0.0.1:1")
    service = deployment.start("std_live_stream", address, *options, ready=None)
    assert service.wait() == 2
    assert "--announce: expected a stream of type array-1.0 or bsread, got stins" in service.stderr[-1]
