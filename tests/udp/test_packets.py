"""Datagrams that are no packets of the module: counted by kind, named, never in a good frame."""

from __future__ import annotations

import pytest
from support.peers.assembly_bench import (
    RANDOM,
    Bench,
    eiger,
    frames,
    gigafrost,
    payload,
    pixels8,
)
from support.peers.udp_detectors import (
    eiger_frame,
    gigafrost_packet,
    sls_packet,
)

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


def test_datagrams_of_a_wrong_size_for_any_reason_are_all_counted() -> None:
    # Neither size of this detector, and the size of a last packet for the first row.
    bench = Bench("gigafrost", 3, image_pixel_height=280, image_pixel_width=528)
    short = gigafrost_packet(5, 0, bytes(6336), module=3, shape=(280, 528))
    bench.add(short[:-1], short, short[:-2], short)
    assert bench.counts()["size"] == 4
    assert bench.assembly.examples["size"][0] == 0


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
    assert bench.assembly.n_packets + sum(bench.assembly.n_bad.values()) == bench.n_added


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
