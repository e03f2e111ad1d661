"""The page in Chromium: the wheel on the colour bar, quick images for slow lines, plots that share a cursor,
and buttons that copy.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from support.peers import chromium
from support.peers.chromium import Tab
from support.processes.deployment import Deployment, free_port
from support.processes.pages import page_of
from support.processes.web import RestService

from stddaq.client import DriverClient
from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher

pytestmark = [
    pytest.mark.external,
    pytest.mark.usefixtures("browser"),
    chromium.NEEDED,
]

HEIGHT, WIDTH = 120, 160
RAMP = (100 * np.arange(WIDTH) + np.arange(HEIGHT)[:, None]).astype(np.uint16)
# As a slow line does: what the page says arrives late.
SLOW_LINE = """(() => {
  const send = WebSocket.prototype.send;
  WebSocket.prototype.send = function (message) { setTimeout(() => send.call(this, message), 1500); };
})()"""


def box_of(tab: Tab, selector: str) -> tuple[float, float, float, float]:
    """Return left, top, width and height of an element, which is scrolled into sight."""
    left, top, width, height = tab.evaluate(
        f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
        " e.scrollIntoView({block: 'nearest'}); const b = e.getBoundingClientRect();"
        " return [b.x, b.y, b.width, b.height]; })()"
    )
    return left, top, width, height


def press(tab: Tab, selector: str) -> None:
    """Click with the mouse: browsers copy only for a person."""
    left, top, width, height = box_of(tab, selector)
    place = (left + width / 2, top + height / 2)
    tab.drag(place, place)


def note_texts(tab: Tab, selector: str) -> None:
    """Note each text that an element has from now on: it may have one for a moment only."""
    tab.evaluate(
        "window.noted = []; window.noting?.disconnect(); window.noting = new MutationObserver(() =>"
        f" window.noted.push(document.querySelector({json.dumps(selector)})?.textContent));"
        " window.noting.observe(document.body, { childList: true, characterData: true, subtree: true })"
    )


def noted_texts(tab: Tab) -> list[str]:
    return tab.evaluate("window.noted")


def levels(tab: Tab) -> tuple[float, float]:
    low, high = tab.evaluate("['low', 'high'].map((id) => Number(document.getElementById(id).value))")
    return low, high


@pytest.fixture
def publisher(make_deployment: Callable[..., Deployment]):
    deployment = make_deployment(image_pixel_height=HEIGHT, image_pixel_width=WIDTH)
    with ImagePublisher(DetectorConfig.parse(deployment.config)) as publisher:
        yield deployment, publisher


def test_wheel_on_the_colour_bar_moves_the_nearer_level(
    publisher: tuple[Deployment, ImagePublisher], tmp_path: Path
) -> None:
    with page_of(*publisher, (HEIGHT, WIDTH), tmp_path / "files") as page:
        tab = page.tab
        page.show(RAMP)
        tab.choose("#low", "1000")
        tab.choose("#high", "11000")
        left, top, width, height = box_of(tab, "#bar")

        def turn(part: float, delta: int) -> None:
            place = {"x": left + width / 2, "y": top + part * height}
            tab.call("Input.dispatchMouseEvent", type="mouseWheel", deltaX=0, deltaY=delta, **place)

        # The bright end is at the top.
        turn(0.1, -100)
        tab.wait_for(lambda: levels(tab) == (1000, 13000), "a higher upper level")
        turn(0.9, 100)
        tab.wait_for(lambda: levels(tab) == (-1400, 13000), "a lower lower level")
        assert (tab.text("#bar-low"), tab.text("#bar-high")) == ("-1400", "13000")
        assert tab.evaluate("document.getElementById('levels').value") == "manual"
        # However far it is turned, the levels stay in order.
        for _ in range(20):
            turn(0.9, -1000)
        low, high = levels(tab)
        assert low < high == 13000
        tab.choose("#levels", "auto")
        page.show(RAMP)
        tab.wait_for(lambda: levels(tab) != (low, high), "levels of the image")


def test_quick_images_are_proposed_on_a_slow_line_only(
    publisher: tuple[Deployment, ImagePublisher], tmp_path: Path
) -> None:
    is_hidden = "document.getElementById('propose-quick').hidden"
    with page_of(*publisher, (HEIGHT, WIDTH), tmp_path / "files") as page:
        tab, source = page.tab, publisher[1]
        image_id = page.show(RAMP)
        assert tab.evaluate(is_hidden)
        tab.evaluate(SLOW_LINE)

        def publish() -> None:
            nonlocal image_id
            image_id += 1
            source.publish(image_id, RAMP)
            time.sleep(0.02)

        def is_proposed() -> bool:
            publish()
            return not tab.evaluate(is_hidden)

        tab.wait_for(is_proposed, "the proposal")
        assert tab.text("#propose-quick") == "Slow line: show quick images"
        tab.click("#propose-quick")
        assert tab.evaluate("document.getElementById('quality').value") == "jpeg"

        def is_accepted() -> bool:
            publish()
            return tab.evaluate(is_hidden)

        tab.wait_for(is_accepted, "the end of the proposal")
        page.point_at(30.5, 20.5)

        def is_quick() -> bool:
            publish()
            return "quick: about" in tab.text("#cursor")

        tab.wait_for(is_quick, "a quick image")


@pytest.fixture
def recorded(make_deployment: Callable[..., Deployment], tmp_path: Path) -> RestService:
    """Start all services with a simulator at its rate, and record a run."""
    port, deployment = free_port(), make_deployment()
    deployment.start_up("--port", port, "--source", "simulate", "--rate", 50)
    url = f"ws://127.0.0.1:{port}"
    rest = RestService.start(deployment, tmp_path / "files", "--url", url)
    with DriverClient(url) as driver:
        driver.start(rest.root, n_image=5)
        driver.wait_until_saved(60)
    return rest


@pytest.fixture
def tab(recorded: RestService):
    with chromium.opened(recorded.url) as tab:
        tab.wait_for(lambda: tab.evaluate("!!document.querySelector('#tab-live')?.ariaSelected"), "the tabs")
        yield tab
        assert tab.complaints == []


def test_rates_share_one_cursor(tab: Tab) -> None:
    legends = "[...document.querySelectorAll('#panel-services figure p')].map((p) => p.textContent)"
    plot = "#panel-services figure canvas"

    def times() -> list[datetime]:
        # A plot without lines has no time.
        texts = [text.replace("\u202f", " ").partition(": ") for text in tab.evaluate(legends)]
        return [datetime.strptime(time, "%I:%M:%S %p") for time, _, values in texts if values]

    tab.click("#tab-services")
    tab.wait_for(lambda: "images published" in " ".join(tab.evaluate(legends)), "the rates")
    # The first time is that of the start of the service.
    newest = tab.wait_for(times, "times")[0]
    left, top, _, height = box_of(tab, plot)

    def is_at_the_left_edge() -> bool:
        tab.move_to(left + 1, top + height / 2)
        return times()[0] < newest

    tab.wait_for(is_at_the_left_edge, "the first time under the cursor")
    has_cursor = (
        "[...document.querySelectorAll('#panel-services figure canvas')].map((c) => {"
        " const text = getComputedStyle(document.documentElement).getPropertyValue('--text').trim();"
        " const wanted = text.match(/[0-9a-f]{2}/g).map((hex) => parseInt(hex, 16));"
        " const data = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        " for (let i = 0; i < data.length; i += 4)"
        "   if (data[i + 3] > 60 && wanted.every((v, k) => Math.abs(data[i + k] - v) < 30)) return true;"
        " return false; })"
    )
    assert tab.evaluate(has_cursor) == [True, True]
    tab.move_to(left + 1, 1)
    tab.wait_for(lambda: times()[0] >= newest and tab.evaluate(has_cursor) == [False, False], "no cursor")


@pytest.mark.parametrize("has_clipboard", [True, False])
def test_paths_and_events_are_copied(tab: Tab, recorded: RestService, *, has_clipboard: bool) -> None:
    tab.call("Emulation.setFocusEmulationEnabled", enabled=True)
    tab.evaluate("window.clipboard = navigator.clipboard")
    if not has_clipboard:
        # As on a page that another computer sends without encryption.
        tab.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    master = f"{recorded.root}/fileMaster.h5"
    tab.click("#tab-runs")
    tab.wait_for(lambda: master in tab.text("#runs-list"), "the run")
    tab.click("#runs-list button")
    button = f"[data-copy='{master}']"
    tab.wait_for(lambda: tab.text(button) == "Copy path", "the files")
    note_texts(tab, button)
    press(tab, button)
    tab.wait_for(lambda: "Copied" in noted_texts(tab), "the copy")
    assert pasted(tab) == master
    tab.wait_for(lambda: tab.text(button) == "Copy path", "the button as before")
    assert not tab.evaluate("document.querySelectorAll('body > textarea').length")

    tab.click("#tab-events")
    tab.wait_for(lambda: "std_det_writer 0" in tab.text("#events-list"), "the events")
    note_texts(tab, "#events-copy")
    press(tab, "#events-copy")
    tab.wait_for(lambda: "Copied" in noted_texts(tab), "the copy of the events")
    lines = pasted(tab).splitlines()
    assert any(" std_det_writer 0 info " in line for line in lines)
    assert all(line[:4].isdecimal() for line in lines), "each line begins with its day"


def pasted(tab: Tab) -> str:
    """Return what is in the clipboard."""
    tab.evaluate(
        "(() => { const a = document.createElement('textarea'); a.id = 'pasted'; document.body.append(a);"
        " a.focus(); })()"
    )
    tab.call("Input.dispatchKeyEvent", type="keyDown", key="v", modifiers=2, commands=["paste"])
    tab.call("Input.dispatchKeyEvent", type="keyUp", key="v", modifiers=2)
    return tab.evaluate(
        "(() => { const a = document.getElementById('pasted'), text = a.value; a.remove(); return text; })()"
    )
