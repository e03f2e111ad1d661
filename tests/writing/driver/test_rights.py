"""Services that run as root: where they write, and as which user. With real services and users."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.processes.deployment import Deployment, free_port, wait_until
from support.processes.recording import MakeRig, Rig

from stddaq.client import DriverClient

NOBODY, OTHER = 65534, 54321
TOKEN = "a-token-that-is-hard-to-guess"
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

# A client as another user, which cannot read this checkout.
CLIENT = """
import encodings.idna, os, sys
from websockets.sync.client import connect
url, uid, frame = sys.argv[1:]
os.setuid(int(uid))
with connect(url + "/now") as driver:
    driver.recv(timeout=60)
    driver.send(frame)
    while '"command"' not in (reply := driver.recv(timeout=60)):
        pass
print(reply)
"""


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory in which all users may write; those of pytest are closed to other users."""
    with tempfile.TemporaryDirectory(prefix="stddaq-", dir="/tmp") as path:
        Path(path).chmod(0o777)
        yield Path(path)


def start_as(uid: int, rig: Rig, url: str, directory: Path, writer_id: int) -> dict[str, Any]:
    """Send a start as a user. Return the reply."""
    frame = {"command": "start", "path": str(directory), "n_image": 0, "writer_id": writer_id}
    frame["file_prefix"] = f"f{writer_id}_{uid}_"
    command = [sys.executable, "-c", CLIENT, url, str(uid), json.dumps(frame)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    reply = json.loads(done.stdout)
    if reply["status"] != "error":
        # Newer than the start, unlike the latest status that this client has received.
        wait_until(lambda: rig.client.status().status == "idle", what="the end of the run")
    return reply


@pytest.mark.fault(
    fault="local user who requests files of root, or of another user, from a service that runs as root",
    state="idle",
    promise="refused; users may request files of their own, and trusted users any files",
)
def test_local_user_gets_files_of_no_other_user(open_directory: Path, make_rig: MakeRig) -> None:
    rig = make_rig(switch_user_active=True, trusted_uids=[OTHER], number_of_writers=1)
    for writer_id in (0, 1, OTHER):
        reply = start_as(NOBODY, rig, rig.url, open_directory, writer_id)
        assert (reply["status"], reply["error"]) == ("error", "user_not_allowed")
        assert f"writer_id: expected {NOBODY}, the uid of this client, got {writer_id}" in reply["reason"]
    assert list(open_directory.iterdir()) == []
    for uid, writer_id in ((NOBODY, NOBODY), (OTHER, NOBODY), (OTHER, OTHER), (OTHER, 0), (0, NOBODY)):
        assert start_as(uid, rig, rig.url, open_directory, writer_id)["status"] == "started"
        files = list(open_directory.glob(f"f{writer_id}_{uid}_*"))
        assert {path.stat().st_uid for path in files} == {writer_id}


def test_token_allows_any_user(
    open_directory: Path, make_deployment: Callable[..., Deployment], tmp_path: Path
) -> None:
    # The directory is the first argument, because the services must end before it is removed.
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    deployment = make_deployment(switch_user_active=True, number_of_writers=1)
    _, url = deployment.start_driver("--token-file", token)
    deployment.start_writers()
    frame = {"command": "start", "path": str(open_directory), "n_image": 0, "writer_id": OTHER}
    with_token = url.replace("//", f"//any:{TOKEN}@")
    command = [sys.executable, "-c", CLIENT, with_token, str(NOBODY), json.dumps(frame)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert json.loads(done.stdout)["status"] == "started"


@pytest.mark.fault(
    fault="start of driver or writer as root without an allowed root",
    state="start",
    promise="it refuses in one line, which explains how to set one",
)
@pytest.mark.parametrize("service", [("std_det_driver",), ("std_det_writer", 0), ("std_det_meta_writer_gf",)])
def test_root_needs_a_root_path(deployment: Deployment, service: tuple[Any, ...]) -> None:
    deployment.write_config(allowed_roots=[])
    name, *arguments = service
    process = deployment.start(name, *arguments, ready=None)
    assert process.wait() == 2
    (line,) = process.stderr
    assert "--allowed-root: expected the directory below which services that run as root" in line
    assert "give --allowed-root DIRECTORY, or allowed_roots in the configuration" in line


def test_up_without_a_root_path_refuses_once(deployment: Deployment) -> None:
    deployment.write_config(allowed_roots=[])
    up = deployment.run(deployment.stddaq, "up", deployment.config_path, "--port", free_port(), "-m")
    assert up.wait() == 2
    assert up.stdout == []
    (line,) = up.stderr
    assert "--allowed-root: expected the directory below which services that run as root" in line


def test_up_passes_the_root_path_to_all_that_write(deployment: Deployment, tmp_path: Path) -> None:
    deployment.write_config(allowed_roots=[])
    port = free_port()
    up = deployment.run(
        *(deployment.stddaq, "up", deployment.config_path, "--port", port, "-m"),
        *("--allowed-root", tmp_path / "files", "--allowed-root", tmp_path),
    )
    assert up.wait() == 2
    assert "expected an existing directory" in up.stderr[0]
    deployment.run(
        *(deployment.stddaq, "up", deployment.config_path, "--port", port, "-m"),
        *("--allowed-root", tmp_path),
        ready="all services ready",
    )
    with DriverClient(f"ws://127.0.0.1:{port}") as client:
        client.start(tmp_path, n_image=0)
        client.wait_until_saved(60)
    assert (tmp_path / "fileMeta.h5").exists()
