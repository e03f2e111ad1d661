"""Receivers as processes: packets on a port, frames in the ring, the account in the statistics."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.peers.udp_detectors import (
    eiger_frame,
    free_udp_ports,
    gigafrost_frame,
    gigafrost_packet,
    jungfrau_frame,
    pack12,
    sls_packet,
)
from support.processes.deployment import Deployment, console_script, wait_until
from support.processes.sources import refusal
from support.processes.udp_receivers import MakeModule

from stddaq.udp.batch_socket import SOCKET_BUFFER_BYTES, buffer_limit
from stddaq.udp.receiver import main_eg, main_gf, main_jf

RANDOM = np.random.default_rng(2)
# The bytes of a frame message before those that stddaq adds.
STD_DAQ_BYTES = 60


def n_queued_bytes(port: int) -> int:
    """Return the size of the datagrams that wait in the socket of a port."""
    for line in Path("/proc/net/udp").read_text().splitlines()[1:]:
        columns = line.split()
        if int(columns[1].rpartition(":")[2], 16) == port:
            return int(columns[4].rpartition(":")[2], 16)
    raise AssertionError(f"no socket has the port {port}")


def image_pixels(module: int) -> np.ndarray:
    """Return the rows of a module of an image of 8 x 48 pixels: `pixel(y, x) = 48 * y + x`."""
    quadrant, link = module // 2, module % 2
    rows = [4 + link, 6 + link] if quadrant < 2 else [3 - link, 1 - link]
    image = 48 * np.arange(8)[:, None] + np.arange(48)[None, :]
    columns = slice(24, 48) if quadrant % 2 else slice(0, 24)
    return image[rows, columns].astype(np.uint16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "opening", "digest"),
    [
        (0, "cb020414", "f4550dbf5f205b370d28939f04e260f1"),
        (3, "cb020474", "5104f46f85792b01f7da3339831a657f"),
        (6, "cb0204d4", "3bda4eb91c89a69da345ce51f53aa29a"),
    ],
)
def test_a_gigafrost_packet_becomes_the_frame_of_std_daq(
    make_module: MakeModule, module: int, opening: str, digest: str
) -> None:
    receiver = make_module("gigafrost", module, image_pixel_height=8, image_pixel_width=48)
    (packet,) = gigafrost_frame(5, image_pixels(module), module=module, shape=(8, 48), rows=2)
    assert packet[:4].hex() == opening
    assert hashlib.md5(packet).hexdigest() == digest
    receiver.send(packet)
    (frame,) = receiver.receive(1)
    assert frame.pixels == packet[32:]
    expected = struct.pack("<QQHBBBBBB", 5, 0, module, 0, module % 2, 5, module // 2, 0, 0) + bytes.fromhex(
        "07000000 18000000 02000000 88776655 44332211 0504030201000000 0c0b0a0000000000"
    )
    assert frame.message.tobytes()[:STD_DAQ_BYTES] == expected


@pytest.mark.slow
def test_a_receiver_of_the_second_set_of_links_has_the_place_of_the_first(make_module: MakeModule) -> None:
    receiver = make_module("gigafrost", 13, image_pixel_height=8, image_pixel_width=48)
    receiver.send(gigafrost_packet(5, 0, pack12(image_pixels(5)), module=5, shape=(8, 48)))
    (frame,) = receiver.receive(1)
    assert (int(frame.message["module"]), int(frame.message["link_set"])) == (5, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("options", "bit"), [((), 15), (("--do-not-store-bit", 0), 0)], ids=["15", "0"])
def test_the_bit_of_images_that_are_not_to_be_stored_can_be_chosen(
    make_module: MakeModule, options: tuple[object, ...], bit: int
) -> None:
    receiver = make_module("gigafrost", 0, *options, image_pixel_height=8, image_pixel_width=48)
    for frame_id, status in enumerate((0, 1 << bit, 0x8001 & ~(1 << bit))):
        receiver.send(gigafrost_packet(frame_id, 0, bytes(72), module=0, shape=(8, 48), status=status))
    frames = receiver.receive(3)
    assert [int(frame.message["do_not_store"]) for frame in frames] == [0, 1, 0]


@pytest.mark.slow
@pytest.mark.parametrize("detector_type", ["jungfrau-raw", "jungfrau-converted"])
def test_jungfrau_packets_become_the_frame_of_std_daq(make_module: MakeModule, detector_type: str) -> None:
    receiver = make_module(detector_type, 0, n_modules=1)
    pixels = RANDOM.integers(0, 2**16, (512, 1024), np.uint16)
    packets = jungfrau_frame(100, pixels, 17.0, debug=0x80000403, timestamp=123456)
    receiver.send(*packets)
    (frame,) = receiver.receive(1)
    assert frame.pixels == pixels.tobytes()
    expected = bytes.fromhex(
        "1100000000000000 0000000000000000 0000 0000000000000000 6400000000000000"
        "0304008000000000 0000000000000000"
    )
    assert frame.message.tobytes()[: len(expected)] == expected
    assert frame.message["received"]


@pytest.mark.slow
@pytest.mark.parametrize("bit_depth", [8, 16, 32])
def test_eiger_packets_become_frames(make_module: MakeModule, bit_depth: int) -> None:
    receiver = make_module("eiger", 2, n_modules=4, bit_depth=bit_depth)
    dtype = np.dtype(f"u{bit_depth // 8}")
    sent = [RANDOM.integers(0, 2**bit_depth, (256, 512), dtype) for _ in range(3)]
    before = time.time_ns()
    for i, pixels in enumerate(sent):
        receiver.send(*eiger_frame(29512 + i, pixels, row=1, column=0))
    frames = receiver.receive(3)
    assert [frame.pixels for frame in frames] == [pixels.tobytes() for pixels in sent]
    expected = struct.pack("<QQHHHH", 29512, 0, 2, bit_depth, 0, 1)
    assert frames[0].message.tobytes()[:50] == expected.ljust(50, b"\0")
    # When the first packet of each frame arrived.
    times = [before, *(int(frame.message["received"]) for frame in frames), time.time_ns()]
    assert times == sorted(times)


@pytest.mark.slow
def test_the_account_is_exact_to_the_packet(make_module: MakeModule) -> None:
    receiver = make_module("eiger", 1, n_modules=4, bit_depth=8)
    sent = {i: eiger_frame(i, RANDOM.integers(1, 256, (256, 512), np.uint8)) for i in range(1, 7)}
    # 1: the last packet lost; 3: one repeated; 4: out of order; 5: two lost; 6: the last one lost.
    receiver.send(*sent[1][:31], *sent[2], *sent[3][:5], *sent[3][4:], *reversed(sent[4]))
    receiver.send(*sent[5][:7], *sent[5][9:], sent[2][0], *sent[6][:31])
    # Not packets of this module.
    receiver.send(
        b"",
        b"?" * 4143,
        sls_packet(7, 0, bytes(8192), detector=3),
        sls_packet(7, 99, bytes(4096), detector=1),
    )
    frames = receiver.receive(6)
    assert [(frame.frame_id, frame.n_missing) for frame in frames] == [
        (1, 1),
        (2, 0),
        (3, 0),
        (4, 0),
        (5, 2),
        (6, 1),
    ]
    assert frames[0].pixels == b"".join(packet[48:] for packet in sent[1][:31]) + bytes(4096)
    assert frames[3].pixels == b"".join(packet[48:] for packet in sent[4])
    receiver.wait_for_total("processed_times", 6 * 32 - 4 + 2)
    receiver.wait_for_total("n_late", 1)
    # Frames are counted when they leave, which may be in a later period than that of their packets.
    receiver.wait_for_total("frames_counter", 6)
    expected = {
        "frames_counter": 6,
        "n_corrupted_frames": 3,
        "n_missed_packets": 4,
        "n_repeated": 1,
        "n_late": 1,
        "n_bad_size": 3,
        "n_bad_number": 1,
        "n_dropped_by_kernel": 0,
    }
    totals = receiver.totals()
    assert {key: totals[key] for key in expected} == expected
    receiver.service.wait_for_line("size: expected datagrams of 4144 bytes, got 0")
    receiver.service.wait_for_line("number: expected packet 0 to 31, got 99")


@pytest.mark.fault(
    fault="receiver: SIGSTOP until the kernel drops packets, then SIGCONT",
    state="running",
    promise="the packets that the kernel dropped are counted; the account is exact to the packet",
)
def test_packets_that_the_kernel_drops_are_counted(
    make_module: MakeModule, seen: Callable[[str], None]
) -> None:
    receiver = make_module("eiger", 0, "--socket-buffer", 400_000, n_modules=4, bit_depth=8)
    pixels = RANDOM.integers(1, 256, (256, 512), np.uint8)
    receiver.service.send(signal.SIGSTOP)
    for frame_id in range(1, 31):
        receiver.send(*eiger_frame(frame_id, pixels))
    receiver.service.send(signal.SIGCONT)
    # The kernel reports the number with the next datagram, for which there must be room.
    wait_until(lambda: not n_queued_bytes(receiver.config.start_udp_port), what="an empty queue")
    receiver.send(*eiger_frame(31, pixels))
    frames = receiver.receive(1)
    while frames[-1].frame_id != 31:
        frames += receiver.receive(1)
    assert frames[-1].n_missing == 0
    receiver.wait_for_total("frames_counter", len(frames))
    totals = receiver.totals()
    assert totals["n_dropped_by_kernel"] > 0
    assert totals["processed_times"] + totals["n_dropped_by_kernel"] == 31 * 32
    n_silent = 31 - len(frames)
    assert totals["n_missed_packets"] + 32 * n_silent == totals["n_dropped_by_kernel"]
    seen("packets received and dropped are all that were sent; frames lack or omit exactly the dropped ones")


@pytest.mark.slow
def test_a_small_socket_buffer_is_named(make_module: MakeModule) -> None:
    receiver = make_module("eiger", 0, "--socket-buffer", 100_000, n_modules=4)
    receiver.service.wait_for_line(r"socket buffer of 100000 bytes \(100000 asked for\)")


def test_a_socket_buffer_that_the_system_cuts_is_named_with_both_sizes(
    make_deployment: Callable[..., Deployment],
) -> None:
    deployment = make_deployment(
        detector_type="eiger", n_modules=4, bit_depth=8, start_udp_port=free_udp_ports(4)
    )
    # With this right the system grants any size.
    without_right = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
    receiver = deployment.run(
        *(without_right if os.geteuid() == 0 else ()),
        *(console_script("std_udp_recv_eg"), deployment.config_path, 0),
        ready="ready",
    )
    asked, limit = SOCKET_BUFFER_BYTES, buffer_limit()
    granted = min(asked, limit)
    receiver.wait_for_line(rf"ready.* socket buffer of {granted} bytes \({asked} asked for\)")
    warned = [line for line in list(receiver.stdout) if "[warning]" in line]
    assert len(warned) == (granted < asked)
    assert all(
        f"socket buffer: expected {asked} bytes, got {granted} (net.core.rmem_max is {limit})" in line
        for line in warned
    )


@pytest.mark.fault(
    fault="network: links of an Eiger in the wrong ports",
    state="running",
    promise="the log names the module whose packets arrive, once a period",
)
def test_links_in_the_wrong_ports_are_named_once_a_period(
    make_module: MakeModule, seen: Callable[[str], None]
) -> None:
    receiver = make_module("eiger", 2, n_modules=4, bit_depth=8)
    for frame_id in range(5):
        receiver.send(*eiger_frame(frame_id, np.zeros((256, 512), np.uint8), row=0, column=1))
    receiver.receive(5)
    receiver.service.wait_for_line(
        "row and column of the header: expected those of module 2, got row 0, column 1"
    )
    receiver.wait_for_total("processed_times", 5 * 32)
    lines = list(receiver.service.stdout)
    # The present period is not over.
    n_periods = 1 + sum(",processed_times=" in line for line in lines)
    assert sum("row and column" in line for line in lines) <= n_periods
    seen("named")


@pytest.mark.fault(
    fault="network: links of a GigaFRoST in the wrong ports",
    state="running",
    promise="packets of another quadrant or link are counted and named with their sender, never in a frame",
)
def test_a_link_of_another_module_is_named(make_module: MakeModule, seen: Callable[[str], None]) -> None:
    receiver = make_module("gigafrost", 3, image_pixel_height=8, image_pixel_width=48)
    receiver.send(gigafrost_packet(1, 0, bytes(72), module=6, shape=(8, 48)))
    receiver.service.wait_for_line(
        r"UDP port \d+: quadrant: expected 1 in this port, got 3, from 127.0.0.1:\d+"
    )
    receiver.wait_for_total("n_bad_quadrant", 1)
    assert receiver.totals()["frames_counter"] == 0
    seen("counted and named")


@pytest.mark.slow
def test_random_datagrams_harm_nothing(make_module: MakeModule) -> None:
    receiver = make_module("gigafrost", 0, image_pixel_height=280, image_pixel_width=528)
    sizes = RANDOM.choice([0, 1, 31, 32, 7159, 7160, 6368, 9000, 65507], 2000)
    receiver.send(*(RANDOM.bytes(int(size)) for size in sizes))
    pixels = RANDOM.integers(0, 4096, (70, 264), np.uint16)
    receiver.send(*gigafrost_frame(5, pixels, module=0, shape=(280, 528), rows=18))
    (frame,) = receiver.receive(1)
    assert frame.n_missing == 0
    assert frame.pixels[: 70 * 264 * 3 // 2] == pack12(pixels)


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_open_frames_are_announced_at_the_end(make_module: MakeModule, signal_number: int) -> None:
    receiver = make_module("eiger", 0, "--idle-time", 60, n_modules=4, bit_depth=8)
    receiver.send(*eiger_frame(1, np.ones((256, 512), np.uint8))[:31])
    receiver.wait_for_total("processed_times", 31)
    assert receiver.service.end(signal_number) == 0
    (frame,) = receiver.receive(1)
    assert frame.n_missing == 1


def test_a_port_that_another_process_has_is_named(deployment: Deployment) -> None:
    port = free_udp_ports(4)
    deployment.write_config(detector_type="eiger", n_modules=4, start_udp_port=port)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", port + 2))
        refused = deployment.start("std_udp_recv_eg", 2, ready=None)
        assert refused.wait(60.0) == 2
    (line,) = refused.stderr
    assert (
        line == f"std_udp_recv_eg: error: udp://0.0.0.0:{port + 2}: another process receives there; stop it"
    )
    deployment.services.remove(refused)


@pytest.mark.parametrize(
    ("main", "keys", "module", "message"),
    [
        (main_eg, {"detector_type": "gigafrost"}, 0, "expected eiger for std_udp_recv_eg, got gigafrost"),
        (main_gf, {"detector_type": "eiger"}, 0, "expected gigafrost for std_udp_recv_gf, got eiger"),
        (
            main_jf,
            {"detector_type": "pco"},
            0,
            "expected jungfrau-raw or jungfrau-converted for std_udp_recv_jf",
        ),
        (main_gf, {}, 16, "module_id of a gigafrost: expected 0 to 15, got 16"),
        (main_gf, {}, 65536, "argument module_id: expected an integer from 0 to 65535, got '65536'"),
        (main_eg, {"detector_type": "eiger", "n_modules": 4}, 4, "expected 0 to 3, got 4"),
        (
            main_gf,
            {"start_udp_port": 65530},
            8,
            "start_udp_port + module_id: expected at most 65535, got 65538",
        ),
        (main_gf, {"image_pixel_width": 40}, 0, "image_pixel_width: expected a multiple of 24"),
        (main_jf, {"detector_type": "jungfrau-raw", "bit_depth": 32}, 0, "bit_depth: expected 16"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(
    make_deployment: Callable[..., Deployment],
    capsys: pytest.CaptureFixture[str],
    main: Callable[[list[str]], int],
    keys: dict[str, object],
    module: int,
    message: str,
) -> None:
    deployment = make_deployment(**keys)
    assert message in refusal(capsys, main, deployment.config_path, module)


@pytest.mark.parametrize("program", ["std_udp_recv_gf", "std_udp_recv_eg", "std_udp_recv_jf"])
@pytest.mark.parametrize("arguments", [(), ("config.json",)], ids=["none", "one"])
def test_missing_arguments_are_exit_code_1(
    capsys: pytest.CaptureFixture[str], program: str, arguments: tuple[str, ...]
) -> None:
    main = {"std_udp_recv_gf": main_gf, "std_udp_recv_eg": main_eg, "std_udp_recv_jf": main_jf}[program]
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 1
    missing = "module_id" if arguments else "detector_json_filename"
    assert f"{program}: error: {missing}: 1 argument expected" in capsys.readouterr().err
