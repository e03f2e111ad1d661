"""Control characters from outside never reach the terminal: a hostile driver, and hostile files."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
import zmq
from support.processes.deployment import console_script
from support.processes.preloaded import PreloadedProcess
from websockets.sync.server import ServerConnection, serve

from stddaq.wire.array10 import HeaderMaker
from stddaq.wire.bsread import Channel, MessageEncoder

HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\n\x9bfake: all good\udcff"
# Anything that a terminal would act on; a line break of the hostile text would begin a line with "fake".
FORBIDDEN = ("\x1b", "\x07", "\r", "\x9b", "\nfake")
ROW = np.dtype([("image_id", "<u8"), ("status", "<u8")])


def run(*arguments: object, cwd: Path | None = None) -> str:
    """Run `stddaq`. Return all its output, which must be free of control characters.

    Its bytes are read as they are: lines of text would hide a carriage return.
    """
    process = PreloadedProcess([console_script("stddaq"), *map(str, arguments)], os.environ, cwd)
    with process.stdout, process.stderr:
        written = process.stdout.buffer.read() + process.stderr.buffer.read()
    process.wait(50)
    output = written.decode(errors="surrogateescape")
    assert "Traceback" not in output
    for part in FORBIDDEN:
        assert part not in output, (part, output)
    return output


@pytest.fixture
def hostile_driver() -> Iterator[str]:
    """A driver whose every text is hostile."""
    account = {
        "outcome": "error",
        "reason": HOSTILE,
        "late": HOSTILE,
        "files": {"raw": [HOSTILE]},
        "run_id": "1",
    }

    def answer(client: ServerConnection) -> None:
        status = {"status": "error", "reason": HOSTILE, "run_id": "1", "error": HOSTILE}
        client.send(json.dumps({"status": HOSTILE, "reason": HOSTILE, "run_id": "1"}))
        for frame in client:
            command = json.loads(frame)["command"]
            repaired = {"path": HOSTILE, "n_images": 1, "n_cut": 0, "repaired": True, "reason": None}
            both = [repaired, repaired | {"reason": HOSTILE}]
            reply = status | {"command": command, "result": account, "repaired": both}
            client.send(
                json.dumps(reply if command == "start" else reply | {"status": HOSTILE, "error": None})
            )

    with serve(answer, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()


def test_texts_of_a_driver(hostile_driver: str, tmp_path: Path) -> None:
    assert "owned" in run("status", "--url", hostile_driver)
    assert "owned" in run("status", "--json", "--url", hostile_driver)
    assert "owned" in run("stop", "--url", hostile_driver, "--timeout", 1)
    assert "owned" in run("record", tmp_path, "-n", 1, "--url", hostile_driver)
    assert "owned" in run("repair", "--run", "--url", hostile_driver)


@pytest.mark.slow
def test_names_and_content_of_files(tmp_path: Path) -> None:
    path = tmp_path / f"{HOSTILE}0.h5"
    name = HOSTILE.replace("\udcff", "")
    with h5py.File(path, "w") as file:
        group = file.create_group(name)
        group["data"] = np.zeros((1, 2, 2), np.uint16)
        group["metadata"] = np.array([(1, 1)], ROW)
        group.attrs["run_id"] = name
        file[f"{name}2"] = np.zeros(3)
    other, absent = tmp_path / f"{HOSTILE}1.h5", tmp_path / f"{HOSTILE}absent"
    other.write_bytes(b"no HDF5")
    for command, file_names in {
        "info": (path, other, absent),
        "validate": (path, other),
        "repair": (path, other),
        "aggregate": (path,),
    }.items():
        for file_name in file_names:
            assert "owned" in run(command, file_name)
    assert "owned" in run("export", path, tmp_path / f"{HOSTILE}.tif")
    assert "owned" in run("plot-missing", path, "-o", tmp_path / f"{HOSTILE}.png")
    assert "owned" in run("up", tmp_path / HOSTILE)
    assert "owned" in run("record", tmp_path / HOSTILE, "--url", f"ws://127.0.0.1:1/{HOSTILE}")
    assert "owned" in run("watch", f"tcp://{HOSTILE}", "--timeout", 1)
    assert "owned" in run("trigger", tmp_path / HOSTILE)


@pytest.fixture
def start_stream() -> Iterator[Callable[[Sequence[bytes]], str]]:
    """Return a function that starts a live stream of one message again and again. It returns the address."""
    ended = threading.Event()
    threads: list[threading.Thread] = []
    with zmq.Context() as context:

        def send(socket: zmq.Socket, message: Sequence[bytes]) -> None:
            with socket:
                while not ended.wait(0.02):
                    socket.send_multipart(message)

        def start(message: Sequence[bytes]) -> str:
            socket = context.socket(zmq.PUB)
            socket.linger = 0
            port = socket.bind_to_random_port("tcp://127.0.0.1")
            threads.append(threading.Thread(target=send, args=(socket, message)))
            threads[-1].start()
            return f"tcp://127.0.0.1:{port}"

        yield start
        ended.set()
        for thread in threads:
            thread.join()


def hostile_image() -> list[bytes]:
    """Return a bsread message whose texts are hostile."""
    text = HOSTILE.replace("\udcff", "")
    pixels = np.arange(24, dtype="<u2").reshape(4, 6)
    parts = MessageEncoder([Channel.of_image(text, (4, 6), pixels.dtype)]).message(
        7, 1, 2, [pixels.tobytes()]
    )
    header = json.dumps(json.loads(bytes(parts[0])) | {"status": text}).encode()
    return [header, *(bytes(part or b"") for part in parts[1:])]


def hostile_header() -> list[bytes]:
    """Return an array-1.0 message of a hostile type."""
    header = json.loads(HeaderMaker((4, 6), "uint16").header(3))
    return [json.dumps(header | {"type": HOSTILE.replace("\udcff", "")}).encode(), bytes(48)]


@pytest.mark.slow
def test_texts_of_a_live_stream(start_stream: Callable[[Sequence[bytes]], str], tmp_path: Path) -> None:
    address = start_stream(hostile_image())
    assert "owned" in run("watch", address, "-n", 3, "--save", tmp_path / HOSTILE)
    assert "owned" in run("watch", start_stream(hostile_header()), "--timeout", 4)
    shown = run_in_terminal("watch", address, "-n", 3)
    assert "this image: " in shown
    assert "owned" in shown
    for part in ("\x1b]0;", "\x07", "\x9b", "\x1b[2J\r\n"):
        assert part not in shown


def run_in_terminal(*arguments: object) -> str:
    """Run `stddaq` in a terminal. Return what it writes there."""
    terminal, end = pty.openpty()
    command = [console_script("stddaq"), *map(str, arguments)]
    env = os.environ | {"TERM": "xterm-256color", "COLUMNS": "200", "LINES": "24"}
    with subprocess.Popen(command, stdin=end, stdout=end, stderr=end, env=env) as process:
        os.close(end)
        shown = b""
        with suppress(OSError):  # The program has exited.
            while part := os.read(terminal, 65536):
                shown += part
        os.close(terminal)
        assert process.wait(60) == 0
    return shown.decode()


@pytest.mark.slow
def test_directory_of_the_demo(tmp_path: Path) -> None:
    directory = tmp_path / HOSTILE.replace("\udcff", "")
    shown = run("demo", "--directory", directory, "-n", 5, "--size", 64)
    assert "all good" in shown
    assert "owned" in shown
    (directory / "demo.json").unlink()
    assert "owned" in run("demo", "--directory", directory)
    assert "owned" in run("demo", "--directory", tmp_path / "x" / HOSTILE, "-n", 5, "--size", 64)
