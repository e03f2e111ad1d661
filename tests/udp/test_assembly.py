"""Frames from packets, fed one by one or in batches: pixels, order and account exact to the packet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from support.peers.udp_detectors import (
    eiger_frame,
    gigafrost_frame,
    gigafrost_packet,
    jungfrau_frame,
    sls_packet,
)
from support.processes.deployment import make_config

from stddaq.config import DetectorConfig
from stddaq.udp.assembly import IDLE_TIME_S, UNKNOWN_PERIOD_S, FrameAssembly
from stddaq.udp.frame_message import frame_layout
from stddaq.udp.frame_order import PAUSE_S
from stddaq.udp.frame_ring import FRAME_SLOTS
from stddaq.udp.geometry import GigaFrostGeometry, frame_bytes
from stddaq.udp.packets import packets_of

GARBAGE = 0xEE
RANDOM = np.random.default_rng(1)


@dataclass
class Announced:
    frame_id: int
    n_missing: int
    pixels: bytes


class Bench:
    """An assembly of one module whose slots hold garbage, and a clock that the test sets."""

    def __init__(
        self, detector_type: str, module: int = 0, idle_time: float | None = None, **keys: object
    ) -> None:
        config = DetectorConfig.parse(make_config(detector_type=detector_type, n_modules=8, **keys))
        self.packets = packets_of(config, module)
        self._slots: dict[int, np.ndarray] = {}
        self._frame_bytes = frame_bytes(config)
        self._layout = frame_layout(config.detector_type)
        self.assembly = FrameAssembly(self.packets, self, idle_time)
        self.now = 100.0
        self.announced: list[Announced] = []

    def begin(self, frame_id: int) -> np.ndarray:
        slot = frame_id % FRAME_SLOTS
        return self._slots.setdefault(slot, np.full(self._frame_bytes, GARBAGE, np.uint8))

    def commit_bytes(self, frame_id: int, message: bytearray) -> None:
        parsed = np.frombuffer(bytes(message), self._layout)[0]
        assert int(parsed["id"]) == frame_id
        pixels = self._slots[frame_id % FRAME_SLOTS].tobytes()
        self.announced.append(Announced(frame_id, int(parsed["n_missing_packets"]), pixels))

    def add(self, *datagrams: bytes) -> None:
        """Add one batch, as a socket delivers it: memory beyond the end of a datagram is that of others."""
        n_header, n_payload = self.packets.header.itemsize, self.packets.payload_bytes
        headers = np.full((len(datagrams), n_header), GARBAGE, np.uint8)
        payloads = np.full((len(datagrams), n_payload), GARBAGE, np.uint8)
        for i, datagram in enumerate(datagrams):
            header, payload = datagram[:n_header], datagram[n_header : n_header + n_payload]
            headers[i, : len(header)] = list(header)
            payloads[i, : len(payload)] = np.frombuffer(payload, np.uint8)
        lengths = np.array([len(datagram) for datagram in datagrams], np.uint32)
        self.assembly.add(headers.view(self.packets.header)[:, 0], payloads, lengths, self.now)

    def ids(self) -> list[int]:
        return [frame.frame_id for frame in self.announced]

    def missing(self) -> list[int]:
        return [frame.n_missing for frame in self.announced]

    def counts(self) -> dict[str, int]:
        """Return what was counted, without zeros."""
        a = self.assembly
        counts = {
            "packets": a.n_packets,
            "repeated": a.n_repeated,
            "late": a.n_late,
            "frames": a.n_frames,
            "corrupted": a.n_corrupted,
            "missing": a.n_missing,
            "restarts": a.n_restarts,
            **a.n_bad,
        }
        return {key: value for key, value in counts.items() if value}


def pixels8() -> np.ndarray:
    return RANDOM.integers(1, 256, (256, 512), np.uint8)


def eiger() -> Bench:
    return Bench("eiger", bit_depth=8)


def frames(*ids: int) -> dict[int, list[bytes]]:
    """Return the 32 packets of each frame of an Eiger, 8 bit."""
    return {frame_id: eiger_frame(frame_id, pixels8()) for frame_id in ids}


def payload(packets: Sequence[bytes], lost: Sequence[int] = ()) -> bytes:
    """Return the pixels of an Eiger's frame, with 0 for lost packets."""
    return b"".join(bytes(4096) if i in lost else packet[48:] for i, packet in enumerate(packets))


@pytest.mark.parametrize("batch", [1, 7, 32, 100])
def test_every_pixel_is_in_its_place_whatever_the_batches(batch: int) -> None:
    bench, sent = eiger(), frames(3, 4, 5, 1003)
    packets = [packet for frame in sent.values() for packet in frame]
    for i in range(0, len(packets), batch):
        bench.add(*packets[i : i + batch])
    assert bench.ids() == [3, 4, 5, 1003]
    assert [frame.pixels for frame in bench.announced] == [payload(frame) for frame in sent.values()]
    assert bench.counts() == {"packets": 128, "frames": 4}


@pytest.mark.parametrize(
    "shape",
    [(8, 48), (2016, 2016), (280, 528), (128, 480), (252, 504), (252, 528), (4, 72), (100, 240)],
    ids=str,
)
@pytest.mark.parametrize("module", [0, 3, 13])
def test_gigafrost_rows_are_in_their_places_without_padding(shape: tuple[int, int], module: int) -> None:
    bench = Bench("gigafrost", module, image_pixel_height=shape[0], image_pixel_width=shape[1])
    geometry = GigaFrostGeometry.of(*shape)
    pixels = RANDOM.integers(1, 4096, (geometry.module_height, geometry.module_width), np.uint16)
    packets = gigafrost_frame(5, pixels, module=module, shape=shape, rows=geometry.rows)
    assert len(packets) == geometry.n_packets
    order = RANDOM.permutation(len(packets))
    bench.add(*(packets[i] for i in order))
    (frame,) = bench.announced
    packed = np.frombuffer(frame.pixels[: geometry.pixel_bytes], np.uint8).reshape(-1, 3).astype(int)
    first, second = packed[:, 0] | (packed[:, 1] & 15) << 8, packed[:, 1] >> 4 | packed[:, 2] << 4
    np.testing.assert_array_equal(np.stack([first, second], 1).reshape(pixels.shape), pixels)
    assert bench.counts() == {"packets": len(packets), "frames": 1}


def test_jungfrau_frames_have_the_bunch_id_as_id() -> None:
    bench = Bench("jungfrau-raw")
    pixels = RANDOM.integers(0, 2**16, (512, 1024), np.uint16)
    bench.add(*jungfrau_frame(100, pixels, 17.0), *jungfrau_frame(101, pixels, 2.0**40))
    assert bench.ids() == [17, 2**40]
    assert bench.announced[0].pixels == pixels.tobytes()


@pytest.mark.parametrize("lost", [0, 15, 31])
def test_what_was_not_received_is_0_and_counted(lost: int) -> None:
    bench, sent = eiger(), frames(1, 2, 3)
    del sent[1][lost]
    whole = frames(1)[1]
    bench.add(*sent[1], *sent[2], *sent[3])
    assert bench.ids() == [1, 2, 3]
    assert bench.missing() == [1, 0, 0]
    expected = list(sent[1])
    expected.insert(lost, bytes(48 + 4096))
    assert bench.announced[0].pixels == b"".join(packet[48:] for packet in expected)
    assert len(whole) == 32
    assert bench.counts() == {"packets": 95, "frames": 3, "corrupted": 1, "missing": 1}


@pytest.mark.parametrize("module", [0, 7])
@pytest.mark.parametrize("lost", [0, 1, 3])
def test_gigafrost_rows_that_were_not_received_are_0(module: int, lost: int) -> None:
    shape = (252, 504)
    bench = Bench("gigafrost", module, image_pixel_height=shape[0], image_pixel_width=shape[1])
    geometry = GigaFrostGeometry.of(*shape)
    pixels = np.full((geometry.module_height, geometry.module_width), 4095, np.uint16)
    packets = gigafrost_frame(5, pixels, module=module, shape=shape, rows=geometry.rows)
    del packets[lost]
    bench.add(*packets)
    bench.assembly.close()
    (frame,) = bench.announced
    rows = np.frombuffer(frame.pixels[: geometry.pixel_bytes], np.uint8).reshape(geometry.module_height, -1)
    is_lost = np.arange(geometry.module_height) // geometry.rows == lost
    assert (rows[is_lost] == 0).all()
    assert (rows[~is_lost] == 255).all()
    assert frame.n_missing == 1


def test_a_repeated_packet_counts_once() -> None:
    bench, sent = eiger(), frames(1)[1]
    bench.add(*sent[:10], *sent[5:10], sent[9], *sent[10:31])
    assert bench.announced == []
    bench.add(sent[31])
    assert bench.missing() == [0]
    assert bench.announced[0].pixels == payload(sent)
    assert bench.counts() == {"packets": 38, "repeated": 6, "frames": 1}


def test_one_lost_and_one_repeated_packet_make_one_missing() -> None:
    bench, sent = eiger(), frames(1)[1]
    bench.add(*sent[:20], sent[3], *sent[21:])
    bench.assembly.close()
    assert bench.missing() == [1]
    assert bench.announced[0].pixels == payload(sent, lost=[20])


def test_packets_of_a_frame_that_has_left_are_late() -> None:
    bench, sent = eiger(), frames(1, 2)
    bench.add(*sent[1], sent[1][31], *sent[2], sent[1][0], sent[2][7])
    bench.now += IDLE_TIME_S
    bench.add(sent[1][4])
    bench.assembly.close()
    assert bench.ids() == [1, 2]
    assert bench.counts() == {"packets": 68, "late": 4, "frames": 2}


def test_packets_of_a_complete_frame_that_waits_for_the_one_before_are_late() -> None:
    bench, sent = eiger(), frames(1, 2)
    bench.add(*sent[1][:31], *sent[2], sent[2][5])
    bench.add(sent[2][31], sent[2][31])
    bench.add(sent[1][31])
    assert bench.missing() == [0, 0]
    assert bench.counts() == {"packets": 67, "late": 3, "frames": 2}


def test_packets_of_a_lower_id_that_was_never_announced_are_late() -> None:
    bench, sent = eiger(), frames(1, 2, 5)
    bench.add(*sent[5], *sent[2][:31], *sent[1][1:])
    bench.assembly.close()
    assert bench.ids() == [5]
    assert bench.counts() == {"packets": 94, "late": 62, "frames": 1}


def test_packets_of_one_frame_may_arrive_in_any_order() -> None:
    bench, sent = eiger(), frames(1)[1]
    bench.add(*(sent[i] for i in RANDOM.permutation(32)))
    assert bench.missing() == [0]
    assert bench.announced[0].pixels == payload(sent)


def test_packets_of_two_frames_may_be_mixed() -> None:
    bench, sent = eiger(), frames(1, 2)
    bench.add(*sent[1][:30], *sent[2][:5], sent[1][31], *sent[2][5:], sent[1][30])
    assert bench.ids() == [1, 2]
    assert bench.missing() == [0, 0]
    assert [frame.pixels for frame in bench.announced] == [payload(sent[1]), payload(sent[2])]
    assert bench.counts() == {"packets": 64, "frames": 2}


def test_a_frame_that_lacks_packets_leaves_with_the_second_frame_after_it() -> None:
    bench, sent = eiger(), frames(1, 2, 3)
    bench.add(*sent[1][:31], *sent[2])
    assert bench.ids() == []
    bench.add(sent[3][0])
    assert bench.ids() == [1, 2]
    assert bench.missing() == [1, 0]


def test_the_last_frame_of_a_burst_leaves_after_the_idle_time() -> None:
    bench, sent = eiger(), frames(1)
    bench.add(*sent[1][:31])
    idle_time = IDLE_TIME_S + UNKNOWN_PERIOD_S
    assert bench.assembly.idle_in(bench.now) == pytest.approx(idle_time, abs=0.2)
    bench.assembly.close_idle(bench.now + bench.assembly.idle_time - 0.001)
    assert bench.ids() == []
    bench.assembly.close_idle(bench.now + bench.assembly.idle_time + 0.001)
    assert bench.missing() == [1]
    assert bench.announced[0].pixels == payload(sent[1], lost=[31])
    assert bench.assembly.idle_in(bench.now) is None


def test_the_idle_time_follows_the_frame_period() -> None:
    bench = eiger()
    for frame_id, packets in frames(*range(1, 20)).items():
        bench.now += 0.002
        bench.add(*packets)
        assert bench.ids()[-1] == frame_id
    assert bench.assembly.idle_time == pytest.approx(0.012)


def test_a_stated_idle_time_holds() -> None:
    assert Bench("eiger", bit_depth=8, idle_time=0.5).assembly.idle_time == 0.5


@pytest.mark.parametrize("first", [1, 50])
def test_ids_that_jump_back_by_more_than_the_ring_restart(first: int) -> None:
    bench, sent = eiger(), frames(first + 1001, first)
    bench.add(*sent[first + 1001], *sent[first])
    assert bench.ids() == [first + 1001, first]
    assert bench.missing() == [0, 0]
    assert bench.counts() == {"packets": 64, "frames": 2, "restarts": 1}


def test_an_acquisition_shorter_than_the_ring_may_be_followed_by_another() -> None:
    bench = eiger()
    for acquisition in range(3):
        for frame_id in (1, 2, 3):
            bench.add(*eiger_frame(frame_id, pixels8(), timestamp=1000 * acquisition + frame_id))
    assert bench.ids() == [1, 2, 3] * 3
    assert bench.counts() == {"packets": 288, "frames": 9, "restarts": 2}


def test_equal_frames_after_a_pause_are_another_acquisition() -> None:
    bench, sent = eiger(), frames(1, 2)
    bench.add(*sent[1], *sent[2])
    bench.now += 2 * PAUSE_S
    bench.add(*sent[1], *sent[2])
    assert bench.ids() == [1, 2, 1, 2]


def test_a_frame_that_arrives_twice_is_announced_once() -> None:
    bench, sent = eiger(), frames(1, 2)
    bench.add(*sent[1], *sent[2], *sent[2], *sent[1])
    bench.assembly.close()
    assert bench.ids() == [1, 2]
    assert bench.counts() == {"packets": 128, "late": 64, "frames": 2}


def gigafrost(frame: int, scan_id: int = 7, module: int = 0) -> bytes:
    """Return the only packet of a link, 8 x 48 pixels."""
    return gigafrost_packet(frame, 0, bytes([frame]) * 72, module=module, shape=(8, 48), scan_id=scan_id)


def small_gigafrost(module: int = 0) -> Bench:
    return Bench("gigafrost", module, image_pixel_height=8, image_pixel_width=48)


def test_a_new_scan_restarts_the_ids() -> None:
    bench = small_gigafrost()
    bench.add(gigafrost(5), gigafrost(6), gigafrost(5, 8), gigafrost(6, 8))
    assert bench.ids() == [5, 6, 5, 6]
    assert bench.counts() == {"packets": 4, "frames": 4, "restarts": 1}


def test_packets_of_the_scan_before_are_late() -> None:
    bench = small_gigafrost()
    bench.add(gigafrost(5), gigafrost(6), gigafrost(1, 8), gigafrost(6), gigafrost(2, 8))
    assert bench.ids() == [5, 6, 1, 2]
    assert bench.counts() == {"packets": 5, "late": 1, "frames": 4, "restarts": 1}


def test_frames_of_one_packet_that_step_back_are_late() -> None:
    bench = small_gigafrost()
    bench.add(gigafrost(5), gigafrost(7), gigafrost(6), gigafrost(5), gigafrost(8))
    assert bench.ids() == [5, 7, 8]
    assert bench.counts() == {"packets": 5, "late": 2, "frames": 3}


def test_frames_that_need_the_same_slot_leave_in_order() -> None:
    bench, sent = eiger(), frames(1, 1 + FRAME_SLOTS)
    bench.add(*sent[1][:31], *sent[1 + FRAME_SLOTS])
    assert bench.ids() == [1, 1 + FRAME_SLOTS]
    assert bench.announced[0].pixels == payload(sent[1], lost=[31])
    assert bench.announced[1].pixels == payload(sent[1 + FRAME_SLOTS])


def test_a_bunch_id_that_stands_still_does_not_announce_an_image_twice() -> None:
    bench = Bench("jungfrau-raw")
    pixels = np.zeros((512, 1024), np.uint16)
    bench.add(*jungfrau_frame(1, pixels, 17.0)[:100], *jungfrau_frame(2, pixels, 17.0))
    bench.assembly.close()
    assert bench.ids() == [17]
    assert bench.counts()["late"] == 128


EIGER_PACKET = sls_packet(1, 0, bytes(4096), detector=1)
JUNGFRAU_PACKET = sls_packet(1, 0, bytes(8192), detector=3, bunch_id=17.0)
GIGAFROST_PACKET = gigafrost(5, module=3)


@pytest.mark.parametrize(
    ("detector", "datagram", "kind", "message"),
    [
        ("eiger", b"", "size", "size: expected datagrams of 4144 bytes, got 0"),
        ("eiger", b"x", "size", "size: expected datagrams of 4144 bytes, got 1"),
        ("eiger", EIGER_PACKET[:-1], "size", "size: expected datagrams of 4144 bytes, got 4143"),
        ("eiger", EIGER_PACKET + b"x", "size", "size: expected datagrams of 4144 bytes, got 4145"),
        ("eiger", EIGER_PACKET[:1072], "size", "size: expected datagrams of 4144 bytes, got 1072"),
        ("eiger", JUNGFRAU_PACKET, "size", "size: expected datagrams of 4144 bytes, got 8240"),
        (
            "eiger",
            sls_packet(1, 32, bytes(4096), detector=1),
            "number",
            "number: expected packet 0 to 31, got 32",
        ),
        (
            "eiger",
            sls_packet(1, 2**32 - 1, bytes(4096), detector=1),
            "number",
            "number: expected packet 0 to 31, got 4294967295",
        ),
        (
            "eiger",
            sls_packet(1, 0, bytes(4096), detector=1, version=1),
            "version",
            "version: expected version 2 of the header, got 1",
        ),
        (
            "eiger",
            sls_packet(1, 0, bytes(4096), detector=3),
            "detector",
            "detector: expected detector type 1, got 3",
        ),
        (
            "jungfrau-raw",
            sls_packet(1, 0, bytes(8192), detector=3, bunch_id=float("nan")),
            "bunch_id",
            "bunch_id: expected a double from 0 to 2^64, got nan",
        ),
        (
            "jungfrau-raw",
            sls_packet(1, 0, bytes(8192), detector=3, bunch_id=-1.0),
            "bunch_id",
            "bunch_id: expected a double from 0 to 2^64, got -1.0",
        ),
        (
            "jungfrau-raw",
            sls_packet(1, 0, bytes(8192), detector=3, bunch_id=8.4e-323),
            "bunch_id",
            "bunch_id: expected a double from 0 to 2^64, got 8.4e-323",
        ),
        (
            "jungfrau-raw",
            sls_packet(1, 128, bytes(8192), detector=3, bunch_id=1.0),
            "number",
            "number: expected packet 0 to 127, got 128",
        ),
        ("gigafrost", GIGAFROST_PACKET[:-1], "size", "size: expected datagrams of 104 bytes, got 103"),
        (
            "gigafrost",
            b"\xca" + GIGAFROST_PACKET[1:],
            "protocol",
            "protocol: expected first byte 203, got 202",
        ),
        ("gigafrost", gigafrost(5, module=5), "quadrant", "quadrant: expected 1 in this port, got 2"),
        ("gigafrost", gigafrost(5, module=2), "link", "link: expected 1 in this port, got 0"),
        (
            "gigafrost",
            gigafrost_packet(5, 1, bytes(72), module=3, shape=(8, 48)),
            "row",
            "row: expected a multiple of 2 from 0 to 0, got 1",
        ),
        (
            "gigafrost",
            gigafrost_packet(5, 65535, bytes(72), module=3, shape=(8, 48)),
            "row",
            "row: expected a multiple of 2 from 0 to 0, got 65535",
        ),
        (
            "gigafrost",
            gigafrost_packet(5, 0, bytes(72), module=3, shape=(12, 48)),
            "geometry",
            "geometry: expected images of 8x48, got 12x48",
        ),
    ],
)
def test_datagrams_that_are_no_packets_of_the_module_are_counted_and_dropped(
    detector: str, datagram: bytes, kind: str, message: str
) -> None:
    keys = {"image_pixel_height": 8, "image_pixel_width": 48, "bit_depth": 8 if detector == "eiger" else 16}
    good = {"eiger": EIGER_PACKET, "gigafrost": GIGAFROST_PACKET, "jungfrau-raw": JUNGFRAU_PACKET}[detector]
    bench = Bench(detector, 3, **keys)
    bench.add(datagram, good, datagram)
    bench.add(datagram)
    bench.assembly.close()
    assert bench.counts()[kind] == 3
    assert bench.counts()["packets"] == 1
    assert len(bench.announced) == 1
    assert bench.assembly.examples == {kind: (0, message)}


def test_a_short_datagram_is_not_completed_with_bytes_of_another() -> None:
    bench, sent = eiger(), frames(1)[1]
    bench.add(*sent[:31], sent[31][:-1])
    bench.assembly.close()
    assert bench.announced[0].pixels == payload(sent, lost=[31])
    assert bench.counts()["size"] == 1


@pytest.mark.parametrize("detector", ["eiger", "gigafrost", "jungfrau-raw"])
def test_random_datagrams_are_never_a_good_frame(detector: str) -> None:
    keys = {"image_pixel_height": 280, "image_pixel_width": 528}
    bench = Bench(detector, **keys)
    n_bytes = bench.packets.header.itemsize + bench.packets.payload_bytes
    for _ in range(100):
        sizes = RANDOM.choice([n_bytes, n_bytes - 1, 0, 10], 50)
        bench.add(*(RANDOM.bytes(size) for size in sizes))
    # Headers that are nearly right.
    good = {
        "eiger": sls_packet(1, 0, bytes(4096), detector=1),
        "gigafrost": gigafrost_packet(1, 0, bytes(7128), module=0, shape=(280, 528)),
        "jungfrau-raw": sls_packet(1, 0, bytes(8192), detector=3, bunch_id=17.0),
    }[detector]
    for _ in range(500):
        spoofed = bytearray(good)
        for place in RANDOM.integers(0, bench.packets.header.itemsize, 3):
            spoofed[place] = RANDOM.integers(256)
        bench.now += 0.001
        bench.add(bytes(spoofed), *[bytes(spoofed)] * int(RANDOM.integers(3)))
        bench.assembly.close_idle(bench.now)
    bench.assembly.close()
    assert all(frame.n_missing for frame in bench.announced)


def test_a_spoofed_frame_does_not_cost_the_next_ones() -> None:
    bench, sent = eiger(), frames(*range(10, 20))
    for frame_id, packets in sent.items():
        bench.add(*packets)
        if frame_id == 12:
            bench.add(eiger_frame(500, pixels8())[0])
            bench.now += 1.0
            bench.assembly.close_idle(bench.now)
    assert [frame.frame_id for frame in bench.announced if not frame.n_missing] == list(range(10, 20))


def test_links_in_the_wrong_ports_are_named() -> None:
    bench = Bench("eiger", 2, bit_depth=8)
    bench.add(*eiger_frame(1, pixels8(), row=0, column=1))
    assert bench.packets.misplaced(bench.assembly.headers) == (
        "row and column of the header: expected those of module 2, got row 0, column 1, of module 1; "
        "links in the wrong ports?"
    )
    bench.add(*eiger_frame(2, pixels8(), row=1, column=0))
    assert bench.packets.misplaced(bench.assembly.headers) == ""
