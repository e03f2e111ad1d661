"""The page in Chromium after something has failed once: it says so, and goes on by itself."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import zmq
from support.peers import chromium
from support.peers.chromium import Tab
from support.peers.silent_relay import SilentRelay
from support.processes.deployment import Deployment
from support.processes.web import RestService

from stddaq.config import DetectorConfig
from stddaq.dataplane.metadata import ImageMetadata
from stddaq.preview.encoding import image_message
from stddaq.preview.pictures import Pictures
from stddaq.wire.preview import frame, split
from stddaq.wire.preview_requests import View, frame_of, topic

pytestmark = [
    pytest.mark.external,
    pytest.mark.usefixtures("browser"),
    chromium.NEEDED,
]


class FakePreview:
    """The socket of a preview service, which sends what a test makes of the messages of a real one."""

    def __init__(self, deployment: Deployment, socket: zmq.Socket) -> None:
        self._socket, self._config = socket, DetectorConfig.parse(deployment.config)
        self._pictures = Pictures(self._config.image_shape, self._config.dtype)
        socket.linger = 0
        self.path = deployment.ipc_directory / f"{deployment.detector_name}-preview"
        socket.bind(f"ipc://{self.path}")

    def message(self, image_id: int) -> bytes:
        """Return the message of an image."""
        pixels, view = np.full(self._config.image_shape, 7, np.uint16), View()
        made = self._pictures.make(pixels, [view], ())
        latest = {"overwritten": 0, "histogram": None}
        metadata = ImageMetadata(image_id=image_id, status=1)  # pyright: ignore[reportArgumentType]
        return image_message(self._config, metadata, view, made, (0.0, 10.0), latest)

    def send_until(self, message: bytes, condition: Callable[[], bool]) -> bool:
        """Send a message. Return whether something is true."""
        self._socket.send(message)
        return condition()


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with pytest.MonkeyPatch.context() as patch:
        deployment = Deployment(tmp_path_factory.mktemp("page"))
        patch.setenv("STDDAQ_IPC_DIR", str(deployment.ipc_directory))
        try:
            yield deployment
        finally:
            deployment.close()


@pytest.fixture(scope="module")
def preview(deployment: Deployment) -> Iterator[FakePreview]:
    with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
        fake = FakePreview(deployment, socket)
        yield fake
        fake.path.unlink()


@pytest.fixture(scope="module")
def rest(deployment: Deployment) -> RestService:
    _, url = deployment.start_driver()
    return RestService.start(deployment, deployment.config_path.parent / "files", "--url", url)


@pytest.fixture(scope="module")
def tab(rest: RestService, preview: FakePreview, browser: None) -> Iterator[Tab]:
    with chromium.opened(rest.url) as tab:
        yield tab


def is_shown(tab: Tab, image_id: int) -> bool:
    """Return whether the page shows an image, and nothing over it."""
    return f"image {image_id}," in tab.text("#live") and tab.evaluate(
        "document.getElementById('veil').hidden"
    )


def test_image_that_cannot_be_decoded_is_reported_and_the_next_one_shown(
    tab: Tab, preview: FakePreview
) -> None:
    good = preview.message(1)
    tab.wait_for(lambda: preview.send_until(good, lambda: is_shown(tab, 1)), "an image")
    damaged, said = preview.message(2)[:-3], "cannot be decoded: damaged image"
    tab.wait_for(lambda: preview.send_until(damaged, lambda: said in tab.text("#veil")), "the reason")
    good = preview.message(3)
    tab.wait_for(lambda: preview.send_until(good, lambda: is_shown(tab, 3)), "the next image")


def test_image_that_cannot_be_drawn_is_reported_and_the_next_one_shown(
    tab: Tab, preview: FakePreview
) -> None:
    request, content = frame_of(memoryview(preview.message(4)))
    header, payload = split(content)
    del header["levels"]
    odd = request + frame(header, payload)
    assert request == topic(View())
    said = "Image 4 cannot be shown"
    tab.wait_for(lambda: preview.send_until(odd, lambda: said in tab.text("#veil")), "the reason")
    # At once: the service would end the connection after 30 s without an acknowledgement.
    tab.evaluate("window.begin = performance.now()")
    good = preview.message(5)
    tab.wait_for(lambda: preview.send_until(good, lambda: is_shown(tab, 5)), "the next image")
    assert tab.evaluate("performance.now() - window.begin") < 10_000


def test_page_whose_first_requests_fail_starts_when_they_succeed(tab: Tab, preview: FakePreview) -> None:
    tab.call("Network.setBlockedURLs", urls=["*api/session*"])
    tab.call("Page.reload")
    tab.wait_for(lambda: "rights of this browser cannot be read" in tab.text("#veil"), "the reason")
    tab.call("Network.setBlockedURLs", urls=["*openapi.json*"])
    tab.wait_for(lambda: tab.text("#account"), "the rights")
    tab.click("#tab-configuration")
    tab.wait_for(lambda: "detector_name" in field(tab) and tab.text("#config-mistakes"), "the reason")
    tab.call("Network.setBlockedURLs", urls=[])
    tab.click("#tab-live")
    tab.wait_for(lambda: tab.evaluate("!document.getElementById('panel-live').hidden"), "the image")
    tab.click("#tab-configuration")
    tab.wait_for(lambda: "detector_name" in tab.text("#config-keys"), "the keys")
    # What is being typed may be anything.
    edited = json.loads(field(tab)) | {"live_stream_configs": {"tcp://127.0.0.1:1": None}}
    typed = (
        f"Object.assign(document.querySelector('#config-text'), {{value: {json.dumps(json.dumps(edited))}}})"
    )
    tab.evaluate(f"{typed}.dispatchEvent(new Event('input'))")
    tab.wait_for(lambda: "live_stream_configs" in tab.text("#config-mistakes"), "the mistake")
    tab.click("#tab-live")


def field(tab: Tab) -> str:
    return tab.evaluate("document.querySelector('#config-text')?.value ?? ''")


def test_service_that_hangs_is_named_and_its_state_is_not_shown_as_the_present_one(
    tab: Tab, rest: RestService, preview: FakePreview
) -> None:
    tab.wait_for(lambda: tab.text("#state") == "no run", "the state")
    rest.process.send(signal.SIGSTOP)
    try:
        tab.wait_for(lambda: "stddaq-rest has not answered for" in tab.text("#veil"), "the reason")
        tab.wait_for(lambda: tab.text("#state").startswith("no contact since"), "the silence")
        # It does not answer the new connections either.
        assert "stddaq-rest has not answered for" in tab.text("#veil")
    finally:
        rest.process.send(signal.SIGCONT)
    tab.wait_for(lambda: tab.text("#state") == "no run", "the state again")
    good = preview.message(6)
    tab.wait_for(lambda: preview.send_until(good, lambda: is_shown(tab, 6)), "an image")
    tab.wait_for(lambda: "the source does not publish" in tab.text("#veil"), "what is missing now")


def test_page_connects_again_after_its_connections_were_lost_without_a_word(
    rest: RestService, preview: FakePreview
) -> None:
    with SilentRelay(rest.url) as relay, chromium.opened(relay.url) as tab:
        before = preview.message(7)
        tab.wait_for(lambda: preview.send_until(before, lambda: is_shown(tab, 7)), "an image")
        relay.silence()
        after = preview.message(8)
        tab.wait_for(lambda: preview.send_until(after, lambda: is_shown(tab, 8)), "an image")
        tab.wait_for(lambda: tab.text("#state") == "no run", "the state")
