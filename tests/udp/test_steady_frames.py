"""Compiled code receives frames as Python does: the same frames, messages and counts, whatever arrives."""

from __future__ import annotations

import itertools
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.peers.assembly_bench import Bench, Way, eiger, frames, payload
from support.peers.udp_detectors import eiger_frame, gigafrost_frame, jungfrau_frame

from stddaq.udp.geometry import GigaFrostGeometry

Frames = list[list[bytes]]
RANDOM = np.random.default_rng(3)


def random_fields(*bits: int) -> list[int]:
    return [int(RANDOM.integers(0, 2**n, dtype=np.uint64)) for n in bits]


def sent_by_gigafrost(n: int, shape: tuple[int, int], first: int, step: int) -> Frames:
    geometry, made = GigaFrostGeometry.of(*shape), []
    pixels = RANDOM.integers(1, 4096, (geometry.module_height, geometry.module_width), np.uint16)
    for i in range(n):
        status, swap, mode, stamp, exposure, sync, scan = random_fields(16, 1, 3, 40, 24, 32, 32)
        pixels[0, :16] = i
        made.append(
            gigafrost_frame(
                first + i * step,
                pixels,
                module=5,
                shape=shape,
                rows=geometry.rows,
                status=status,
                swap=swap,
                correction_mode=mode,
                timestamp=stamp,
                exposure_time=exposure,
                sync_time=sync,
                scan_time=scan,
            )
        )
    return made


def sent_by_eiger(n: int, first: int, step: int) -> Frames:
    made = []
    for i in range(n):
        row, column, stamp = random_fields(16, 16, 63)
        pixels = RANDOM.integers(1, 256, (256, 512), np.uint8)
        made.append(eiger_frame(first + i * step, pixels, row=row, column=column, timestamp=stamp))
    return made


def sent_by_jungfrau(n: int, first: int, step: int) -> Frames:
    pixels, made = RANDOM.integers(0, 2**16, (512, 1024), np.uint16), []
    for i in range(n):
        debug, stamp = random_fields(32, 63)
        pixels[0, :16] = i
        made.append(jungfrau_frame(i, pixels, float(first + i * step), debug=debug, timestamp=stamp))
    return made


def gigafrost(shape: tuple[int, int]) -> tuple[Bench, Bench]:
    return both("gigafrost", 5, image_pixel_height=shape[0], image_pixel_width=shape[1])


def both(detector_type: str, module: int = 3, **keys: Any) -> tuple[Bench, Bench]:
    """Return an assembly with compiled code, and one that copies."""
    compiled, copied = (Bench(detector_type, module, **keys) for _ in range(2))
    copied.way = Way.COPIED
    return compiled, copied


def benches(name: str) -> tuple[tuple[Bench, Bench], Callable[[int, int, int], Frames]]:
    """Return a detector's assemblies, and what makes frames (number, first id, step)."""
    if name == "eiger":
        return both(name, bit_depth=8), sent_by_eiger
    if name == "jungfrau-raw":
        return both(name), sent_by_jungfrau
    height, width = map(int, name.split("x"))
    return gigafrost((height, width)), lambda n, first, step: sent_by_gigafrost(
        n, (height, width), first, step
    )


# A GigaFRoST with 126 packets; with 2; with a shorter last one; padded; both; with a single one.
DETECTORS = ["eiger", "jungfrau-raw", "2016x2016", "128x480", "280x528", "252x504", "252x528", "8x48"]


N_FRAMES = 20


def feed(pair: Sequence[Bench], packets: Sequence[bytes], random: np.random.Generator, longest: int) -> None:
    """Add packets in batches: the first frames one by one, so that their order is known."""
    first, n_packets = 0, pair[0].packets.n_packets
    while first < len(packets):
        n = n_packets if first < 3 * n_packets else int(random.integers(1, longest + 1))
        for bench in pair:
            bench.add(*packets[first : first + n])
            bench.now += 0.0001
        first += n
    for bench in pair:
        bench.close()


def assert_equal(compiled: Bench, copied: Bench) -> None:
    assert [frame.frame_id for frame in compiled.announced] == copied.ids()
    assert compiled.missing() == copied.missing()
    assert [frame.message for frame in compiled.announced] == [frame.message for frame in copied.announced]
    assert compiled.announced == copied.announced
    assert compiled.counts() == copied.counts()


@pytest.mark.parametrize(("first", "step"), [(1, 1), (998, 1), (40, 2), (10**6, 8)])
@pytest.mark.parametrize("name", DETECTORS)
def test_frames_in_order_are_taken_by_compiled_code(name: str, first: int, step: int) -> None:
    pair, make = benches(name)
    sent = make(N_FRAMES, first, step)
    feed(pair, list(itertools.chain.from_iterable(sent)), np.random.default_rng(first), 300)
    assert_equal(*pair)
    assert pair[0].ids() == list(range(first, first + N_FRAMES * step, step))
    assert pair[0].n_steady > 1


FAULTS: dict[str, Callable[[list[bytes], np.random.Generator], list[bytes]]] = {
    "lost": lambda packets, _: packets[:-1],
    "short": lambda packets, _: [*packets[:-1], packets[-1][:-1]],
    "long": lambda packets, _: [*packets[:-1], packets[-1] + b"\1"],
    "no header": lambda packets, _: [*packets[:-1], b"\xcb"],
    "repeated": lambda packets, _: [*packets, packets[-1]],
    "exchanged": lambda packets, _: [*packets[:-2], *packets[:-3:-1]],
    "late": lambda packets, random: [*packets, packets[int(random.integers(len(packets)))]],
    "header": lambda packets, random: [*packets[:-1], flipped(packets[-1], random)],
}


def flipped(packet: bytes, random: np.random.Generator) -> bytes:
    """Return a packet with one wrong bit in its header."""
    bit = int(random.integers(8 * 32))
    return bytes(byte ^ (1 << bit % 8 if i == bit // 8 else 0) for i, byte in enumerate(packet))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", [name for name in DETECTORS if name not in ("jungfrau-raw", "2016x2016")])
def test_after_any_fault_frames_messages_and_counts_are_those_of_python(name: str, seed: int) -> None:
    pair, make = benches(name)
    random = np.random.default_rng(seed)
    sent, packets = make(60 if name == "eiger" else 500, 5, 1), []
    share = 0.1 / len(sent[0])
    pair[0].stays = seed > 0
    for packet in itertools.chain.from_iterable(sent):
        packets.append(packet)
        if random.random() < share:
            packets = FAULTS[str(random.choice(list(FAULTS)))](packets, random)
    # All frames are received at once, or several calls get the packets of one.
    feed(pair, packets, random, len(sent[0]) // 3 + 1 if seed % 2 else 300)
    assert_equal(*pair)
    assert pair[0].n_steady > 10


def test_compiled_code_continues_after_a_loss_although_no_batch_ends_with_a_frame() -> None:
    bench, sent = eiger(), frames(*range(1, 61))
    bench.stays = True
    del sent[5][3]
    packets = list(itertools.chain.from_iterable(sent.values()))
    bench.add(*packets[:96])
    for first in range(96, len(packets), 45):
        bench.add(*packets[first : first + 45])
    bench.close()
    assert bench.missing() == [*[0] * 4, 1, *[0] * 55]
    assert all(
        frame.pixels == payload(sent[frame.frame_id]) for frame in bench.announced if frame.frame_id != 5
    )
    assert bench.n_steady >= 50


@pytest.mark.slow
def test_no_frame_that_lacks_a_packet_is_complete() -> None:
    for lost in range(32):
        bench, sent = eiger(), frames(*range(1, 9))
        del sent[7][lost]
        bench.add(*itertools.chain.from_iterable(sent.values()))
        bench.assembly.close()
        assert bench.n_steady > 0
        assert bench.missing() == [0, 0, 0, 0, 0, 0, 1, 0]
        assert bench.announced[7].pixels == payload(sent[8])


def test_readers_trust_slots_of_complete_frames_only() -> None:
    bench, sent = eiger(), frames(1, 2, 3, 4)
    for part in (sent[1], sent[2], sent[3], sent[4][:5]):
        bench.add(*part)
    stamps = bench.stamps()
    assert stamps[3] == 1
    # Opened: the frame being received, and those that may follow in the same batch.
    assert stamps[4] == stamps[5] == 0
    assert struct.unpack_from("<I", bench.sequences[3])[0] == 1


@pytest.mark.parametrize(
    ("name", "highest"), [("jungfrau-raw", 2**53), ("8x48", 2**32 - 1), ("eiger", 2**64 - 1)]
)
def test_ids_are_exact_up_to_the_highest_one_of_the_header(name: str, highest: int) -> None:
    pair, make = benches(name)
    sent = make(6, highest - 5, 1)
    feed(pair, list(itertools.chain.from_iterable(sent)), np.random.default_rng(1), 300)
    assert_equal(*pair)
    assert pair[0].ids() == list(range(highest - 5, highest + 1))


def test_many_frames_at_once_are_announced_once_each() -> None:
    pair, make = benches("128x480")
    sent = make(1100, 1, 1)
    for bench in pair:
        bench.add(*sent[0], *sent[1], *sent[2])
        bench.add(*itertools.chain.from_iterable(sent[3:]))
    assert_equal(*pair)
    assert pair[0].n_steady > 1000


COMPILE = """
from support.peers.assembly_bench import eiger
from stddaq.udp import steady_kernels
eiger().compile()
print(len(steady_kernels.receive.stats.cache_misses))
"""


@pytest.mark.slow
def test_one_of_the_receivers_that_start_together_compiles_and_the_others_wait(tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(tests)}
    started = [
        subprocess.Popen([sys.executable, "-c", COMPILE], env=env, text=True, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    assert sorted(process.communicate(timeout=100)[0].strip() for process in started) == ["0", "0", "1"]
