"""A headless Chromium, controlled over its DevTools protocol."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.processes.deployment import wait_until
from websockets.sync.client import ClientConnection, connect

# `make test-all` unpacks it there with the libraries that the machine lacks.
_ROOT = Path(sys.prefix) / "chromium"
_UNPACKED = _ROOT / "usr" / "lib" / "chromium" / "chromium"
PROGRAM = str(_UNPACKED) if _UNPACKED.exists() else shutil.which("chromium")
NEEDED = pytest.mark.skipif(
    PROGRAM is None, reason="needs the package chromium of Debian, see .ci/make-debian-packages"
)
TIMEOUT_S = 60.0
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


class NavigatedError(AssertionError):
    """The page was loaded again, or another one was, while an expression was evaluated."""


class Tab:
    """One page in the browser.

    Attributes:
        complaints: messages of the console that are warnings or errors, and exceptions.
        urls: of everything that the page has requested.
    """

    def __init__(self, browser: ClientConnection, session: str) -> None:
        self._browser, self._session, self._id = browser, session, 0
        self.complaints: list[str] = []
        self.urls: list[str] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._send(method, parameters)
        while True:
            answer = json.loads(self._browser.recv(timeout=TIMEOUT_S))
            if answer.get("id") == self._id and answer.get("sessionId") == self._session:
                if "navigated" in answer.get("error", {}).get("message", ""):
                    raise NavigatedError(method)
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer)

    def _send(self, method: str, parameters: Mapping[str, Any]) -> None:
        self._id += 1
        message = {"id": self._id, "method": method, "params": parameters, "sessionId": self._session}
        self._browser.send(json.dumps(message))

    def _note(self, event: dict[str, Any]) -> None:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("warning", "error"):
            self.complaints.append(str(parameters["args"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("warning", "error"):
            # Chromium warns of tests that read the canvas.
            if parameters["entry"]["source"] != "rendering":
                self.complaints.append(str(parameters["entry"]))
        elif method == "Network.requestWillBeSent":
            self.urls.append(parameters["request"]["url"])
        elif method == "Network.webSocketCreated":
            self.urls.append(parameters["url"])

    def pictures_until(self, end: float) -> Iterator[tuple[float, str]]:
        """Yield what is drawn since `Page.startScreencast`, until `end` of the monotonic clock.

        Each picture has the time since 1970 when it was drawn, and is encoded as base64.
        """
        while (left := end - time.monotonic()) > 0:
            try:
                event = json.loads(self._browser.recv(timeout=left))
            except TimeoutError:
                return
            self._note(event)
            if event.get("method") == "Page.screencastFrame":
                frame = event["params"]
                self._send("Page.screencastFrameAck", {"sessionId": frame["sessionId"]})
                yield frame["metadata"]["timestamp"], frame["data"]

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, (expression, done["exceptionDetails"])
        return done["result"].get("value")

    def text(self, selector: str) -> str:
        """Return the text of an element; empty before the page is loaded."""
        return self.evaluate(f"document.querySelector({json.dumps(selector)})?.textContent ?? ''")

    def wait_for(self, condition: Callable[[], Any], what: str) -> Any:
        """Call `condition` until its result is true, and return that. The page may be loaded meanwhile."""

        def value() -> Any:
            try:
                return condition()
            except NavigatedError:
                return None

        try:
            return wait_until(value, TIMEOUT_S, what)
        except AssertionError as error:
            raise AssertionError(f"{error}; {self.complaints}") from None

    def choose(self, selector: str, value: str) -> None:
        """Choose an option, or type into a field, and leave it."""
        self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            f" e.value = {json.dumps(value)};"
            " e.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )

    def click(self, selector: str) -> None:
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    def press(self, key: str) -> None:
        """Press a key, given by its character or its name."""
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Move the mouse from one place to another with its button pressed."""
        mouse = {"button": "left", "clickCount": 1}
        self.move_to(*start)
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=start[0], y=start[1], **mouse)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=end[0], y=end[1], buttons=1, button="left")
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=end[0], y=end[1], **mouse)

    def saved(self, selector: str, name: str) -> bytes:
        """Click a button, and return the file that the browser saves."""
        with tempfile.TemporaryDirectory() as directory:
            self.call("Page.setDownloadBehavior", behavior="allow", downloadPath=directory)
            self.click(selector)
            path = Path(directory, name)
            self.wait_for(path.exists, f"the file {name}")
            return path.read_bytes()

    def reload(self, *, keep: bool = False) -> None:
        """Load the page again; without `keep`, as a browser that has never shown it."""
        if not keep:
            self.evaluate("localStorage.clear()")
        self.evaluate("window.isOld = true")
        self.call("Page.reload")
        is_loaded = "!window.isOld && document.getElementById('colours')?.options.length > 0"
        self.wait_for(lambda: self.evaluate(is_loaded), "the page")

    def resize(self, width: int, height: int) -> None:
        """Give the page another size."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def move_to(self, x: float, y: float) -> None:
        """Move the mouse."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)


class _Shared:
    """The browser of `shared`, at this address."""

    address: str | None = None


@contextmanager
def shared() -> Iterator[None]:
    """Open all pages meanwhile in one browser. Each has its own storage and cookies, as a new profile has."""
    with _started() as _Shared.address:
        try:
            yield
        finally:
            _Shared.address = None


@contextmanager
def opened(
    url: str, width: int = 1280, height: int = 800, scheme: str = "dark", niceness: int = 0
) -> Iterator[Tab]:
    """Open a page, in a browser of its own unless there is a `shared` one."""
    with ExitStack() as stack:
        address = _Shared.address or stack.enter_context(_started(niceness))
        browser = stack.enter_context(connect(address, proxy=None, max_size=None, open_timeout=TIMEOUT_S))
        profile = _called(browser, 1, "Target.createBrowserContext")["browserContextId"]
        try:
            yield _tab(browser, profile, url, width, height, scheme)
        finally:
            _called(browser, 1, "Target.disposeBrowserContext", browserContextId=profile)


@contextmanager
def _started(niceness: int = 0) -> Iterator[str]:
    """Start a browser, and yield the address of its protocol."""
    assert PROGRAM is not None
    with tempfile.TemporaryDirectory() as profile:
        command = [
            "nice",
            "-n",
            str(niceness),
            PROGRAM,
            *_OPTIONS,
            f"--user-data-dir={profile}",
            "about:blank",
        ]
        process = subprocess.Popen(
            command,
            env=_environment(profile),
            process_group=0,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stderr is not None
            with process.stderr:
                found = (re.search(r"DevTools listening on (ws://\S+)", line) for line in process.stderr)
                yield next(match[1] for match in found if match)
        finally:
            # In order, its end takes seconds, and keeps a profile that is not wanted.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(TIMEOUT_S)
            # The other processes of the browser write into the profile until they end.
            wait_until(lambda: not _is_running(process.pid), TIMEOUT_S, "the end of the browser")


def _environment(profile: str) -> dict[str, str]:
    # It leaves a directory with a socket in TMPDIR.
    found = os.environ | {"TMPDIR": profile}
    if str(_UNPACKED) == PROGRAM:
        libraries = [
            path
            for triplet in _ROOT.glob("usr/lib/*-linux-gnu*")
            for path in (triplet, triplet / "pulseaudio")
        ]
        found["LD_LIBRARY_PATH"] = os.pathsep.join(map(str, libraries))
        if (_ROOT / "etc" / "fonts").exists():
            found["FONTCONFIG_SYSROOT"] = str(_ROOT)
    return found


def _is_running(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _tab(browser: ClientConnection, profile: str, url: str, width: int, height: int, scheme: str) -> Tab:
    new = {"url": "about:blank", "browserContextId": profile}
    target = _called(browser, 1, "Target.createTarget", **new)["targetId"]
    session = _called(browser, 1, "Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    tab = Tab(browser, session)
    for domain in ("Page", "Runtime", "Log", "Network"):
        tab.call(f"{domain}.enable")
    tab.resize(width, height)
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    tab.call("Page.navigate", url=url)
    return tab


def _called(browser: ClientConnection, number: int, method: str, **parameters: Any) -> dict[str, Any]:
    browser.send(json.dumps({"id": number, "method": method, "params": parameters}))
    while (answer := json.loads(browser.recv(timeout=TIMEOUT_S))).get("id") != number:
        pass
    return answer["result"]
