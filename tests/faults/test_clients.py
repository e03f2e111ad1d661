"""Clients that disappear, hang, do not read, or connect by the hundred."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from support.assertions.accounts import check_perfect, check_run
from support.assertions.faults import (
    KILL_OR_STOP,
    SMALL,
    STATES,
    bring_to,
    in_seconds,
    record_from,
    record_under_load,
    release,
)
from support.processes.deployment import Service, wait_until
from support.processes.recording import RUN_STATES, MakeRig, Publishing, Rig
from support.tools.fault_table import Seen
from websockets.asyncio.client import connect

from stddaq.client import DriverClient


def start_from_a_process(rig: Rig, n_image: int) -> Service:
    """Start a run from a client process, and wait until the run records."""
    rig.wait_for_subscription()
    client = rig.deployment.run(
        *(rig.deployment.stddaq, "record", rig.directory, "-n", n_image, "--url", rig.url)
    )
    rig.client.wait(["waiting_for_first_image"], 60)
    return client


@pytest.mark.fault(
    fault="client that started the run: {how}",
    state="waiting_for_first_image, recording, saving_file",
    promise="the run continues; another client can watch and stop it",
)
@pytest.mark.parametrize("how", KILL_OR_STOP)
def test_a_run_outlives_the_client_that_started_it(make_rig: MakeRig, how: signal.Signals, seen: Seen):
    rig = make_rig(**SMALL)
    for state in STATES:
        started: list[Service] = []
        published = bring_to(rig, state, lambda n, s=started: s.append(start_from_a_process(rig, n)))
        started[0].send(how)
        release(rig)
        with DriverClient(rig.url) as other:
            other.stop()
            other.wait(["idle"], 60)
        account = rig.account()
        assert account["outcome"] == "file_saved"
        checked = check_run(account, published)
        assert checked.n_good == len(published)
        seen(f"{state}: file_saved, {checked}")
        started[0].kill()
        for file in rig.directory.iterdir():
            file.unlink()
    record_under_load(rig)
    seen("next run perfect")


def open_raw(url: str) -> socket.socket:
    """Open a WebSocket connection that is never read after the handshake."""
    host, _, port = url.removeprefix("ws://").partition(":")
    raw = socket.create_connection((host, int(port)), timeout=60)
    key = b64encode(os.urandom(16)).decode()
    raw.sendall(
        f"GET / HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    assert raw.recv(12) == b"HTTP/1.1 101"
    return raw


def reset(raw: socket.socket) -> None:
    """Reset the connection without a close frame, as a host does that crashes and reboots."""
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.close()


@contextmanager
def watchers(url: str, n: int) -> Iterator[list[list[str]]]:
    """Connect `n` clients that read everything. Yield the states that each received, in order."""
    states: list[list[str]] = [[] for _ in range(n)]
    ended = threading.Event()

    async def watch(mine: list[str]) -> None:
        async with connect(url, open_timeout=60) as connection:
            while not ended.is_set():
                state = json.loads(await connection.recv())["status"]
                if mine[-1:] != [state]:
                    mine.append(state)

    async def watch_all() -> None:
        await asyncio.gather(*(watch(mine) for mine in states))

    thread = threading.Thread(target=asyncio.run, args=(watch_all(),), daemon=True)
    thread.start()
    try:
        wait_until(lambda: all(states), what="all watchers")
        yield states
    finally:
        ended.set()
        thread.join(20)


@pytest.mark.fault(
    fault="300 clients: 100 watch, 100 never read, 100 reset their connection",
    state="recording, under load",
    promise="the run is perfect; each watching client receives every state once, in order",
)
def test_hundreds_of_clients_do_not_disturb_a_run(make_rig: MakeRig, seen: Seen):
    rig = make_rig(**SMALL)
    with ExitStack() as clients, Publishing(rig) as source:
        states = clients.enter_context(watchers(rig.url, 100))
        resetting = [open_raw(rig.url) for _ in range(100)]
        for _ in range(100):
            clients.enter_context(open_raw(rig.url))
        rig.client.start(rig.directory, n_image=600)
        rig.client.wait_until_ready(60)
        with source.spared():
            due = source.next_id + 1
            rig.wait_for_count(100)
            for raw in resetting:
                reset(raw)
            rig.client.wait_until_saved(60)
        wait_until(lambda: all(mine[-1] == "idle" for mine in states), what="idle at all watchers")
        account = rig.account()
        checked = check_perfect(account, source.images[:], due=due)
        assert all(mine == ["idle", *RUN_STATES, "idle"] for mine in states)
        seconds = in_seconds(rig.client.status)
        record_from(rig, source)
    seen(f"file_saved; {checked}; a requested status takes {seconds * 1000:.0f} ms; next run perfect")
