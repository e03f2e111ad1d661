"""Converters and module synchroniser of detectors that send UDP packets."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import zmq
from rig import configuration, cpu, detector, end, start, wait_ready
from tables import Table, spread
from udp_camera import EIGER, JUNGFRAU

from stddaq.config import DetectorConfig
from stddaq.config.modules import JUNGFRAU_SIZE
from stddaq.dataplane.connections import open_socket
from stddaq.dataplane.endpoints import converted_frames, metadata_stream
from stddaq.udp.conversion import (
    Conversion,
    EigerConversion,
    GigaFrostConversion,
    JungfrauConversion,
    JungfrauRawConversion,
)
from stddaq.udp.frame_message import frame_layout
from stddaq.udp.geometry import frame_bytes
from stddaq.udp.jungfrau_gains import GainParameters, GainTables
from stddaq.udp.placement import placement

ROUNDS = 7
# Images in turn: more than the caches hold.
N_IMAGES = 16
CALLS_PER_ROUND = 160
N_MODULES = 8
MESSAGES_PER_ROUND = 80_000
# More queued messages per round would be dropped.
BURST = 8000
TIMEOUT_S = 60.0


def conversion(rounds: int = ROUNDS) -> Table:
    """Measure the conversion of one module on one core."""
    table = Table(
        "conversion",
        "Conversion of the frames of a module",
        f"Median (min-max) of {rounds} rounds on one core; frames and images alternate among {N_IMAGES}. The "
        "copy has as many pixels of the image's type, without gaps or order of rows; the copy into place has "
        "the same pixels to write as the conversion. Targets for conversion / copy: 0.5, with gains 0.25.",
        [
            *("detector", "copy Gpixel/s", "copy into place Gpixel/s", "conversion Gpixel/s"),
            *("conversion / copy", "conversion / copy into place"),
        ],
    )
    for name, config, make in _cases():
        calls = _calls(config, make(config))
        n_pixels = placement(config, 0).part_of(np.empty(config.image_shape, np.uint8)).size
        rounds_s = [[_seconds(call) for call in calls] for _ in range(rounds + 1)][1:]
        table.add(
            name,
            *(statistics.median(n_pixels / each[i] / 1e9 for each in rounds_s) for i in (1, 2, 0)),
            *(spread([each[i] / each[0] for each in rounds_s]) for i in (1, 2)),
        )
    return table


Make = Callable[[DetectorConfig], Conversion]


def _cases() -> list[tuple[str, DetectorConfig, Make]]:
    shape = (4, *JUNGFRAU_SIZE)
    tables = GainTables(np.full(shape, 100, np.float32), np.full(shape, 0.5, np.float32))
    parameters = GainParameters(tables, tables)

    def config(**fields: Any) -> DetectorConfig:
        return DetectorConfig.parse(configuration("a", ram_buffer_gb=0, **fields))

    return [
        ("GigaFRoST 2016x2016", config(n_modules=8), lambda c: GigaFrostConversion(c, 0)),
        ("Eiger 16 bit", config(**EIGER | {"bit_depth": 16}), lambda c: EigerConversion(c, 0)),
        ("Eiger 32 bit", config(**EIGER | {"bit_depth": 32}), lambda c: EigerConversion(c, 0)),
        (
            "Jungfrau",
            config(detector_type="jungfrau-raw", **JUNGFRAU),
            lambda c: JungfrauRawConversion(c, 0),
        ),
        (
            "Jungfrau with gains",
            config(detector_type="jungfrau-converted", **JUNGFRAU),
            lambda c: JungfrauConversion(c, 0, parameters),
        ),
    ]


def _calls(config: DetectorConfig, conversion: Conversion) -> Sequence[Callable[[int], None]]:
    """Return the conversion of a frame, a copy of as many pixels, and a copy of them into the image."""
    message = np.zeros((), frame_layout(config.detector_type))
    random = np.random.default_rng(0)
    # Gain bits of 0, as almost all pixels have them.
    frames = random.integers(0, 64, (N_IMAGES, frame_bytes(config)), np.uint8)
    images = np.ones((N_IMAGES, *config.image_shape), config.dtype)
    places = [placement(config, 0).part_of(image) for image in images]
    sources, targets = np.stack(places), np.stack(places)
    return (
        lambda i: conversion.convert(frames[i], images[i], message),
        lambda i: np.copyto(targets[i], sources[i]),
        lambda i: np.copyto(places[i], sources[i]),
    )


def _seconds(call: Callable[[int], None]) -> float:
    begin = time.perf_counter()
    for n in range(CALLS_PER_ROUND):
        call(n % N_IMAGES)
    return (time.perf_counter() - begin) / CALLS_PER_ROUND


def synchronising(rounds: int = ROUNDS) -> Table:
    """Measure the CPU time of the module synchroniser."""
    table = Table(
        "synchroniser",
        "Module synchroniser",
        f"Median (min-max) of {rounds} rounds of {MESSAGES_PER_ROUND} messages of {N_MODULES} modules; "
        "CPU of all threads, announcements included. Target: 6 us per message.",
        ["modules", "us per message", "messages/s"],
    )
    with detector("c", n_modules=N_MODULES, image_pixel_height=128, image_pixel_width=480) as path:
        config = DetectorConfig.load(path)
        process = start("std_data_sync_module", path)
        try:
            wait_ready(process)
            figures = [_synchronise(config, process, n) for n in range(rounds + 1)][1:]
        finally:
            end(process)
    table.add(
        N_MODULES, spread([each for each, _ in figures]), statistics.median(rate for _, rate in figures)
    )
    return table


def _synchronise(config: DetectorConfig, process: Any, number: int) -> tuple[float, float]:
    """Send the messages of one round. Return CPU microseconds per message, and messages per second."""
    n_images = MESSAGES_PER_ROUND // N_MODULES
    message = np.zeros((), frame_layout("gigafrost"))
    with zmq.Context() as context:
        stream = open_socket(context, zmq.SUB)
        stream.subscribe(b"")
        stream.connect(metadata_stream(config.detector_name, "image"))
        push = open_socket(context, zmq.PUSH)
        push.connect(converted_frames(config.detector_name))
        time.sleep(0.3)  # The subscription must be at the synchroniser.
        began, used = time.perf_counter(), cpu([process])
        for image in range(n_images):
            message["id"] = number * n_images + image
            for module in range(N_MODULES):
                message["module"] = module
                push.send(message.tobytes())
            if image % (BURST // N_MODULES) == BURST // N_MODULES - 1:
                _receive(stream, BURST // N_MODULES)
        figures = (cpu([process]) - used) * 1e6, time.perf_counter() - began
        push.close()
        stream.close()
    return figures[0] / MESSAGES_PER_ROUND, MESSAGES_PER_ROUND / figures[1]


def _receive(stream: zmq.Socket[bytes], n_images: int) -> None:
    for _ in range(n_images):
        if not stream.poll(int(TIMEOUT_S * 1000)):
            raise SystemExit("the synchroniser does not keep up")
        stream.recv()
