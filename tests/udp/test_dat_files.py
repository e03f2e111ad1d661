"""Datagrams on disk: dumped, replayed, interchangeable with those of std_daq."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support.peers.udp_detectors import UdpSender, eiger_frame, free_udp_ports
from support.processes.deployment import Deployment, Service, console_script
from support.processes.sources import refusal

from stddaq.udp.dump import main as dump
from stddaq.udp.replay import _images
from stddaq.udp.replay import main as replay


@pytest.fixture
def eiger(make_deployment: Callable[..., Deployment]) -> Deployment:
    return make_deployment(detector_type="eiger", n_modules=4, bit_depth=8, start_udp_port=free_udp_ports(4))


@pytest.fixture
def sender(eiger: Deployment) -> Iterator[UdpSender]:
    with contextlib.closing(UdpSender(eiger.config["start_udp_port"])) as sender:
        yield sender


def start_dump(eiger: Deployment, folder: Path, *options: object) -> Service:
    command = (console_script("std_udp_tools_dump"), eiger.config_path, *options)
    return eiger.run(*command, cwd=folder, ready="ready")


def packets(module: int) -> list[bytes]:
    pixels = np.random.default_rng(module).integers(0, 256, (256, 512), np.uint8)
    return eiger_frame(module + 1, pixels)


def recorded(datagrams: list[bytes]) -> bytes:
    return b"".join(struct.pack("<Q", len(datagram)) + datagram for datagram in datagrams)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["SIGTERM", "packets", "duration"])
def test_a_dump_holds_every_datagram(eiger: Deployment, sender: UdpSender, directory: Path, end: str) -> None:
    options = {"SIGTERM": (), "packets": ("--packets", 130), "duration": ("--duration", 5)}[end]
    dumping = start_dump(eiger, directory, *options)
    for module in range(4):
        sender.send(module, packets(module))
    sender.send(0, [b"", b"short"])
    first = eiger.config["start_udp_port"]
    if end == "SIGTERM":
        assert dumping.end(signal.SIGTERM) == 0
    else:
        assert dumping.wait(60.0) == 0
    for module in range(4):
        expected = packets(module) + ([b"", b"short"] if module == 0 else [])
        assert (directory / f"{first + module}.dat").read_bytes() == recorded(expected)


def test_a_dump_ends_on_enter(eiger: Deployment, directory: Path) -> None:
    command = [console_script("std_udp_dump"), str(eiger.config_path)]
    with subprocess.Popen(
        command, cwd=directory, env=eiger.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as dumping:
        assert dumping.stdout is not None
        assert "ready" in dumping.stdout.readline()
        dumping.communicate("\n", timeout=60)
        assert dumping.returncode == 0


def test_existing_files_are_not_overwritten(
    eiger: Deployment, directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = directory / f"{eiger.config['start_udp_port'] + 1}.dat"
    path.write_bytes(b"before")
    monkeypatch.chdir(directory)
    assert f"{path}: exists already, move it away" in refusal(capsys, dump, eiger.config_path)
    assert path.read_bytes() == b"before"


@pytest.fixture
def recording(eiger: Deployment, directory: Path) -> Path:
    for module in (0, 1, 3):
        path = directory / f"{eiger.config['start_udp_port'] + module}.dat"
        path.write_bytes(recorded(packets(module)))
    return directory


@pytest.mark.parametrize("options", [(0,), (1,), (0, "--rate", 100), (0, "--loops", 2)], ids=str)
def test_a_replay_sends_every_datagram_in_step(
    eiger: Deployment, recording: Path, options: tuple[object, ...]
) -> None:
    first = free_udp_ports(4)
    with contextlib.ExitStack() as opened:
        ports = []
        for module in range(4):
            port = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            port.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**21)
            port.bind(("127.0.0.1", first + module))
            port.setblocking(False)
            ports.append(port)
        delay, *others = options
        replaying = eiger.start(
            "std_udp_tools_replay", delay, recording, *others, "--first-port", first, ready=None
        )
        assert replaying.wait(60.0) == 0
        n_loops = 2 if "--loops" in options else 1
        for module, port in enumerate(ports):
            received = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    received.append(port.recv(65535))
            assert received == ([] if module == 2 else packets(module) * n_loops)
    replaying.wait_for_line("no file of the modules 2")
    replaying.wait_for_line(f"{96 * n_loops} datagrams sent")


def test_both_sets_of_links_are_dumped_and_replayed_in_turn(
    make_deployment: Callable[..., Deployment], directory: Path
) -> None:
    first = free_udp_ports(16)
    camera = make_deployment(
        n_modules=8, image_pixel_height=8, image_pixel_width=48, start_udp_port=free_udp_ports(16)
    )
    sent = {module: [b"%d of %d" % (i, module) for i in range(2)] for module in range(16)}
    dumping = start_dump(camera, directory, "--link-sets", 2, "--packets", 32)
    with contextlib.closing(UdpSender(camera.config["start_udp_port"])) as sender:
        for module, datagrams in sent.items():
            sender.send(module, datagrams)
    assert dumping.wait(60.0) == 0
    with contextlib.ExitStack() as opened:
        ports = []
        for module in range(16):
            port = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            port.bind(("127.0.0.1", first + module))
            port.settimeout(60.0)
            ports.append(port)
        options = ("--link-sets", 2, "--rate", 1000, "--first-port", first)
        replaying = camera.start("std_udp_tools_replay", 0, directory, *options, ready="ready: 16 files")
        for module, port in enumerate(ports):
            assert [port.recv(100) for _ in range(2)] == sent[module]
        assert replaying.wait(60.0) == 0


def test_images_of_two_sets_of_links_are_replayed_in_turn(tmp_path: Path) -> None:
    files = {module: tmp_path / f"{module}.dat" for module in (0, 1, 8, 9)}
    for module, path in files.items():
        path.write_bytes(recorded([b"%d" % i for i in range(4 if module < 8 else 2)]))
    turns = [[packet for step in turn for packet in step] for turn in _images(files, 8, 2)]
    assert turns == [
        [(module, b"%d" % (2 * image + i)) for i in range(2) for module in modules]
        for image, modules in [(0, (0, 1)), (0, (8, 9)), (1, (0, 1))]
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (struct.pack("<Q", 10) + b"short", "expected a datagram of 10 bytes, got 5 at its end"),
        (b"abc", "expected a length of 8 bytes, got 3 bytes at its end"),
        (struct.pack("<Q", 2**40), "expected a length of at most 65507, got 1099511627776 at byte 0"),
    ],
)
def test_a_damaged_file_is_named(eiger: Deployment, directory: Path, content: bytes, message: str) -> None:
    path = directory / f"{eiger.config['start_udp_port']}.dat"
    path.write_bytes(content)
    replaying = eiger.start("std_udp_tools_replay", 0, directory, ready=None)
    assert replaying.wait(60.0) == 2
    assert replaying.stderr == [f"std_udp_tools_replay: error: {path}: {message}"]
    eiger.services.remove(replaying)


def test_a_folder_without_files_is_refused(
    eiger: Deployment, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = eiger.config["start_udp_port"]
    refused = refusal(capsys, replay, eiger.config_path, 0, directory)
    assert f"{directory}: expected files {first}.dat to {first + 3}.dat, got none of them" in refused


def test_a_replay_stops_on_a_signal(eiger: Deployment, recording: Path) -> None:
    replaying = eiger.start("std_udp_replay", 10_000, recording)
    assert replaying.end(signal.SIGINT) == 0
    assert os.listdir(recording)  # noqa: PTH208
