"""Commands of clients: every mistake has a typed reply, and none disturbs a run."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.processes.deployment import wait_until
from support.processes.recording import MakeRig, Rig, assert_saved, images_of
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from stddaq.client import CommandRefusedError, RunFailedError
from stddaq.text import bytes_text

IS_ROOT = os.geteuid() == 0
NOBODY = 65534
# A user who is not root, not this process's, and not "nobody".
OTHER = 65533 if os.geteuid() != 65533 else 65532
# A service without root: it runs as nobody if this process is root, otherwise as this user.
NO_ROOT = NOBODY if IS_ROOT else None
# A user as whom services can write: any user if they are root, otherwise only their own.
ASKED_FOR = NOBODY if IS_ROOT else os.geteuid()

BAD_FRAMES = [
    ("{", "invalid_json"),
    ("", "invalid_json"),
    ("nonsense", "invalid_json"),
    ("[" * 20000, "invalid_json"),
    ("[]", "invalid_message"),
    ("5", "invalid_message"),
    ("null", "invalid_message"),
    (b'{"command": "stop"}', "invalid_message"),
    ("{}", "missing_field"),
    ('{"command": 7}', "invalid_field"),
    ('{"command": null}', "invalid_field"),
    ('{"command": "launch"}', "unknown_command"),
    ('{"command": "start"}', "missing_field"),
    ('{"command": "start", "path": 5}', "invalid_field"),
    ('{"command": "start", "path": "relative"}', "invalid_field"),
    ('{"command": "start", "path": "/tmp", "n_image": "10"}', "invalid_field"),
    ('{"command": "start", "path": "/tmp", "n_image": -1}', "invalid_field"),
    ('{"command": "start", "path": "/tmp", "n_image": 1.5}', "invalid_field"),
    ('{"command": "start", "path": "/tmp", "n_image": true}', "invalid_field"),
    ('{"command": "start", "path": "/tmp", "start_id": -1}', "invalid_field"),
    ('{"command": "start", "path": "/tmp", "writer_id": -1}', "invalid_field"),
    ('{"command": "start", "path": "/tmp", "writer_id": 4294967296}', "invalid_field"),
    ('{"command": "start", "path": "/tmp", "n_images": 10}', "unknown_field"),
    ('{"command": "start", "path": "/tmp", "file_prefix": "../x"}', "invalid_field"),
    ('{"command": "start", "path": "/tmp", "file_prefix": "a/b"}', "invalid_field"),
    ('{"command": "start", "path": "/tmp", "file_prefix": ""}', "invalid_field"),
    ('{"command": "start", "path": "/tmp\\u0000", "file_prefix": "x"}', "invalid_field"),
    ('{"command": "start", "path": "/tmp", "overwrite": 1}', "invalid_field"),
]


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """Return an empty directory for all users, who have no access to pytest's directories."""
    with tempfile.TemporaryDirectory(prefix="stddaq-", dir="/tmp") as path:
        Path(path).chmod(0o777)
        yield Path(path)


def refusal_of(connection: ClientConnection) -> dict[str, Any]:
    """Return the next refusal; skip broadcasts."""
    while True:
        message = json.loads(connection.recv(timeout=60))
        if "error" in message:
            return message


def ask_raw(url: str, content: bytes) -> bytes:
    """Send bytes to the port, if any, and return the answer."""
    host, _, port = url.removeprefix("ws://").partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as plain:
        if content:
            plain.sendall(content)
            return plain.recv(4096)
    return b""


@pytest.mark.fault(
    fault="names with / or .., arbitrary frames, HTTP, 10 MB, bytes that are not WebSocket",
    state="recording",
    promise="a typed reply or a clean close; the run is perfect",
)
def test_no_input_disturbs_a_run(rig: Rig):
    images = images_of(range(60))
    rig.begin(n_image=60)
    rig.publish(images[:20])
    rig.wait_for_count(20)
    with connect(rig.url) as connection:
        for frame, error in BAD_FRAMES:
            connection.send(frame)
            reply = refusal_of(connection)
            assert (reply["status"], reply["error"]) == ("error", error), (frame, reply)
            assert reply["reason"], frame
    rig.publish(images[20:40])
    rig.wait_for_count(40)
    # These are not WebSocket frames.
    ask_raw(rig.url, b"")
    assert ask_raw(rig.url, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.1 426")
    ask_raw(rig.url, b"\x16\x03\x01 not a handshake \r\n\r\n")
    with connect(rig.url) as connection, suppress(ConnectionClosed):
        connection.send('{"command": "start", "path": "' + "x" * 10_000_000 + '"}')
        for _ in range(100):
            connection.recv(timeout=60)
        pytest.fail("the connection was not closed")
    assert rig.client.status().status == "recording"
    rig.publish(images[40:])
    assert_saved(rig.end(), images)
    assert sorted(path.name for path in rig.directory.iterdir()) == ["file0.h5", "file1.h5", "fileMaster.h5"]


def test_reasons_name_the_found_and_the_allowed_values(rig: Rig):
    with connect(rig.url) as connection:
        connection.send('{"command": "start", "path": "/tmp", "n_image": "10"}')
        reason = refusal_of(connection)["reason"]
        assert 'n_image: expected an integer, got "10"' in reason
        connection.send('{"command": "start", "path": "/tmp", "n_images": 10}')
        reason = refusal_of(connection)["reason"]
        assert (
            reason.startswith("n_images: unknown field; expected one of command, path") or "n_image" in reason
        )


def test_stop_with_unknown_fields_stops_the_run(rig: Rig):
    rig.begin()
    with connect(rig.url) as connection:
        connection.send('{"command": "stop", "why": "beam dump"}')
        rig.client.wait_until_saved(60)


@pytest.mark.fault(
    fault="file exists",
    state="idle",
    promise="start is refused with the reason, nothing is created",
)
def test_an_existing_file_is_refused_before_anything_is_created(make_rig: MakeRig):
    rig = make_rig(driver=["-m"])
    rig.deployment.start("std_det_meta_writer_gf")
    for name in ("file1.h5", "fileMeta.h5", "fileMaster.h5"):
        rig.path(name).write_text("precious")
        with pytest.raises(CommandRefusedError, match=name) as refused:
            rig.client.start(rig.directory)
        assert refused.value.error_type == "file_exists"
        assert [path.name for path in rig.directory.iterdir()] == [name]
        assert rig.path(name).read_text() == "precious"
        rig.path(name).unlink()
    # A dangling link is refused as well, because writing would create its target.
    rig.path("file0.h5").symlink_to(rig.directory / "elsewhere")
    with pytest.raises(CommandRefusedError, match=r"file0\.h5"):
        rig.client.start(rig.directory)
    assert not rig.path("elsewhere").exists()


def test_existing_files_are_replaced_only_with_overwrite(rig: Rig):
    first, second = images_of(range(5)), images_of(range(100, 103))
    assert_saved(rig.record(first), first)
    with rig.path("file0.h5").open("rb") as old_file:
        old = old_file.read()
        with pytest.raises(CommandRefusedError, match="overwrite"):
            rig.client.start(rig.directory)
        assert rig.path("file0.h5").read_bytes() == old
        assert_saved(rig.record(second, overwrite=True), second)
        # A reader of the replaced file still sees all of it.
        old_file.seek(0)
        assert old_file.read() == old


@pytest.mark.fault(
    fault="directory missing, or not a directory",
    state="idle",
    promise="start is refused with the reason, nothing is created",
)
def test_a_path_that_is_not_a_directory_is_refused(rig: Rig):
    rig.path("a_file").touch()
    rig.path("loop").symlink_to(rig.path("loop"))
    for path, found in (
        ("missing", "does not exist"),
        ("a_file", "is not a directory"),
        ("a_file/below", "does not exist"),
        ("loop", "cannot be resolved"),
        ("x" * 300, "File name too long"),
    ):
        with pytest.raises(CommandRefusedError, match=found) as refused:
            rig.client.start(rig.directory / path)
        assert refused.value.error_type == "path_not_usable"
        assert rig.client.status().status == "idle"


def test_paths_outside_the_allowed_roots_are_refused(make_rig: MakeRig, tmp_path: Path):
    allowed, outside = tmp_path / "allowed", tmp_path / "allowed-not"
    (allowed / "below").mkdir(parents=True)
    outside.mkdir()
    (allowed / "link_out").symlink_to(outside)
    (outside / "link_in").symlink_to(allowed / "below")
    rig = make_rig(driver=["--allowed-root", allowed], number_of_writers=1)
    for path in (outside, allowed / "link_out", allowed / ".." / "allowed-not", tmp_path, Path("/")):
        with pytest.raises(CommandRefusedError, match="expected a directory below") as refused:
            rig.client.start(path)
        assert refused.value.error_type == "path_not_allowed"
    assert list(outside.iterdir()) == [outside / "link_in"]
    for prefix, path in (("a", allowed), ("b", allowed / "below"), ("c", outside / "link_in")):
        rig.client.start(path, n_image=0, file_prefix=prefix)
        rig.client.wait_until_saved(60)
        assert (path / f"{prefix}0.h5").exists()


@pytest.mark.fault(
    fault="directory not writable for the uid",
    state="idle",
    promise="start is refused with the reason, nothing is created",
)
def test_a_directory_not_writable_for_the_uid_is_refused_before_anything_is_created(
    make_rig: MakeRig, open_directory: Path
):
    rig = make_rig(switch_user_active=True)
    open_directory.chmod(0o555)
    with pytest.raises(CommandRefusedError, match=f"uid {ASKED_FOR} may write to") as refused:
        rig.client.start(open_directory, writer_id=ASKED_FOR)
    assert refused.value.error_type == "path_not_usable"
    assert list(open_directory.iterdir()) == []


def test_a_directory_that_the_service_may_not_write_to_is_refused(make_rig: MakeRig, open_directory: Path):
    rig = make_rig(user=NO_ROOT)
    open_directory.chmod(0o555)
    with pytest.raises(CommandRefusedError, match=f"uid {NO_ROOT or os.geteuid()} may write to") as refused:
        rig.client.start(open_directory)
    assert refused.value.error_type == "path_not_usable"
    assert list(open_directory.iterdir()) == []


def test_another_uid_is_refused_when_switching_is_not_configured(rig: Rig):
    with pytest.raises(CommandRefusedError, match="switch_user_active") as refused:
        rig.client.start(rig.directory, writer_id=OTHER)
    assert refused.value.error_type == "user_not_allowed"
    assert list(rig.directory.iterdir()) == []


def test_another_uid_is_refused_when_the_service_is_not_root(make_rig: MakeRig, open_directory: Path):
    rig = make_rig(user=NO_ROOT, switch_user_active=True)
    rig.client.start(open_directory, writer_id=OTHER)
    with pytest.raises(RunFailedError, match="only a service that runs as root can switch"):
        rig.client.wait_until_saved(60)
    assert list(open_directory.iterdir()) == []


def test_files_belong_to_the_requested_uid(make_rig: MakeRig, open_directory: Path):
    rig = make_rig(switch_user_active=True, driver=["-m"])
    rig.deployment.start("std_det_meta_writer_gf")
    rig.directory = open_directory
    images = images_of(range(9))
    account = rig.record(images, writer_id=ASKED_FOR)
    assert_saved(account, images)
    names = {path.name: path.stat() for path in rig.directory.iterdir()}
    assert sorted(names) == ["file0.h5", "file1.h5", "fileMaster.h5", "fileMeta.h5"]
    assert {stat.st_uid for stat in names.values()} == {ASKED_FOR}
    assert {stat.st_gid for stat in names.values()} == {NOBODY if IS_ROOT else os.getegid()}
    # The services switched back, so that the next run belongs to their own user.
    assert_saved(rig.record(images_of(range(20, 24)), file_prefix="own"), images_of(range(20, 24)))
    assert {path.stat().st_uid for path in rig.directory.glob("own*")} == {os.geteuid()}


@pytest.mark.fault(
    fault="disk too small for n_image",
    state="idle",
    promise="start is refused with both numbers",
)
def test_more_images_than_the_disk_can_hold_are_refused_with_both_sizes(rig: Rig):
    n_image = 2**62
    with pytest.raises(CommandRefusedError, match="B free") as refused:
        rig.client.start(rig.directory, n_image=n_image)
    assert refused.value.error_type == "disk_full"
    assert bytes_text(n_image * rig.config.image_bytes) in str(refused.value)


def test_the_driver_listens_on_the_loopback_interface_by_default(rig: Rig):
    assert rig.url.startswith("ws://127.0.0.1:")
    addresses = Path(f"/proc/{rig.driver.pid}/net/tcp").read_text()
    port = int(rig.url.rpartition(":")[2])
    assert f"0100007F:{port:04X}" in addresses
    assert f"00000000:{port:04X}" not in addresses


@pytest.mark.fault(
    fault="client that does not read",
    state="recording",
    promise="the run is perfect; other clients are notified",
)
def test_a_client_that_does_not_read_does_not_delay_others(rig: Rig):
    with connect(rig.url, max_queue=1, close_timeout=0.1):
        images = images_of(range(30))
        assert_saved(rig.record(images), images)
        wait_until(lambda: rig.client.status().status == "idle")
