"""The WebSockets of the page: images at the browser's pace, the driver's status, and attacks on them."""

from __future__ import annotations

import io
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from support.data.token import TOKEN
from support.processes.deployment import Deployment, wait_until
from support.processes.live_streams import streamed_pixels
from support.processes.previews import decoded
from support.processes.web import RestService, json_message
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.web.live.session import MAX_BROWSERS, MAX_MESSAGE_BYTES, MAX_MESSAGES_PER_S
from stddaq.wire.preview import split

LIVE, RUN = "/api/live/ws", "/api/run/ws"


@pytest.fixture
def publisher(deployment: Deployment):
    with ImagePublisher(DetectorConfig.parse(deployment.config)) as publisher:
        yield publisher


def opened(rest: RestService, path: str, **options: Any) -> ClientConnection:
    return connect(rest.url.replace("http", "ws") + path, proxy=None, open_timeout=60, **options)


def image(browser: ClientConnection) -> tuple[dict[str, Any], np.ndarray]:
    """Return header and counts of the next image."""
    # Signs of life come in between.
    deadline = time.monotonic() + 60
    while True:
        message = browser.recv(timeout=max(0.0, deadline - time.monotonic()))
        if isinstance(message, bytes):
            header, payload = split(memoryview(message))
            return header, decoded(header, payload)


@contextmanager
def publishing(deployment: Deployment, publisher: ImagePublisher) -> Iterator[None]:
    """Publish images meanwhile: a browser that has just changed its view may miss some."""
    is_over = threading.Event()

    def publish() -> None:
        for image_id in itertools.count(1):
            publisher.publish(image_id, streamed_pixels(deployment, image_id))
            if is_over.wait(0.05):
                return

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def wait_for_sign_of_life(browser: ClientConnection) -> None:
    """Wait until the service looks for images for a browser: it sends the first sign of life later."""
    while browser.recv(timeout=60) != '{"alive": true}':
        pass


def next_header(browser: ClientConnection) -> dict[str, Any]:
    """Return the header of the next image, and acknowledge it."""
    header, _ = image(browser)
    browser.send(json.dumps({"ack": header["image"]}))
    return header


def status_of(rest: RestService, path: str, **options: Any) -> int:
    """Return the HTTP status of a handshake."""
    try:
        with opened(rest, path, **options):
            return 101
    except InvalidStatus as error:
        return error.response.status_code


def test_handshakes_of_other_web_sites_are_refused_before_they_are_accepted(rest: RestService) -> None:
    for path in (LIVE, RUN):
        check_handshakes(rest, path)
    # What others try is no error of the service.
    assert rest.process.end() == 0
    assert not [line for line in rest.process.stdout if "[error]" in line]


def check_handshakes(rest: RestService, path: str) -> None:
    own = rest.url
    assert status_of(rest, path) == 101
    assert status_of(rest, path, origin=own) == 101
    assert status_of(rest, path, origin=own, additional_headers={"Sec-Fetch-Site": "same-origin"}) == 101
    for origin in ("http://evil.example", "null", own.replace("http", "https") + "0", "http://127.0.0.1"):
        assert status_of(rest, path, origin=origin) == 403
    for site in ("cross-site", "same-site"):
        assert status_of(rest, path, additional_headers={"Sec-Fetch-Site": site}) == 403
    # A name of another site that leads to this machine (DNS rebinding).
    port = own.rpartition(":")[2]
    with (
        socket.create_connection(("127.0.0.1", int(port)), timeout=20) as connection,
        pytest.raises(InvalidStatus) as refused,
    ):
        connect(f"ws://evil.example:{port}{path}", sock=connection, proxy=None, open_timeout=60)
    assert refused.value.response.status_code == 403
    assert b"Host: expected localhost" in (refused.value.response.body or b"")


def test_handshakes_need_the_token(start_rest: Callable[..., RestService], token_file: Path) -> None:
    rest = start_rest("--token-file", token_file)
    right = {"Authorization": f"Bearer {TOKEN}"}
    for path in (LIVE, RUN):
        assert status_of(rest, path) == 401
        assert status_of(rest, path, additional_headers={"Authorization": "Bearer wrong"}) == 401
        assert status_of(rest, path, additional_headers=right) == 101
        assert status_of(rest, path, origin="http://evil.example", additional_headers=right) == 403


FORBIDDEN: list[tuple[str | bytes, str]] = [
    ('{"command": "stop"}', "command"),
    ("[]", "expected a JSON object"),
    ("{", "expected a JSON object"),
    ("[" * 2000, "expected a JSON object"),
    (b"{}", "expected a JSON object"),
]
WRONG_VIEWS = [
    ({"ack": 1, "view": 2}, "message: expected ack or set"),
    ({"busy_ms": 2}, "message: expected ack or set"),
    ({"ack": 1, "busy_ms": -1}, "busy_ms: expected a number of at least 0, got -1"),
    ({"ack": 1, "busy_ms": True}, "busy_ms: expected a number of at least 0, got true"),
    ({"ack": 1, "busy_ms": float("nan")}, "busy_ms: expected a number of at least 0, got NaN"),
    ({"set": {"reducer": "median"}}, "reducer: expected 'mean', 'max' or 'nearest', got"),
    ({"set": {"max_hz": 0}}, "max_hz: expected a value greater than or equal to 0.1, got 0"),
    ({"set": {"max_hz": True}}, "max_hz: expected a number, got true"),
    ({"set": {"codec": "png"}}, "codec: expected 'lz4' or 'jpeg', got"),
    ({"set": {"command": "stop"}}, "command: unknown field"),
    ({"set": [1]}, "set: expected an object"),
    ({"set": {"view": [0, 0, 49, 1]}}, "area: expected a part of 48 x 32 pixels"),
    ({"set": {"view": [-1, 0, 4, 4]}}, "area: expected a part of 48 x 32 pixels"),
    ({"set": {"regions": [{"id": 1, "at": [0, 0, 0, 5]}]}}, "area: expected a part of 48 x 32 pixels"),
    ({"set": {"regions": [{"id": 1, "at": [0, 0, 1, 1]}] * 9}}, "regions: expected "),
]


def test_browser_that_sends_what_it_may_not_is_disconnected_and_reads_why(rest: RestService) -> None:
    cases = [(path, *case) for path in (LIVE, RUN) for case in FORBIDDEN]
    cases += [(LIVE, json.dumps(message), reason) for message, reason in WRONG_VIEWS]
    cases += [(RUN, '{"ack": 1}', "message: expected none")]
    for path, message, reason in cases:
        with opened(rest, path) as browser:
            browser.send(message)
            while "bye" not in (last := json_message(browser)):
                pass
            assert reason in last["bye"], (path, message)
            with pytest.raises(ConnectionClosed):
                browser.recv(timeout=20)


def test_long_and_frequent_messages_end_the_connection(rest: RestService) -> None:
    with opened(rest, LIVE) as browser:
        browser.send(json.dumps({"ack": "x" * MAX_MESSAGE_BYTES}))
        with pytest.raises(ConnectionClosed):
            receive_without_end(browser)
    with opened(rest, LIVE) as browser, pytest.raises(ConnectionClosed):
        send_without_end(browser)
    assert rest.get("/api/live/sources").status_code == 200


def receive_without_end(browser: ClientConnection) -> None:
    while True:
        browser.recv(timeout=20)


def send_without_end(browser: ClientConnection) -> None:
    for _ in range(1000 * MAX_MESSAGES_PER_S):
        browser.send('{"ack": 1}')


def test_too_many_browsers_are_refused_and_the_next_is_accepted_when_one_leaves(rest: RestService) -> None:
    with ExitStack() as stack:
        # Without a limit of their queues they receive the answers to their pings, however long this takes.
        browsers = [stack.enter_context(opened(rest, RUN, max_queue=None)) for _ in range(MAX_BROWSERS)]
        for _ in range(MAX_BROWSERS):  # Each of the pages shows images, too.
            stack.enter_context(opened(rest, LIVE, max_queue=None))
        assert status_of(rest, RUN) == status_of(rest, LIVE) == 503
        assert rest.get("/api/session").status_code == 200
        browsers[0].close()
        wait_until(lambda: status_of(rest, RUN) == 101)


def test_unknown_detector_is_refused(rest: RestService) -> None:
    assert status_of(rest, f"{LIVE}?detector=other") == 404


@pytest.mark.slow
def test_browser_chooses_a_stream_that_has_a_preview_service(
    deployment: Deployment, publisher: ImagePublisher, rest: RestService
) -> None:
    def streams() -> list[tuple[str, bool]]:
        return [(one["source"], one["is_running"]) for one in rest.get("/api/live/sources").json()]

    assert streams() == [("image", False)]
    assert status_of(rest, f"{LIVE}?source=filter") == 404
    assert rest.get("/api/live/image", image=1, source="../image").status_code == 422
    rest.set(deployment.config | {"services": ["std_gf_filter"]})
    assert streams() == [("image", False)]  # Only an edit of the file changes `services`.
    deployment.write_config(services=["std_gf_filter"])
    assert streams() == [("image", False), ("filter", False)]
    with opened(rest, f"{LIVE}?source=filter") as browser:
        assert "run `std_preview -s filter CONFIG`" in json_message(browser)["error"]
        deployment.start("std_gf_filter", "--no_filter")
        preview = deployment.start("std_preview", "-s", "filter", "--hz", 100)
        assert publisher.wait_for_subscribers(1, 20)
        image_id = 0

        def is_shown() -> bool:
            nonlocal image_id
            image_id += 1
            publisher.publish(image_id, streamed_pixels(deployment, 1))
            with suppress(TimeoutError):
                return isinstance(browser.recv(timeout=0.5), bytes)
            return False

        wait_until(is_shown, 20)
    assert streams() == [("image", False), ("filter", True)]
    # Before the source: the last that detaches frees the memory, which takes a process of low priority long.
    assert preview.end() == 0


def test_next_image_is_sent_after_the_last_was_drawn(
    deployment: Deployment, publisher: ImagePublisher, rest: RestService
) -> None:
    deployment.start("std_preview", "--hz", 100)
    with opened(rest, LIVE) as browser, opened(rest, LIVE) as slow:
        wait_until(publisher.count_subscribers)
        for each in (browser, slow):
            wait_for_sign_of_life(each)
        publisher.publish(1, streamed_pixels(deployment, 1))
        header, counts = image(browser)
        assert (header["image"], header["skipped"]) == (1, 0)
        np.testing.assert_array_equal(counts, streamed_pixels(deployment, 1))
        assert image(slow)[0]["image"] == 1
        for image_id in (2, 3, 4):
            browser.send(json.dumps({"ack": image_id - 1}))
            publisher.publish(image_id, streamed_pixels(deployment, image_id))
            header, counts = image(browser)
            assert (header["image"], header["skipped"]) == (image_id, 0)
            np.testing.assert_array_equal(counts, streamed_pixels(deployment, image_id))
        slow.send('{"ack": 1}')
        header, _ = image(slow)
        assert (header["image"], header["skipped"]) == (4, 2)


def test_browser_chooses_the_reduction(
    deployment: Deployment, publisher: ImagePublisher, rest: RestService
) -> None:
    deployment.start("std_preview", "--hz", 100)
    with opened(rest, LIVE) as browser:
        browser.send('{"set": {"reducer": "max"}}')
        wait_until(publisher.count_subscribers, 20)
        with publishing(deployment, publisher):
            wait_until(lambda: next_header(browser)["reducer"] == "max", 20)


def test_browser_gets_the_numbers_of_its_own_regions(
    deployment: Deployment, publisher: ImagePublisher, rest: RestService
) -> None:
    deployment.start("std_preview", "--hz", 100)
    with opened(rest, LIVE) as one, opened(rest, LIVE) as other:
        wait_until(publisher.count_subscribers, 20)
        regions = [
            {"id": 5, "kind": "box", "at": [4, 3, 10, 6]},
            {"id": 6, "kind": "circle", "at": [0, 0, 9, 9]},
        ]
        one.send(json.dumps({"set": {"regions": regions}}))

        def measured() -> dict[str, Any] | None:
            header = next_header(one)
            return header if len(header["regions"]) == 2 else None

        with publishing(deployment, publisher):
            header = wait_until(measured, 20)
            others = next_header(other)
            while others["image"] < header["image"]:
                others = next_header(other)
        assert others["regions"] == []
        found, pixels = header["regions"], streamed_pixels(deployment, header["image"])
        part = pixels[3:9, 4:14]
        assert (found[0]["id"], found[0]["n"], found[0]["sum"]) == (5, 60, int(part.sum(dtype=np.uint64)))
        assert (found[1]["id"], found[1]["n"]) == (6, 69)


@pytest.mark.slow
def test_pixels_and_files_of_an_image_are_returned_while_the_ring_has_it(
    deployment: Deployment, publisher: ImagePublisher, rest: RestService
) -> None:
    assert rest.get("/api/live/pixel", image=1, x=0, y=0).status_code == 503
    deployment.start("std_preview", "--hz", 100)
    with opened(rest, LIVE) as browser:
        wait_until(publisher.count_subscribers, 20)
        pixels = streamed_pixels(deployment, 1)
        publisher.publish(1, pixels)
        assert image(browser)[0]["image"] == 1
        found = rest.get("/api/live/pixel", image=1, x=1, y=20, n=5).json()
        assert found == {"image": 1, "x": 0, "y": 18, "values": pixels[18:23, 0:4].tolist()}
        answer = rest.get("/api/live/image.tiff", image=1)
        np.testing.assert_array_equal(tifffile.imread(io.BytesIO(answer.content)), pixels)
        # A machine that is busy may need a second for one.
        wait_until(lambda: rest.get("/api/live/image.tiff", image=1).status_code == 429, 20)
        header, payload = split(memoryview(rest.get("/api/live/image", image=1).content))
        np.testing.assert_array_equal(decoded(header, payload), pixels)
        assert rest.get("/api/live/pixel", image=1, x=48, y=0).status_code == 422
        publisher.begin(1 + publisher.n_slots)[:] = 1
        for path in ("pixel", "image"):
            assert rest.get(f"/api/live/{path}", image=1, x=0, y=0).status_code == 410
        assert rest.get("/api/live/pixel", image=2, x=0, y=0).status_code == 410


@pytest.mark.slow
def test_without_a_preview_service_browsers_read_how_to_start_it(rest: RestService) -> None:
    with opened(rest, LIVE) as browser:
        assert "`std_preview CONFIG`" in json_message(browser)["error"]
        rest.deployment.start("std_preview")
        while "no source has published" not in json_message(browser)["error"]:
            pass


def test_sources_say_whether_their_images_can_be_shown(rest: RestService) -> None:
    source = {"detector": rest.deployment.detector_name, "source": "image", "shape": [32, 48]}
    assert rest.get("/api/live/sources").json() == [source | {"dtype": "uint16", "is_running": False}]
    rest.deployment.start("std_preview")
    assert rest.get("/api/live/sources").json() == [source | {"dtype": "uint16", "is_running": True}]


def test_status_of_the_driver_is_relayed_and_its_absence_said(
    make_deployment: Callable[..., Deployment], tmp_path: Path
) -> None:
    # Driver and page of a deployment have one token.
    deployment = make_deployment(env={"STDDAQ_TOKEN": TOKEN})
    driver, url = deployment.start_driver()
    rest = RestService.start(deployment, tmp_path / "files", "--url", url)
    with opened(rest, RUN, additional_headers={"Authorization": f"Bearer {TOKEN}"}) as browser:
        assert json_message(browser)["status"] == "idle"
        assert driver.end() == 0, driver.output
        while (status := json_message(browser))["status"] != "unreachable":
            pass
        assert "ws://" in status["reason"]
        assert TOKEN not in json.dumps(status)


def test_service_ends_at_once_with_browsers_connected(rest: RestService) -> None:
    with opened(rest, LIVE), opened(rest, RUN):
        assert rest.process.end() == 0
    assert rest.process.stderr == []
