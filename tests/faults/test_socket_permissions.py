"""Services of several users, of which one may not connect to the other."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.assertions.faults import first_sentence
from support.processes.deployment import SHM_DIRECTORY, Deployment, console_script, free_port
from support.processes.recording import MakeRig, Rig
from support.tools.fault_table import Seen

from stddaq.client import RunFailedError
from stddaq.dataplane.shared_segment import GROUP_VARIABLE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to start services of several users")
OTHER = 65533


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory in which every user may create files."""
    directory = Path(tempfile.mkdtemp(prefix="sd-", dir="/tmp"))
    directory.chmod(0o777)
    yield directory
    shutil.rmtree(directory)


def start_as_root(deployment: Deployment, service: str, *args: object) -> None:
    deployment.run(console_script(service), deployment.config_path, *args, ready="ready")


def open_socket_file(rig: Rig, name: str) -> None:
    (rig.deployment.ipc_directory / f"{rig.config.detector_name}-{name}").chmod(0o777)


def failed_start(rig: Rig, directory: Path) -> str:
    """The reason why a run cannot start."""
    rig.client.start(directory, n_image=10)
    with pytest.raises(RunFailedError):
        rig.client.wait_until_saved(60)
    account = rig.account()
    assert account["count"] == 0
    return first_sentence(account)


@pytest.mark.fault(
    fault="the source runs as another user, and its socket admits only that user",
    state="start",
    promise="error that names path, owner and mode",
)
def test_source_that_refuses_the_driver_is_not_taken_as_absent(
    make_rig: MakeRig, open_directory: Path, seen: Seen
):
    rig = make_rig(writers=False, user=OTHER, env={GROUP_VARIABLE: str(OTHER)})
    for writer in range(2):
        start_as_root(rig.deployment, "std_det_writer", writer)
        open_socket_file(rig, f"writer-{writer}")
    stream = rig.source.endpoint
    reason = failed_start(rig, open_directory)
    path = stream.removeprefix("ipc://")
    assert reason.startswith(f"{stream}: expected permission to connect, got none as user")
    assert f"{path} has owner user root and mode 0755" in reason
    rig.driver.wait_for_line(f"{path} has owner user root and mode 0755")
    seen("error, names path, owner and mode")


@pytest.mark.fault(
    fault="a writer runs as another user, and its socket admits only that user",
    state="start",
    promise="error that names path, owner and mode",
)
def test_writer_that_refuses_the_driver_is_named(make_rig: MakeRig, open_directory: Path, seen: Seen):
    rig = make_rig(writers=False, user=OTHER, env={GROUP_VARIABLE: str(OTHER)})
    for writer in range(2):
        start_as_root(rig.deployment, "std_det_writer", writer)
    reason = failed_start(rig, open_directory)
    assert reason.startswith("writer 0: ipc://")
    assert "-writer-0 has owner user root and mode 0755" in reason
    for writer in range(2):
        open_socket_file(rig, f"writer-{writer}")
    open_socket_file(rig, "driver-0")
    open_socket_file(rig, "driver-1")
    rig.client.start(open_directory, n_image=0)
    rig.client.wait_until_saved(60)
    seen("error, names path, owner and mode; works when the mode was changed")


def test_live_stream_that_may_not_subscribe_says_so(make_rig: MakeRig):
    rig = make_rig(driver=(), writers=False, user=OTHER)
    stream = rig.source.endpoint
    for segment in rig.deployment.segments():
        path = SHM_DIRECTORY / segment
        path.chmod(path.stat().st_mode | 0o066)
    address = f"tcp://127.0.0.1:{free_port()}"
    rig.deployment.write_config(live_stream_configs={address: {"type": "forward", "config": []}})
    service = rig.deployment.start("std_live_stream", address)
    service.wait_for_line(f"{stream}: expected permission to connect, got none as user")
    # Before the source, because only root may remove the ring.
    assert service.end() == 0
