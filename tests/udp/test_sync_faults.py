"""The faults of converters, sent to a synchroniser process: rows of the table of faults."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import zmq
from support.processes.deployment import Deployment
from support.processes.stream_readers import StreamReader
from support.processes.udp_modules import EIGER

from stddaq.config import DetectorConfig
from stddaq.dataplane.endpoints import converted_frames
from stddaq.dataplane.metadata import GOOD_IMAGE, ID_MISSMATCH
from stddaq.udp.frame_message import EIGER_FRAME
from stddaq.udp.module_sync import MARGIN_FRACTION

QUEUE_SIZE, LARGE_QUEUE_SIZE = 50, 2000


@pytest.fixture(params=[QUEUE_SIZE])
def push(
    make_deployment: Callable[..., Deployment], request: pytest.FixtureRequest
) -> Iterator[tuple[Deployment, Callable[..., None]]]:
    """Yield a deployment, and a function that pushes messages (image, module) as a C++ converter does."""
    deployment = make_deployment(module_sync_queue_size=request.param, **EIGER)
    context = zmq.Context()
    with contextlib.ExitStack() as closing:
        closing.callback(context.destroy, linger=0)
        socket = context.socket(zmq.PUSH)
        socket.connect(converted_frames(deployment.detector_name))

        def push(messages: Sequence[tuple[int, int]]) -> None:
            for image_id, module in messages:
                message = np.zeros((), EIGER_FRAME)
                message["id"], message["module"] = image_id, module
                socket.send(message.tobytes())

        yield deployment, push


def both(*ids: int) -> list[tuple[int, int]]:
    return [(image_id, module) for image_id in ids for module in (0, 1)]


@pytest.mark.fault(
    fault="converter (C++): {what}",
    state="running",
    promise="every image is announced once, and none waits for a message that cannot come",
)
@pytest.mark.parametrize(
    ("what", "messages", "ids", "line"),
    [
        (
            "a second message of a module",
            [*both(1), (2, 0), (2, 0), (2, 1), *both(3)],
            [1, 2, 3],
            "n_repeated=1",
        ),
        (
            "a message for an image that has left",
            [*both(1, 2, 3), (2, 1), *both(4)],
            [1, 2, 3, 4],
            "n_late=1",
        ),
        ("ids that restart", both(500, 501, 1, 2), [500, 501, 1, 2], "the image ids restart"),
        ("a wrong id, ahead", [*both(50, 51), (900, 1), *both(52)], [50, 51, 52], "n_late=1"),
        ("a wrong id, behind", [*both(50, 51), (2, 1), *both(52)], [50, 51, 52], "n_late=1"),
    ],
)
def test_messages_of_converters_announce_each_image_once(
    push: tuple[Deployment, Callable[..., None]],
    what: str,
    messages: Sequence[tuple[int, int]],
    ids: Sequence[int],
    line: str,
    seen: Callable[[str], None],
) -> None:
    deployment, send = push
    sync = deployment.start("std_data_sync_module", "--timeout", 60)
    with StreamReader(deployment) as reader:
        send(messages)
        received = reader.receive(len(ids))
        assert reader.receive_one(0.2) is None
    assert [image.image_id for image in received] == ids
    assert all(image.status == GOOD_IMAGE for image in received)
    sync.wait_for_line(line)
    seen(f"{line}; images {', '.join(map(str, ids))} announced once each")


@pytest.mark.fault(
    fault="synchroniser: paused while each module sends more images than the queue holds",
    state="running",
    promise="every image is announced, although all messages of one module arrive before the others'",
)
def test_a_pause_of_the_synchroniser_costs_no_image(
    push: tuple[Deployment, Callable[..., None]], seen: Callable[[str], None]
) -> None:
    deployment, send = push
    sync = deployment.start("std_data_sync_module", "--timeout", 60)
    ids = range(2, 2 * QUEUE_SIZE)
    with StreamReader(deployment) as reader:
        send(both(1))
        assert reader.receive(1)[0].image_id == 1
        sync.send(signal.SIGSTOP)
        send([(image_id, module) for module in (0, 1) for image_id in ids])
        sync.send(signal.SIGCONT)
        received = reader.receive(len(ids))
    assert [image.image_id for image in received] == [*ids]
    assert all(image.status == GOOD_IMAGE for image in received)
    sync.wait_for_count("n_images", len(ids) + 1)
    seen(f"{len(ids)} images announced, none given up")


@pytest.mark.fault(
    fault="converter (C++): a module that sends nothing, while more images arrive than the queue holds",
    state="running",
    promise="the images that wait longest are given up, so that no more wait than the queue holds",
)
def test_images_that_wait_for_a_silent_module_are_given_up(
    push: tuple[Deployment, Callable[..., None]], seen: Callable[[str], None]
) -> None:
    deployment, send = push
    sync = deployment.start("std_data_sync_module", "--timeout", 60)
    with StreamReader(deployment) as reader:
        send([(image_id, 0) for image_id in range(1, QUEUE_SIZE + 2)])
        sync.wait_for_line("n_corrupted_images=1,")
        send([(image_id, 1) for image_id in range(1, QUEUE_SIZE + 2)])
        received = reader.receive(QUEUE_SIZE)
    assert [image.image_id for image in received] == [*range(2, QUEUE_SIZE + 2)]
    seen("1 image given up, the others announced")


@pytest.mark.fault(
    fault="converter (C++): a module behind by almost as many images as the ring has",
    state="running",
    promise="images whose slots the other module may have written again are not good",
)
@pytest.mark.parametrize("push", [LARGE_QUEUE_SIZE], indirect=True)
def test_images_that_a_converter_without_marks_may_have_overwritten_are_not_good(
    push: tuple[Deployment, Callable[..., None]], seen: Callable[[str], None]
) -> None:
    deployment, send = push
    n_slots = DetectorConfig.parse(deployment.config).n_slots
    margin = int(n_slots * MARGIN_FRACTION)
    deployment.start("std_data_sync_module", "--timeout", 60)
    with StreamReader(deployment) as reader:
        send([(image_id, 0) for image_id in range(1, n_slots + 1 - margin + 10)])
        send([(image_id, 1) for image_id in range(1, 21)])
        received = reader.receive(20)
    assert [image.status for image in received] == [ID_MISSMATCH] * 10 + [GOOD_IMAGE] * 10
    seen("10 images that are nearly a ring behind have the status id_missmatch, the next 10 are good")
