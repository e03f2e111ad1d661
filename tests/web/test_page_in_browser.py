"""The page in Chromium: what a person sees of images and runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from support.peers import chromium
from support.peers.chromium import Tab
from support.processes.deployment import Deployment, wait_until
from support.processes.pages import page_of
from support.processes.web import RestService
from websockets.sync.client import connect

from stddaq.client import DriverClient
from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.dataplane.metadata import MISSING_PACKETS
from stddaq.dataplane.metadata_publisher import MetadataPublisher
from stddaq.web.live.session import MAX_BROWSERS

pytestmark = [
    pytest.mark.external,
    pytest.mark.usefixtures("browser"),
    chromium.NEEDED,
]

HEIGHT, WIDTH = 120, 160
VIRIDIS_DARKEST, VIRIDIS_BRIGHTEST = [68, 1, 84], [253, 231, 37]


@pytest.fixture
def page_deployment(make_deployment: Callable[..., Deployment]) -> Deployment:
    return make_deployment(image_pixel_height=HEIGHT, image_pixel_width=WIDTH)


@pytest.fixture
def publisher(page_deployment: Deployment) -> Iterator[ImagePublisher]:
    with ImagePublisher(DetectorConfig.parse(page_deployment.config)) as publisher:
        yield publisher


def ramp() -> np.ndarray:
    """Return an image whose pixel at x, y is 100 x + y."""
    return (100 * np.arange(WIDTH) + np.arange(HEIGHT)[:, None]).astype(np.uint16)


# What people see without the cones for red (protanopia) and green (deuteranopia), of linear RGB:
# Vienot, Brettel, Mollon, Color Research and Application 24 (1999) 243.
EYES = [
    np.eye(3),
    np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]),
    np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]),
]


def assert_brightness_is_even_for_all_eyes(tab: Tab) -> None:
    """Check that each eighth of the colour bar is brighter than the last, by nearly the same."""
    bar = (
        "(() => { const e = document.querySelector('#bar'); const { data } = e.getContext('2d')"
        ".getImageData(0, 0, 1, e.height); return [...data]; })()"
    )
    colours = np.array(tab.evaluate(bar)).reshape(-1, 4)[::-1, :3] / 255
    eighths = colours[np.linspace(0, len(colours) - 1, 9).round().astype(int)]
    linear = np.where(eighths <= 0.04045, eighths / 12.92, ((eighths + 0.055) / 1.055) ** 2.4)
    for eye in EYES:
        luminance = linear @ eye.T @ (0.2126, 0.7152, 0.0722)
        steps = np.diff(116 * np.cbrt(luminance))
        assert steps.min() > 0.5 * steps.mean(), steps
        assert steps.max() < 1.7 * steps.mean(), steps


def test_image_is_shown_with_its_values_colours_and_marks(
    page_deployment: Deployment, publisher: ImagePublisher, tmp_path: Path
) -> None:
    with page_of(page_deployment, publisher, (HEIGHT, WIDTH), tmp_path / "files") as page:
        tab = page.tab
        pixels = ramp()
        page.show(pixels)
        assert tab.text("#size") == f"{WIDTH} \u00d7 {HEIGHT}, uint16"
        page.point_at(30.5, 20.5)
        tab.wait_for(lambda: tab.text("#cursor") == "x 30, y 20: 3020", "the value under the cursor")
        tab.choose("#low", "1000")
        tab.choose("#high", "12000")
        assert tab.evaluate("document.getElementById('levels').value") == "manual"
        assert (tab.text("#bar-low"), tab.text("#bar-high")) == ("1000", "12000")
        assert page.colour_at(2.5, 60.5) == VIRIDIS_DARKEST
        assert page.colour_at(150.5, 60.5) == VIRIDIS_BRIGHTEST
        linear = page.colour_at(30.5, 60.5)
        for scale in ("sqrt", "log"):
            tab.choose("#scale", scale)
            assert sum(page.colour_at(30.5, 60.5)) > sum(linear)
        for name in ("viridis", "cividis", "inferno"):
            tab.choose("#colours", name)
            assert_brightness_is_even_for_all_eyes(tab)
        tab.choose("#colours", "gray")
        assert page.colour_at(150.5, 60.5) == [255, 255, 255]
        tab.click("#inverted")
        assert page.colour_at(150.5, 60.5) == [0, 0, 0]

        pixels[60:64, 80:84] = 65535
        page.show(pixels, status=MISSING_PACKETS)
        assert page.colour_at(81.5, 61.5) == [255, 60, 220]
        assert tab.text("#mark-list") == "16 saturated"
        assert tab.text("#image-status") == "missing packets"
        tab.click("#marks")
        assert page.colour_at(81.5, 61.5) == [0, 0, 0]

        page.show(ramp())
        assert tab.evaluate("document.getElementById('image-status').hidden")


def test_stream_is_chosen_and_grafana_is_linked(
    page_deployment: Deployment, publisher: ImagePublisher, tmp_path: Path
) -> None:
    page_deployment.write_config(services=["std_gf_filter"])
    page_deployment.start("std_gf_filter", "--no_filter")
    page_deployment.start("std_preview", "-s", "filter", "--hz", 100)
    url, files = "https://grafana.example/d/stddaq", tmp_path / "files"
    with page_of(page_deployment, publisher, (HEIGHT, WIDTH), files, "--grafana-url", url) as page:
        tab, name = page.tab, page_deployment.detector_name
        page.show(ramp())
        tab.press(" ")
        names = "[...document.querySelectorAll('#detector option')].map((one) => one.value)"
        assert tab.evaluate(names) == [name, f"{name} filter"]
        tab.choose("#detector", f"{name} filter")
        tab.wait_for(lambda: tab.text("title").startswith(f"{name} filter "), "the filter")
        # An image that is held would be that of the other stream.
        assert tab.text("#pause") == "Pause"
        page.show(ramp())
        tab.reload(keep=True)
        tab.wait_for(lambda: tab.text("title").startswith(f"{name} filter "), "the filter again")
        tab.click("#tab-services")
        tab.wait_for(lambda: tab.text("#grafana") == "Grafana", "the link")
        assert tab.evaluate("document.querySelector('#grafana').href") == url


def test_page_that_is_one_too_many_says_so(page_deployment: Deployment, tmp_path: Path) -> None:
    rest = RestService.start(page_deployment, tmp_path / "files")
    live = rest.url.replace("http", "ws") + "/api/live/ws"
    with ExitStack() as others:
        for _ in range(MAX_BROWSERS):
            others.enter_context(connect(live, proxy=None, open_timeout=20))
        with chromium.opened(rest.url) as tab:
            tab.wait_for(lambda: "refuses another page" in tab.text("#veil"), "the reason")
            others.close()
            tab.wait_for(lambda: "refuses" not in tab.text("#veil"), "a connection")


def test_keys_pause_zoom_and_fit(
    page_deployment: Deployment, publisher: ImagePublisher, tmp_path: Path
) -> None:
    with page_of(page_deployment, publisher, (HEIGHT, WIDTH), tmp_path / "files") as page:
        tab = page.tab
        page.show(ramp())
        tab.press(" ")
        assert tab.text("#pause") == "Go on"
        # A page that is paused takes images all the same, and shows none of them.
        before = page.colour_at(80, 60)
        page.show(np.full((HEIGHT, WIDTH), 1, np.uint16))
        assert page.colour_at(80, 60) == before
        tab.press(" ")
        page.show(ramp())
        page.point_at(80.5, 60.5)
        tab.wait_for(lambda: tab.text("#cursor").startswith("x 80, y 60"), "the value in the middle")
        page.point_at(0.5, 0.5)
        tab.wait_for(lambda: tab.text("#cursor").startswith("x 0, y 0"), "the value in the corner")
        tab.press("+")
        tab.wait_for(lambda: not tab.text("#cursor").startswith("x 0,"), "the corner out of sight")
        tab.press("0")
        tab.wait_for(lambda: tab.text("#cursor").startswith("x 0, y 0"), "the whole image")


def test_run_is_shown_with_state_progress_and_losses(
    page_deployment: Deployment, publisher: ImagePublisher, tmp_path: Path
) -> None:
    _, url = page_deployment.start_driver()
    page_deployment.start_writers()
    rest = RestService.start(page_deployment, tmp_path / "files", "--url", url)
    with chromium.opened(rest.url) as tab, DriverClient(url) as driver:
        tab.wait_for(lambda: tab.text("#state") == "no run", "the driver's state")
        driver.start(tmp_path, n_image=3)
        tab.wait_for(lambda: "waiting" in tab.text("#state"), "the start of the run")
        driver.wait_until_ready(20)
        publisher.publish(1, ramp())
        publisher.publish(3, ramp(), status=MISSING_PACKETS)
        publisher.publish(4, ramp())
        driver.wait_until_saved(30)
        tab.wait_for(lambda: tab.text("#losses") == "2 bad images", "the losses")
        rows = tab.evaluate("[...document.querySelectorAll('#loss-table tr')].map((row) => row.innerText)")
        assert [row.split() for row in rows] == [
            ["damaged", "1"],
            ["overwritten", "0"],
            ["failed", "0"],
            ["skipped", "1"],
            ["dropped", "0"],
            ["restarts", "0"],
        ]
        tab.wait_for(lambda: "3 of 3" in tab.text("#run-facts"), "the images of the run")
        # Nobody has asked for the number of images that stands for "until stopped".
        shown = tab.evaluate(
            "import(document.querySelector('script').src.replace('main.js', 'run.js')).then((m) => {"
            " new m.RunPanel().receive({status: 'recording', run_id: 'x', n_image: 2 ** 24 - 1, count: 5});"
            " return document.querySelector('#run-facts').textContent; })"
        )
        assert shown == "staterecordingimages5, until stopped"
        tab.click("#tab-runs")
        tab.wait_for(lambda: tab.evaluate("!!document.querySelector('[data-run]')"), "the run")
        tab.click("[data-run]")
        tab.wait_for(lambda: tab.evaluate("!!document.querySelector('canvas.missing')"), "the bad images")
        assert "skipped ids2" in tab.text("#run-account")
        opacity = tab.evaluate(
            "(() => { const { data } = document.querySelector('canvas.missing').getContext('2d')"
            ".getImageData(0, 0, 1000, 1); return [125, 375, 625, 875].map((x) => data[4 * x + 3]); })()"
        )
        # Of the ids 1 to 4.
        assert opacity == [0, 255, 255, 0]
        assert tab.complaints == []


def test_ids_that_a_filter_leaves_out_are_no_loss(
    page_deployment: Deployment, publisher: ImagePublisher, tmp_path: Path
) -> None:
    _, url = page_deployment.start_driver("-s", "filter")
    for writer in range(page_deployment.config["number_of_writers"]):
        page_deployment.start("std_det_writer", writer, "-s", "filter")
    rest = RestService.start(page_deployment, tmp_path / "files", "--url", url)
    row = "[...document.querySelectorAll('#loss-table tr')].find((one) => one.textContent === 'skipped2')"
    with (
        MetadataPublisher(DetectorConfig.parse(page_deployment.config), "filter") as passed_on,
        chromium.opened(rest.url) as tab,
        DriverClient(url) as driver,
    ):
        tab.wait_for(lambda: tab.text("#state") == "no run", "the driver's state")
        driver.start(rest.root, n_image=2)
        driver.wait_until_ready(20)
        for image_id in range(1, 5):
            sequence = publisher.publish(image_id, ramp())
            if image_id in (1, 4):
                message = type(publisher.metadata)()
                message.CopyFrom(publisher.metadata)
                message.sequence = sequence
                passed_on.send(message)
        driver.wait_until_saved(30)
        tab.wait_for(lambda: tab.evaluate(f"{row}?.className === 'quiet'"), "the ids, in grey")
        assert tab.text("#losses") == "no loss"
        tab.click("#tab-runs")
        tab.wait_for(lambda: "fileMaster.h5" in tab.text("#runs-list"), "the run")
        assert not tab.evaluate("document.querySelectorAll('#runs-list .bad').length")


def test_views_are_chosen_by_tabs_and_by_keys(page_deployment: Deployment, tmp_path: Path) -> None:
    rest = RestService.start(page_deployment, tmp_path / "files", "--url", "ws://127.0.0.1:9")
    preview = page_deployment.start("std_preview")
    wait_until((page_deployment.pages / "std_preview").exists)
    preview.kill()
    with chromium.opened(rest.url + "/#services") as tab:
        shown = "[...document.querySelectorAll('main > [role=tabpanel]')].filter((panel) => !panel.hidden)"
        tab.wait_for(lambda: tab.evaluate(f"{shown}.map((panel) => panel.id)") == ["panel-services"], "view")
        ended = "std_preview has crashed or was killed. stddaq up starts it again"
        tab.wait_for(lambda: ended in tab.text("#health"), "what to do about a service that has ended")
        tab.evaluate("document.getElementById('tab-services').focus()")
        tab.press("ArrowRight")
        tab.wait_for(lambda: "configuration" in tab.evaluate("location.hash"), "the next view")
        tab.press("Home")
        tab.wait_for(lambda: tab.evaluate(f"{shown}.map((panel) => panel.id)") == ["panel-live"], "the image")
        assert tab.complaints == []


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_page_needs_no_scrolling_on_a_laptop_and_says_what_does_not_run(
    page_deployment: Deployment, tmp_path: Path, scheme: str
) -> None:
    rest = RestService.start(page_deployment, tmp_path / "files", "--url", "ws://127.0.0.1:9")
    with chromium.opened(rest.url, 1366, 700, scheme) as tab:
        tab.wait_for(lambda: "std_preview CONFIG" in tab.text("#veil"), "how to start the preview service")
        tab.wait_for(lambda: tab.text("#state") == "driver not reachable", "the driver's absence")
        assert "stddaq up CONFIG" in tab.text("#run-reason")
        root = "document.documentElement"
        assert tab.evaluate(f"[{root}.scrollHeight, {root}.scrollWidth]") == [700, 1366]
        assert tab.complaints == []
