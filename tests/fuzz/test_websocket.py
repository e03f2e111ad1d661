"""The driver answers or refuses any WebSocket input in every state, and keeps running."""

from __future__ import annotations

import base64
import itertools
import json
import os
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.processes.machine import assert_within
from support.processes.recording import MakeRig, Rig, assert_consistent, assert_saved, images_of
from support.tools.fuzzing import JSON_VALUES, Health, deeply_nested, examples
from websockets.sync.client import ClientConnection, connect

from stddaq.wire.driver_messages import ErrorType, StartCommand

COMMANDS = ("start", "stop", "status", "last_result")
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "file_prefix": st.sampled_from(["fuzz", "", "a/b", "..", "x" * 300, "\n[error]", "\u2028"]) | JSON_VALUES,
    "n_image": st.sampled_from([0, 1, 2, 5, 2**24 - 1, 2**63 - 1, 2**63, 1.0]) | JSON_VALUES,
    "writer_id": st.sampled_from([0, 0, 0, os.geteuid(), 65533, -1, 2**31]) | JSON_VALUES,
    "start_id": st.sampled_from([0, 0, 3, 2**64 - 1, 2**64]) | JSON_VALUES,
    "overwrite": st.booleans() | JSON_VALUES,
    "strict": st.booleans(),
    "end_on_restart": st.booleans() | JSON_VALUES,
    "first_image_timeout": st.sampled_from([None, 0.001, 0.05, 1e9, 1e-300, 0, -1, float("inf")])
    | JSON_VALUES,
    "nexus": st.sampled_from(
        [None, {"definition": "NXmx"}, {"sample": {"name": "\ud800"}}, {"axes": {"x": 1}}]
    )
    | JSON_VALUES,
    "metadata": st.sampled_from([{}, {"uid": "6a2c"}, {"a": {"b": [1, None]}}, {"": "\ud800"}]) | JSON_VALUES,
}
assert FIELDS.keys() == StartCommand.__dataclass_fields__.keys() - {"command", "path"}


def frames(directory: Path) -> st.SearchStrategy[str | bytes]:
    """Generate valid commands, almost valid commands, and arbitrary frames."""
    paths = st.sampled_from(
        [*[str(directory)] * 6, f"{directory}/missing", "/", "relative", "", "/\0", "/\n[x] y"]
    )
    valid = st.fixed_dictionaries({"path": st.just(str(directory)), "overwrite": st.just(True)}).map(
        lambda fields: {"command": "start", "n_image": 3, **fields}
    )
    almost = st.fixed_dictionaries(
        {"command": st.sampled_from(COMMANDS) | JSON_VALUES}, optional={"path": paths | JSON_VALUES, **FIELDS}
    )
    return st.one_of(
        valid.map(json.dumps),
        almost.map(json.dumps),
        st.sampled_from(COMMANDS).map(lambda name: json.dumps({"command": name})),
        st.tuples(almost, st.text(max_size=8), JSON_VALUES).map(
            lambda parts: json.dumps({**parts[0], parts[1]: parts[2]})
        ),
        JSON_VALUES.map(json.dumps),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
        st.binary(max_size=40),
        st.sampled_from([100, 900, 990, 20_000]).map(deeply_nested),
        st.sampled_from(
            ["9" * 5000, '{"command": "stop"', '"' + "\\ud800" * 9000 + '"', "NaN", "1e999", "\ufeff{}"]
        ),
    )


def direct_replies(connection: ClientConnection, n: int) -> list[dict[str, Any]]:
    """Return the replies to `n` frames, without the status messages between them."""
    replies: list[dict[str, Any]] = []
    while len(replies) < n:
        message = json.loads(connection.recv(timeout=60))
        if "error" in message or "command" in message:
            replies.append(message)
    return replies


def assert_is_reply(reply: dict[str, Any]) -> None:
    if "error" in reply:
        assert reply["error"] in get_args(ErrorType)
        assert reply["status"] in ("error", "rejected")
        assert reply["reason"].isprintable()
        assert 0 < len(reply["reason"]) < 2000
    else:
        assert reply["command"] in COMMANDS


def end_run(rig: Rig) -> None:
    """Bring the driver back to `idle`, and check that the last run has an account."""
    rig.client.stop()
    rig.client.wait(["idle"], 60)
    if result := rig.client.last_result():
        assert_consistent(result)


@pytest.mark.slow
def test_any_sequence_of_frames_is_answered_frame_by_frame_in_every_state(make_rig: MakeRig, directory: Path):
    rig = make_rig(driver=["--allowed-root", directory], writers=True)
    assert_saved(rig.record(images_of(range(4)), file_prefix="before"), images_of(range(4)))
    health = Health([rig.driver, *rig.writers])
    ids = itertools.count(100)

    @examples(25)
    @given(st.lists(frames(directory), min_size=1, max_size=12), st.lists(st.integers(0, 12), max_size=4))
    def sequence_is_answered(sequence: Sequence[str | bytes], published_after: list[int]) -> None:
        with connect(rig.url) as connection:
            for number, frame in enumerate(sequence):
                connection.send(frame)
                rig.publish(images_of(itertools.islice(ids, published_after.count(number))))
            for reply in direct_replies(connection, len(sequence)):
                assert_is_reply(reply)
        end_run(rig)
        health.check()

    sequence_is_answered()
    images = images_of(range(30))
    assert_saved(rig.record(images, file_prefix="after"), images)
    health.check()


OPCODES = st.sampled_from([0, 1, 2, 8, 9, 10, 3, 15])
CONTENTS = st.one_of(
    st.binary(max_size=200),
    st.sampled_from(
        [b"\xff\xfe", b"\xc3", b'{"command": "status"}', b"\x03\xe8", b"\x00", b"x" * 70_000, b""]
    ),
)


@st.composite
def websocket_frames(draw: st.DrawFn) -> bytes:
    """Generate one RFC 6455 frame: any opcode and bits, masked or not, with a true or false length."""
    content, is_masked = draw(CONTENTS), draw(st.sampled_from([True, True, True, False]))
    first = draw(OPCODES) | draw(st.sampled_from([0x80, 0x80, 0x00, 0xC0, 0x70]))
    length = draw(st.sampled_from([len(content)] * 5 + [0, len(content) + 5, 2**16, 2**31, 2**63, 2**64 - 1]))
    if length < 126:
        size = struct.pack("!B", length | is_masked << 7)
    elif length < 2**16:
        size = struct.pack("!BH", 126 | is_masked << 7, length)
    else:
        size = struct.pack("!BQ", 127 | is_masked << 7, length)
    # A mask of zeros does not change the payload.
    return bytes([first]) + size + (b"\0\0\0\0" if is_masked else b"") + content


HANDSHAKES = st.sampled_from(
    [
        b"",
        b"Sec-WebSocket-Extensions: permessage-deflate\r\n",
        b"Sec-WebSocket-Protocol: \xff\xfe\r\n",
        b"X: " + b"y" * 9000 + b"\r\n",
        b"Content-Length: 99999999999\r\n",
        b"a: b\r\n" * 300,
    ]
)


def handshake_with(header: bytes) -> bytes:
    """Return a valid handshake with the lines `header` added."""
    return (
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
        + base64.b64encode(bytes(16))
        + b"\r\n"
        + header
        + b"\r\n"
    )


def converse(url: str, handshake: bytes, sent: Sequence[bytes]) -> None:
    """Connect, send, close the sending half, and read to the end."""
    host, _, port = url.removeprefix("ws://").partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as plain, suppress(ConnectionError):
        plain.sendall(handshake_with(handshake))
        plain.recv(4096)
        for part in sent:
            plain.sendall(part)
        plain.shutdown(socket.SHUT_WR)
        while plain.recv(65536):
            pass


def test_frames_that_break_the_websocket_protocol_do_not_disturb_a_run(rig: Rig):
    images = images_of(range(60))
    assert_saved(rig.record(images, file_prefix="before"), images)
    health = Health([rig.driver])
    rig.begin(n_image=60)
    rig.publish(images[:20])
    rig.wait_for_count(20)

    @examples(60)
    @given(HANDSHAKES, st.lists(websocket_frames() | st.binary(max_size=30), max_size=6))
    def frames_disturb_no_client(handshake: bytes, sent: list[bytes]) -> None:
        converse(rig.url, handshake, sent)
        assert rig.client.status().status in ("recording", "saving_file", "idle")
        health.check()

    frames_disturb_no_client()
    # The memory for endless fragments and unread pongs is limited.
    converse(rig.url, b"", [b"\x01\x80\0\0\0\0", *[b"\x00\x80\0\0\0\0" * 10_000] * 20])
    health.check()
    rig.publish(images[20:])
    assert_saved(rig.end(), images)
    health.check()


def test_connections_in_any_state_do_not_delay_the_end_of_the_driver(make_rig: MakeRig):
    """A protocol error less than a second before SIGTERM made the driver wait ten seconds."""
    rig = make_rig(writers=False)
    host, _, port = rig.url.removeprefix("ws://").partition(":")
    with ExitStack() as open_connections:

        def connected(*parts: bytes) -> None:
            plain = open_connections.enter_context(socket.create_connection((host, int(port)), timeout=60))
            for part in parts:
                plain.sendall(part)
                if part.endswith(b"\r\n\r\n"):
                    plain.recv(4096)

        connected()
        connected(b"GET / HT")
        connected(handshake_with(b""))
        connected(handshake_with(b""), b"\x81\x85\0\0")
        # An unmasked frame: the driver sends a close frame and waits for the end of the connection.
        connected(handshake_with(b""), b"\x81\x01a")
        rig.client.status()
        begin = time.monotonic()
        assert rig.driver.end() == 0
    assert_within(time.monotonic() - begin, 5)
    assert rig.driver.stderr == []
