"""`stddaq demo`, the first command of a newcomer."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import pytest
import requests
from PIL import Image
from silx.io import open as silx_open
from silx.io.nxdata.parse import get_default
from support.processes.deployment import Deployment, Service, wait_until
from support.processes.sources import refusal

from stddaq.cli import main

SHM = Path("/dev/shm")


def demo(deployment: Deployment, *args: object, cwd: Path | None = None) -> Service:
    """Start `stddaq demo`, which makes a deployment of its own; the given one only checks its end."""
    return deployment.run(deployment.stddaq, "demo", "--rate", 200, *args, cwd=cwd)


def detector_name(directory: Path) -> str:
    text = (directory / "demo.json").read_text()
    match = re.search(r'"detector_name": "([^"]+)"', text)
    assert match
    return match[1]


def leftovers(name: str) -> list[str]:
    """Return segments and processes with the name of the detector."""
    found = [path.name for path in SHM.glob(f"{name}*")]
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if name.encode() in (directory / "cmdline").read_bytes():
                found.append(directory.name)
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_every_pixel_is_checked_and_nothing_is_left_behind(deployment: Deployment, tmp_path: Path):
    directory = tmp_path / "out"
    process = demo(deployment, "--directory", directory, "-n", 30)
    assert process.wait(timeout=110) == 0, process.output
    with Image.open(directory / "demo.png") as preview:
        assert min(preview.size) > 600
    with h5py.File(directory / "demoMaster.h5") as file:
        data = file["/entry/data/data"]
        assert isinstance(data, h5py.Dataset)
        assert re.search(rf"checked +30 images, {data.size} pixels, 0 differ", process.output)
    assert "30, all good" in process.output
    assert "stddaq info" in process.output
    assert leftovers(detector_name(directory)) == []


@pytest.mark.slow
def test_packets_of_a_gigafrost_become_images_whose_every_pixel_is_checked(
    deployment: Deployment, tmp_path: Path
) -> None:
    process = deployment.run(
        *(deployment.stddaq, "demo", "--udp", "--directory", tmp_path, "-n", 20, "--rate", 20, "--size", 96)
    )
    assert process.wait(timeout=110) == 0, process.output
    assert re.search(rf"checked +20 images, {20 * 96 * 96} pixels, 0 differ", process.output)
    assert leftovers(detector_name(tmp_path)) == []


# Runs one shell command until its services are ready, and another one beside it. Their ports are not free in
# general, so they have a network of their own, whose loopback interface is brought up first.
BESIDE = """
import fcntl, signal, socket, struct, subprocess, sys
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 0x41))  # SIOCSIFFLAGS: IFF_UP | IFF_RUNNING
up = subprocess.Popen(["sh", "-c", "exec " + sys.argv[1]], stdout=subprocess.PIPE, text=True)
for line in up.stdout:
    print("up:", line, end="", flush=True)
    if "all services ready" in line:
        break
code = subprocess.call(["sh", "-c", sys.argv[2]])
up.send_signal(signal.SIGINT)
print(up.communicate(timeout=20)[0])
print("codes", code, up.returncode)
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_commands_that_it_proposes_work_as_they_are_printed(deployment: Deployment, tmp_path: Path):
    process = demo(deployment, "-n", 5, "--size", 64, cwd=tmp_path)
    assert process.wait(timeout=100) == 0, process.output
    proposed = process.stdout[process.stdout.index("Try next:") + 1 :]
    info, view, up, record = (line.strip() for line in proposed)
    shown = deployment.run("/bin/sh", "-c", info, ready=r"images: +5$", cwd=tmp_path)
    assert shown.wait(timeout=60) == 0

    program, action, path = shlex.split(view, comments=True)
    assert (program, action) == ("silx", "view")  # A window, which the tests cannot open.
    data: Any = get_default(silx_open(tmp_path / path))
    assert data is not None
    assert data.signal.shape == (5, 64, 64)

    isolated = (
        ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
    )
    if subprocess.run([*isolated, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to create a network namespace")
    beside = deployment.run(*isolated, sys.executable, "-c", BESIDE, up, record, ready=None, cwd=tmp_path)
    beside.wait(timeout=100)
    assert "codes 0 0" in beside.stdout, beside.output
    assert any("500, all good" in line for line in beside.stdout), beside.output
    with h5py.File(tmp_path / "demo" / "mineMaster.h5") as file:
        images = file["/entry/data/data"]
        assert isinstance(images, h5py.Dataset)
        assert images.shape == (500, 64, 64)


@pytest.mark.slow
def test_watch_ends_with_the_address_of_the_page_and_ctrl_c_ends_it(deployment: Deployment, tmp_path: Path):
    # The reader's other terminal lacks the environment that is active in this one.
    deployment.env["VIRTUAL_ENV"] = sys.prefix
    deployment.env["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = demo(deployment, "--watch", "--directory", tmp_path, "-n", 5, "--size", 64)
    page = process.wait_for_line(r"^  (http://127\.0\.0\.1:\d+/)$", timeout=60)[1]
    process.wait_for_line("Press Ctrl-C to end")
    assert any("checked     5 images" in line for line in process.stdout)
    assert "<title>stddaq</title>" in requests.get(page, timeout=20).text
    wait_until(lambda: requests.get(page + "health", timeout=20).status_code == 200, 30)
    (source,) = requests.get(page + "api/live/sources", timeout=20).json()
    assert (source["is_running"], source["shape"]) == (True, [64, 64])
    record, watch = (line.strip() for line in process.stdout if re.search(r"stddaq (record|watch) ", line))
    terminal = ("env", "PATH=/usr/bin:/bin", "/bin/sh", "-c")
    recorded = deployment.run(*terminal, record.replace("-n 2000", "-n 20"))
    watched = deployment.run(*terminal, f"{watch} -n 2")
    assert (recorded.wait(90), watched.wait(90)) == (0, 0)
    assert "20, all good" in recorded.output
    assert process.end(signal.SIGINT, timeout=90) == 0, process.output
    assert leftovers(detector_name(tmp_path)) == []


@pytest.mark.slow
def test_it_can_be_repeated_in_the_same_directory(deployment: Deployment, tmp_path: Path):
    for _ in range(2):
        process = demo(deployment, "--directory", tmp_path, "-n", 5, "--size", 64)
        assert process.wait(timeout=110) == 0, process.output


@pytest.mark.slow
def test_ctrl_c_ends_it_early_and_checks_the_recorded_images(deployment: Deployment, tmp_path: Path):
    process = demo(deployment, "--directory", tmp_path, "-n", 100_000, "--size", 64)
    process.wait_for_line(r"recording: \d+ of 100000 images", timeout=90)
    assert process.end(signal.SIGINT, timeout=90) == 0, process.output
    assert "stopped early" in process.output
    assert leftovers(detector_name(tmp_path)) == []


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_a_demo_that_is_ended(
    deployment: Deployment, tmp_path: Path, signal_number: signal.Signals
):
    process = demo(deployment, "--directory", tmp_path, "-n", 100_000, "--size", 64)
    process.wait_for_line(r"recording: \d+ of 100000 images", timeout=90)
    process.send(signal_number)
    assert process.wait(timeout=60) in (-signal.SIGKILL, 128 + signal.SIGTERM)
    wait_until(lambda: leftovers(detector_name(tmp_path)) == [], timeout=60, what="the end of its services")


def test_other_files_are_not_replaced(deployment: Deployment, tmp_path: Path):
    (tmp_path / "demo0.h5").write_text("mine")
    process = demo(deployment, "--directory", tmp_path)
    assert process.wait() == 2
    assert "expected a directory of the demo, or one without its file names" in process.stderr[0]
    assert (tmp_path / "demo0.h5").read_text() == "mine"


@pytest.mark.parametrize("args", [("-n", 0), ("--rate", 0), ("--directory", "/proc/demo")])
def test_a_bad_argument_is_one_line(deployment: Deployment, tmp_path: Path, args: tuple[object, ...]):
    process = deployment.run(deployment.stddaq, "demo", *args, cwd=tmp_path)
    assert process.wait() == 2
    assert len(process.stderr) == 1


def test_packets_without_numba_say_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    line = refusal(capsys, main, "demo", "--udp", "--directory", tmp_path)
    assert "package numba: expected it, for --udp, got none; pip install 'stddaq[udp]'" in line
    assert not list(tmp_path.iterdir())
