"""The page in Chromium: log in, control runs, change the configuration."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from support.data.token import TOKEN
from support.peers import chromium
from support.peers.chromium import Tab
from support.processes.deployment import Deployment, free_port, wait_until
from support.processes.web import RestService

from stddaq.client import DriverClient
from stddaq.client.simulator import SimulatorClient
from stddaq.config import DetectorConfig
from stddaq.daemon import metrics
from stddaq.daemon.metrics import Registry
from stddaq.daemon.metrics_page import MetricsPage
from stddaq.dataplane.image_publisher import ImagePublisher

pytestmark = [
    pytest.mark.external,
    pytest.mark.usefixtures("browser"),
    chromium.NEEDED,
]


def write(tab: Tab, selector: str, value: str) -> None:
    """Type into a field."""
    tab.wait_for(lambda: tab.evaluate(f"!!document.querySelector({json.dumps(selector)})"), selector)
    tab.evaluate(
        f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.value = {json.dumps(value)};"
        " e.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def show(tab: Tab, view: str) -> None:
    """Open a view of the page."""
    selector = f"#tab-{view}"
    tab.wait_for(lambda: tab.evaluate(f"!!document.querySelector('{selector}')?.ariaSelected"), "the tabs")
    tab.click(selector)


def click(tab: Tab, selector: str) -> None:
    tab.wait_for(lambda: tab.evaluate(f"!!document.querySelector({json.dumps(selector)})"), selector)
    tab.click(selector)


@contextmanager
def opened(url: str) -> Iterator[Tab]:
    with chromium.opened(url) as tab:
        yield tab
        assert tab.complaints == []


def test_token_opens_the_page_and_a_logout_closes_it(
    start_rest: Callable[..., RestService], token_file: Path
) -> None:
    rest = start_rest("--token-file", token_file)
    with chromium.opened(rest.url) as tab:
        write(tab, "#login-user", "anna")
        write(tab, "#login-token", "wrong")
        assert tab.text("#state") == "connecting"
        tab.click("#login button")
        tab.wait_for(lambda: "expected a token of this service" in tab.text("#login-reason"), "the refusal")
        write(tab, "#login-token", TOKEN)
        tab.click("#login button")
        tab.wait_for(lambda: tab.text("#account") == "annaLog out", "the page after the login")
        assert tab.evaluate("document.cookie") == ""
        show(tab, "run")
        tab.wait_for(lambda: tab.text("#run-form"), "the form of a run")
        click(tab, "#logout")
        tab.wait_for(lambda: tab.evaluate("!!document.querySelector('#login')"), "the form to log in")
        # The browser itself notes the refused login.
        assert [text for text in tab.complaints if "401" not in text] == []


def test_run_is_started_watched_and_stopped_on_the_page(deployment: Deployment, tmp_path: Path) -> None:
    _, url = deployment.start_driver()
    deployment.start_writers()
    rest = RestService.start(deployment, tmp_path / "files", "--url", url)
    config = DetectorConfig.parse(deployment.config)
    with chromium.opened(rest.url) as tab, ImagePublisher(config) as publisher:
        tab.wait_for(lambda: tab.text("#state") == "no run", "the driver's state")
        show(tab, "run")
        write(tab, "#run-path", f"{tmp_path}/absent")
        tab.wait_for(lambda: "expected an existing directory" in tab.text("#run-path-reason"), "the reason")
        write(tab, "#run-path", str(tmp_path))
        write(tab, "#run-file_prefix", "a/b")
        tab.wait_for(lambda: tab.text("#run-file_prefix-reason"), "the reason beside the prefix")
        assert tab.text("#run-path-reason") == ""
        write(tab, "#run-file_prefix", "scan")
        write(tab, "#run-n_image", "1000")
        tab.wait_for(lambda: tab.text("#control-answer").startswith("would need "), "the size of the run")
        tab.click("#start-run")
        tab.wait_for(lambda: "waiting" in tab.text("#state"), "the start of the run")
        publisher.publish(1, np.ones(config.image_shape, np.uint16))
        tab.wait_for(lambda: tab.text("#state") == "recording", "the first image")
        tab.wait_for(lambda: "1 of 1000" in tab.text("#run-facts"), "the images of the run")
        assert tab.evaluate("[...document.querySelectorAll('#writers meter')].map((one) => one.value)") == [
            0,
            0,
        ]
        # A click does not stop it; Enter twice does.
        tab.click("#stop-run")
        tab.evaluate("document.querySelector('#stop-run').focus()")
        tab.press("Enter")
        tab.wait_for(lambda: "again" in tab.text("#control-answer"), "the question")
        assert tab.text("#state") == "recording"
        tab.press("Enter")
        with DriverClient(url) as driver:
            wait_until(lambda: (driver.last_result() or {}).get("count") == 1, 30, "the account")
        tab.wait_for(lambda: tab.text("#state") == "no run", "the end of the run")
        assert (tmp_path / "scanMaster.h5").exists()
        tab.click("#repair-run")
        closed = "All files of the last run are closed."
        tab.wait_for(lambda: tab.text("#control-answer") == closed, "the answer to repair")
        # The browser itself notes each refusal of the driver.
        assert [text for text in tab.complaints if "422" not in text] == []


def test_viewer_has_no_control(deployment: Deployment, tmp_path: Path) -> None:
    rest = RestService.start_as_it_is(deployment, tmp_path)
    with opened(rest.url) as tab:
        show(tab, "run")
        tab.wait_for(lambda: "--allow-control" in tab.text("#no-control"), "the reason")
        show(tab, "configuration")
        tab.wait_for(lambda: "Rows of the image." in tab.text("#config-keys"), "the meanings of the keys")
        rows = (
            "[...document.querySelectorAll('#config-keys tbody tr')].map((row) => row.innerText.split('\\t'))"
        )
        mandatory = [row[0].strip() for row in tab.evaluate(rows) if row[-1].strip() == "mandatory"]
        assert "detector_name" in mandatory
        assert "services" not in mandatory
        assert tab.evaluate("document.querySelector('#config-text').readOnly")
        assert not tab.evaluate("!!document.querySelector('#config-save')")


def test_configuration_is_changed_with_differences_and_rolled_back(rest: RestService) -> None:
    first = rest.deployment.config
    with chromium.opened(rest.url) as tab:
        show(tab, "configuration")
        read = "document.querySelector('#config-text')?.value"
        tab.wait_for(lambda: tab.evaluate(f"{read}?.includes('detector_name')"), "the configuration")
        write(tab, "#config-text", json.dumps(first | {"number_of_writers": -1}))
        tab.wait_for(lambda: "number_of_writers" in tab.text("#config-mistakes"), "the mistake")
        stream = "tcp://127.0.0.1:1"
        setting = {"type": "forward", "config": []}
        write(tab, "#config-text", json.dumps(first | {"live_stream_configs": {stream: setting}}))
        images = f"[aria-label='Images of {stream}']"
        tab.wait_for(lambda: tab.evaluate(f'!!document.querySelector("{images}")'), "the stream")
        tab.choose(images, "batch")
        changed = json.loads(tab.evaluate(read))["live_stream_configs"]
        assert changed == {stream: {"type": "batch", "config": [1, 10]}}
        write(tab, "#config-text", json.dumps(first))
        tab.choose("[data-key=number_of_writers]", "3")
        tab.wait_for(lambda: "restarts std_det_driver" in tab.text("#config-effect"), "the effect")
        assert "number_of_writers23" in tab.text("#config-differences")
        # A colleague is faster.
        rest.set(first | {"log_level": "error"}, user="bert")
        tab.click("#config-save")
        tab.wait_for(lambda: "in the file now" in tab.text("#config-differences"), "the conflict")
        assert "has changed since it was read" in tab.text("#config-mistakes")
        tab.click("#config-take-over")
        tab.wait_for(lambda: tab.text("#config-mistakes") == "", "the merged configuration")
        tab.click("#config-save")
        tab.wait_for(lambda: tab.text("#config-effect").startswith("Saved"), "the change")
        assert rest.config_on_disk() == first | {"log_level": "error", "number_of_writers": 3}
        tab.wait_for(lambda: "bert" in tab.text("#config-history"), "the history")
        versions = "[...document.querySelectorAll('#config-first option')].map((one) => one.value)"
        _, newer, oldest = tab.evaluate(versions)
        tab.choose("#config-first", oldest)
        tab.choose("#config-second", newer)
        compared = "[...document.querySelectorAll('#config-compared tbody tr')].map((row) => row.innerText)"
        only = ['log_level\t\u2013\t"error"']
        tab.wait_for(lambda: tab.evaluate(compared) == only, "the differences")
        tab.choose("#config-second", oldest)
        tab.wait_for(lambda: tab.text("#config-compared") == "no differences", "the differences of the same")
        tab.evaluate("[...document.querySelectorAll('#config-history button')].at(-1).click()")
        tab.wait_for(lambda: tab.text("#config-effect").startswith("changes "), "the version")
        tab.click("#config-save")
        tab.wait_for(lambda: rest.config_on_disk() == first, "the first version")
        # The browser itself notes the refused change.
        assert [text for text in tab.complaints if "412" not in text] == []


@contextmanager
def receiver_that_lost(detector: str, n_packets: int) -> Iterator[None]:
    """Publish the metrics of a receiver that has lost packets."""
    registry = Registry(detector, "std_udp_recv_gf", "3")
    registry.add(metrics.PACKETS_DROPPED, lambda: n_packets)
    page = MetricsPage(registry, 60)
    page.publish_if_due()
    try:
        yield
    finally:
        page.remove()
        page.close()


def test_services_events_and_runs_are_shown(
    make_deployment: Callable[..., Deployment], tmp_path: Path
) -> None:
    port = free_port()
    deployment = make_deployment()
    deployment.start_up("--port", port, "--source", "simulate", "--trigger", "--rate", 50)
    url = f"ws://127.0.0.1:{port}"
    rest = RestService.start(deployment, tmp_path / "files", "--url", url)
    with opened(rest.url) as tab:
        show(tab, "services")
        tab.wait_for(lambda: "simulate" in tab.text("#health"), "the services")
        tab.wait_for(
            lambda: tab.text("#ring-buffers").startswith(deployment.detector_name), "the ring buffer"
        )
        assert tab.text("#disks").startswith("directoryfreesizefull in")
        with receiver_that_lost(deployment.detector_name, 7):
            tab.wait_for(lambda: "packets dropped 7" in tab.text("#health"), "the losses by kind")
        click(tab, "[data-simulator=start]")
        with DriverClient(url) as driver:
            driver.start(rest.root, n_image=5)
            driver.wait_until_saved(60)
        tab.wait_for(lambda: "simulate images published" in tab.text(".panel:not([hidden])"), "the rates")
        # What they write, how long the ring buffer lasts, and when the disk is full.
        tab.wait_for(
            lambda: re.search(r"images, which last [0-9.]+ (s|min|h|days) ", tab.text("#ring-buffers")),
            "time",
        )
        write(tab, "[aria-label^='Images per second']", "40")
        click(tab, "[data-simulator=stop]")
        tab.wait_for(lambda: "waits for triggers" in tab.text("#simulator"), "the end of the images")
        with SimulatorClient(deployment.detector_name) as simulator:
            n_published = simulator.status().n_published
            click(tab, "[data-simulator=trigger]")
            wait_until(lambda: simulator.status().n_published == n_published + 1, 20, "the triggered image")
        click(tab, "[data-simulator=start]")
        tab.wait_for(lambda: "publishes 40 images/s" in tab.text("#simulator"), "the rate")
        click(tab, "[data-simulator=stop]")

        show(tab, "runs")
        tab.wait_for(lambda: f"{rest.root}/fileMaster.h5" in tab.text("#runs-list"), "the run")
        click(tab, "#runs-list button")
        tab.wait_for(lambda: "n_good5" in tab.text("#run-account"), "the account")
        # Without bad images there is no plot of them.
        assert "null" not in tab.text("#run-account")
        click(tab, f"[data-images='{rest.root}/fileMaster.h5']")
        tab.wait_for(lambda: "good, 1 of 5" in tab.text(".file-image-text"), "the first image")
        click(tab, f"[data-rows='{rest.root}/fileMaster.h5']")
        tab.wait_for(lambda: "rows 1 to 5 of 5" in tab.text("#run-account"), "the rows")
        assert "image_id" in tab.text(".file-rows")
        tab.choose("[aria-label='Position of the image']", "4")
        tab.wait_for(lambda: "good, 5 of 5" in tab.text(".file-image-text"), "the last image")

        show(tab, "events")
        tab.wait_for(lambda: "std_det_writer 0" in tab.text("#events-list"), "the events")
        write(tab, "#events-service", "std_det_writer 1")
        tab.wait_for(lambda: "std_det_writer 0" not in tab.text("#events-list"), "the filter")
        assert "std_det_writer 1" in tab.text("#events-list")
        assert "detector=" not in tab.text("#events-list")
        tab.click("#events-statistics")
        tab.wait_for(lambda: "n_written_images=" in tab.text("#events-list"), "the statistics")


def test_lines_of_services_are_shown_as_text(deployment: Deployment, tmp_path: Path) -> None:
    """A path or a peer can put anything into a log line."""
    hostile = "<img src=x onerror=alert(1)><b>bold</b>\u202e"
    publish = (
        "import sys, asyncio, signal; from stddaq.cli.supervisor.events import EventPublisher\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        "async def main():\n"
        "    events = EventPublisher(sys.argv[1]); events.publish(sys.argv[2], sys.argv[3])\n"
        "    print('ready', flush=True)\n"
        "    try:\n"
        "        await events.serve()\n"
        "    finally:\n"
        "        events.close()\n"
        "asyncio.run(main())"
    )
    deployment.run(
        sys.executable, "-c", publish, deployment.detector_name, hostile, "<i>service", ready="ready"
    )
    rest = RestService.start(deployment, tmp_path / "files")
    with opened(rest.url) as tab:
        show(tab, "events")
        tab.wait_for(lambda: hostile in tab.text("#events-list"), "the line")
        assert "<i>service" in tab.text("#events-list")
        assert tab.evaluate("document.querySelectorAll('#events-list img, #events-list i').length") == 0


def test_requests_are_described_without_internet(rest: RestService) -> None:
    with opened(f"{rest.url}/docs") as tab:
        tab.wait_for(lambda: "POST /api/run/start" in tab.text("#requests"), "the requests")
        described = tab.evaluate("[...document.querySelectorAll('section > h2')].map((e) => e.textContent)")
        api = rest.get("/openapi.json").json()
        assert sorted(described) == sorted(
            f"{method.upper()} {path}" for path, methods in api["paths"].items() for method in methods
        )
        own = rest.url.partition("://")[2]
        assert all(own in url for url in tab.urls)
