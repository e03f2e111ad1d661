"""Converters and synchroniser as processes: frames of the test become images."""

from __future__ import annotations

import functools
import re
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
import zmq
from support.peers.udp_detectors import pack12
from support.processes.deployment import SHM_DIRECTORY, Deployment, wait_until
from support.processes.stream_readers import StreamReader
from support.processes.udp_modules import CONVERTERS, EIGER, LONG_TIMEOUT, Modules, start_converters

from stddaq.config import DetectorConfig
from stddaq.dataplane.endpoints import converted_frames, ipc_endpoint
from stddaq.dataplane.metadata import GOOD_IMAGE, ID_MISSMATCH, MISSING_PACKETS
from stddaq.dataplane.ring_buffer import RingBuffer
from stddaq.udp.geometry import frame_bytes
from stddaq.udp.placement import placement

GIGAFROST = {"n_modules": 8, "image_pixel_height": 24, "image_pixel_width": 72}
JUNGFRAU = {
    "detector_type": "jungfrau-raw",
    "image_pixel_height": 512,
    "image_pixel_width": 1024,
    "module_positions": {"0": [0, 0, 1023, 511]},
}
MakeDeployment = Callable[..., Deployment]
EIGER_FRAME = np.random.default_rng(0).integers(1, 255, (256, 512), np.uint8)


@pytest.mark.slow
def test_frames_of_eight_modules_become_an_image_with_the_metadata_of_the_camera(
    make_deployment: MakeDeployment,
) -> None:
    deployment = make_deployment(**GIGAFROST)
    start_converters(deployment, *range(8), sync_options=LONG_TIMEOUT)
    with Modules(deployment, *range(8)) as modules, StreamReader(deployment) as reader:
        modules.wait_for_converters()
        random, config = np.random.default_rng(0), modules.config
        images = [random.integers(0, 4096, config.image_shape, np.uint16) for _ in range(5)]
        for image_id, image in enumerate(images, start=5):
            frames = {
                m: np.frombuffer(pack12(placement(config, m).part_of(image)), np.uint8) for m in range(8)
            }
            modules.publish(
                image_id,
                frames,
                scan_id=7,
                scan_time=0x55667788,
                sync_time=0x11223344,
                frame_timestamp=0x0102030405,
                exposure_time=0x0A0B0C,
                do_not_store=image_id == 6,
            )
        received = reader.receive(5)
    assert [(image.image_id, image.status, image.is_held) for image in received] == [
        (image_id, GOOD_IMAGE, True) for image_id in range(5, 10)
    ]
    for image, expected in zip(received, images, strict=True):
        assert np.array_equal(image.pixels, expected)
    metadata = received[0].metadata
    # Besides the sequence number, the announcement is the one of the C++ service.
    metadata.sequence = 0
    assert metadata.SerializeToString().hex() == (
        "08051018184820801b28023001421a08071088ef99ab0518c4e68889012085888c9010288c96283001"
    )
    assert [image.metadata.gf.store_image for image in received] == [True, False, True, True, True]


@pytest.fixture
def eiger(make_deployment: MakeDeployment) -> Deployment:
    # The synchroniser may receive all messages of one converter before those of the other.
    return make_deployment(**EIGER, module_sync_queue_size=2000)


@pytest.fixture
def modules(eiger: Deployment) -> Iterator[Modules]:
    with Modules(eiger, 0, 1) as modules:
        yield modules


def both(value: int) -> dict[int, np.ndarray]:
    frame = np.full((256, 512), value, np.uint8)
    return {0: frame, 1: frame}


def is_converted(image: np.ndarray, value: int) -> bool:
    """Return whether both modules have filled the last pixels that they write."""
    return bool(image[0, 513] == value and image[255, 1029] == value)


@pytest.mark.slow
def test_gaps_are_zero_also_in_a_ring_that_was_used_before(eiger: Deployment, modules: Modules) -> None:
    with RingBuffer(modules.config, "image") as ring:
        for slot in range(modules.config.n_slots):
            ring.image(slot)[:, 250:530] = 99
        start_converters(eiger, 0, 1, sync_options=LONG_TIMEOUT)
        with StreamReader(eiger) as reader:
            modules.wait_for_converters()
            modules.publish(1001, both(5))
            (image,) = reader.receive(1)
    assert image.metadata.HasField("eg")
    expected = np.full((256, 1030), 5)
    expected[:, 256:258] = expected[:, 514:516] = expected[:, 772:774] = 0
    assert np.array_equal(image.pixels, expected)


def test_the_synchroniser_announces_the_checksum_of_the_converted_image(
    make_deployment: MakeDeployment,
) -> None:
    deployment = make_deployment(image_checksums=True, **EIGER)
    with Modules(deployment, 0, 1) as modules:
        start_converters(deployment, 0, 1, sync_options=LONG_TIMEOUT)
        with StreamReader(deployment) as reader:
            modules.wait_for_converters()
            for image_id in (1, 2):
                modules.publish(image_id, both(image_id))
            received = reader.receive(2)
    for image in received:
        assert image.metadata.checksum == xxhash.xxh3_64_intdigest(image.pixels.tobytes())


def test_a_slot_is_invalid_from_the_first_pixel_until_the_announcement(
    eiger: Deployment, modules: Modules
) -> None:
    start_converters(eiger, 0, 1, sync_options=LONG_TIMEOUT)
    with StreamReader(eiger) as reader, RingBuffer(modules.config, "image") as ring:
        modules.wait_for_converters()
        modules.publish(5, both(5))
        (first,) = reader.receive(1)
        assert ring.holds(5, first.metadata.sequence)
        modules.publish(1005, {0: EIGER_FRAME})
        wait_until(lambda: not ring.holds(5, first.metadata.sequence))
        assert ring.stamp(1005) == 0
        modules.publish(1005, {1: EIGER_FRAME})
        (second,) = reader.receive(1)
        assert second.is_held
        assert np.array_equal(second.pixels[:, 516:772], EIGER_FRAME[:, :256])
        assert np.array_equal(second.pixels[::-1, :256], EIGER_FRAME[:, :256])


@pytest.mark.fault(
    fault="synchroniser: SIGSTOP while the converters write the whole ring again, then SIGCONT",
    state="running",
    promise="no image is announced as good whose slot holds pixels of another one",
)
def test_a_synchroniser_that_was_stopped_announces_no_overwritten_image_as_good(
    eiger: Deployment, modules: Modules, seen: Callable[[str], None]
) -> None:
    services = start_converters(eiger, 0, 1, sync_options=LONG_TIMEOUT)
    with StreamReader(eiger) as reader:
        modules.wait_for_converters()
        modules.publish(1, both(1))
        reader.receive(1)
        services["sync"].send(signal.SIGSTOP)
        ring = RingBuffer(modules.config, "image")
        with ring:
            for image_id in range(2, 1012):
                modules.publish(image_id, both(image_id % 251))
                if image_id % 100 == 0 or image_id == 1011:
                    # The frames of the test must not be overwritten before they are converted.
                    wait_until(functools.partial(is_converted, ring.image(image_id), image_id % 251))
            services["sync"].send(signal.SIGCONT)
            received = reader.receive(1010)
    statuses = [image.status for image in received]
    assert [image.image_id for image in received] == list(range(2, 1012))
    assert statuses == [ID_MISSMATCH] * 10 + [GOOD_IMAGE] * 1000
    assert all((image.pixels[0, :256] == image.image_id % 251).all() for image in received[10:])
    seen("the 10 images that were overwritten have the status id_missmatch, the 1000 others are good")


@pytest.mark.fault(
    fault="converter: SIGSTOP for more frames than the frame ring has, then SIGCONT",
    state="running",
    promise="no frame's pixels are put into another image; later images are complete",
)
def test_a_converter_that_lags_by_more_than_its_ring_drops_the_overwritten_frames(
    eiger: Deployment, modules: Modules, seen: Callable[[str], None]
) -> None:
    # The last images wait for a converter that has a whole ring to go through.
    services = start_converters(eiger, 0, 1, sync_options=LONG_TIMEOUT)
    with StreamReader(eiger) as reader:
        modules.wait_for_converters()
        services[1].send(signal.SIGSTOP)
        for image_id in range(1, 1101):
            modules.publish(image_id, both(image_id % 251))
        services[1].send(signal.SIGCONT)
        received = reader.receive(1)
        while received[-1].image_id < 1100:
            received += reader.receive(1)
    for image in received:
        assert image.is_held
        assert image.status == GOOD_IMAGE
        assert (image.pixels[0, [0, 600, 1029]] == image.image_id % 251).all()
    seen(f"{len(received)} of 1100 images complete, each with its own pixels")


@pytest.mark.fault(
    fault="module: {how}",
    state="running",
    promise="complete images are announced within a second of the loss; the account names the module",
)
@pytest.mark.parametrize("how", ["one frame lost", "dead since a frame"])
def test_an_incomplete_image_is_left_out(
    eiger: Deployment, modules: Modules, how: str, seen: Callable[[str], None]
) -> None:
    # A module that sends a later frame has lost this one; one that is silent is waited for.
    options = LONG_TIMEOUT if how == "one frame lost" else ("--timeout", 3)
    services = start_converters(eiger, 0, 1, sync_options=options)
    with StreamReader(eiger) as reader:
        modules.wait_for_converters()
        modules.publish(1, both(1))
        modules.publish(2, {0: EIGER_FRAME})
        modules.publish(3, both(3) if how == "one frame lost" else {0: EIGER_FRAME})
        if how != "one frame lost":
            # They may be given up in two periods.
            services["sync"].wait_for_count("n_lost", 2)
            services["sync"].wait_for_line(r"incomplete images lack frames: \d of module 1")
            modules.publish(4, both(4))
        received = reader.receive(2)
    last = 3 if how == "one frame lost" else 4
    assert [image.image_id for image in received] == [1, last]
    services["sync"].wait_for_line(r"incomplete images lack frames: \d of module 1")
    services["sync"].wait_for_line(
        r"source=sync,processed_times=\d+,repetition_rate_hz=[\d.]+,n_corrupted_images="
    )
    seen(f"images 1 and {last} were announced, the log names module 1")


@pytest.mark.fault(
    fault="module: packets of one frame lost",
    state="running",
    promise="the image has the status missing_packets, whichever module arrived first",
)
@pytest.mark.parametrize("module", [0, 1])
def test_packets_lost_by_any_module_are_in_the_status(
    eiger: Deployment, modules: Modules, module: int, seen: Callable[[str], None]
) -> None:
    start_converters(eiger, 0, 1, sync_options=LONG_TIMEOUT)
    with StreamReader(eiger) as reader:
        modules.wait_for_converters()
        modules.publish(1, {module: EIGER_FRAME}, n_missing=1)
        modules.publish(1, {1 - module: EIGER_FRAME})
        (image,) = reader.receive(1)
    assert image.status == MISSING_PACKETS
    seen("missing_packets")


@pytest.mark.slow
def test_incomplete_images_can_be_announced_with_zeros(eiger: Deployment, modules: Modules) -> None:
    eiger.start("std_data_sync_module", "--announce-incomplete", "--timeout", 3)
    start_converters(eiger, 0, 1, sync=False)
    with StreamReader(eiger) as reader:
        modules.wait_for_converters()
        modules.publish(1, both(1))
        (complete,) = reader.receive(1)
        modules.publish(1001, {0: EIGER_FRAME})
        (incomplete,) = reader.receive(1)
    assert (complete.status, incomplete.status, incomplete.is_held) == (GOOD_IMAGE, MISSING_PACKETS, True)
    assert np.array_equal(incomplete.pixels[::-1, :256], EIGER_FRAME[:, :256])
    assert not incomplete.pixels[:, 514:].any()


def test_zeros_are_never_put_into_a_later_image(eiger: Deployment, modules: Modules) -> None:
    """A synchroniser that was stopped gives up an image whose slot a converter has filled again."""
    sync = eiger.start("std_data_sync_module", "--announce-incomplete", *LONG_TIMEOUT)
    start_converters(eiger, 0, 1, sync=False)
    with StreamReader(eiger) as reader, RingBuffer(modules.config, "image") as ring:
        modules.wait_for_converters()
        modules.publish(1, both(1))
        reader.receive(1)
        sync.send(signal.SIGSTOP)
        modules.publish(2, {0: EIGER_FRAME})
        modules.publish(3, both(3))
        modules.publish(1002, both(77))
        wait_until(lambda: is_converted(ring.image(1002), 77))
        sync.send(signal.SIGCONT)
        received = reader.receive(2)
    assert [(image.image_id, image.status) for image in received] == [(3, GOOD_IMAGE), (1002, GOOD_IMAGE)]
    assert (received[1].pixels[:, [0, 513, 516, 1029]] == 77).all()


@pytest.mark.parametrize("overrides", [GIGAFROST, EIGER, JUNGFRAU], ids=["gf", "eg", "jf"])
def test_a_message_of_eight_bytes_from_a_ring_of_ten_slots_is_passed_on(
    make_deployment: MakeDeployment, overrides: dict[str, Any]
) -> None:
    """As the integration tests of std_daq do with its converters."""
    deployment = make_deployment(**overrides)
    config = DetectorConfig.parse(deployment.config)
    name = f"{config.detector_name}-0"
    path = SHM_DIRECTORY / name
    path.write_bytes(bytes(10 * frame_bytes(config)))
    context = zmq.Context()
    try:
        receiver, pull = context.socket(zmq.PUB), context.socket(zmq.PULL)
        receiver.bind(ipc_endpoint(name))
        pull.bind(converted_frames(config.detector_name))
        converter = deployment.start(CONVERTERS[config.detector_type], 0)
        message = struct.pack("<Q", 42)

        def passed_on() -> bytes:
            receiver.send(message)
            return pull.recv() if pull.poll(100) else b""

        assert wait_until(passed_on)[:8] == message
        assert converter.end() == 0
    finally:
        context.destroy(linger=0)
        deployment.remove_leftovers()


def test_services_leave_nothing_behind(eiger: Deployment) -> None:
    services = start_converters(eiger, 0, 1)
    for service in services.values():
        assert service.end() == 0
    assert eiger.segments() == []
    assert eiger.sockets() == []


def test_random_messages_to_the_synchroniser_are_counted(eiger: Deployment, modules: Modules) -> None:
    services = start_converters(eiger, 0, 1)
    context = zmq.Context()
    try:
        push = context.socket(zmq.PUSH)
        push.connect(converted_frames(eiger.detector_name))
        random = np.random.default_rng(0)
        for _ in range(1000):
            push.send(random.bytes(int(random.integers(0, 100))))
        with StreamReader(eiger) as reader:
            services["sync"].wait_for_line(r"n_malformed=[1-9]")
            modules.wait_for_converters()
            for image_id in range(1, 200):
                modules.publish(image_id, both(image_id))
                image = reader.receive_one(0.1)
                # On a busy machine it is the one before.
                if image is not None and 1 <= image.image_id <= image_id:
                    assert image.status == GOOD_IMAGE
                    break
            else:
                raise AssertionError("no image was announced")
    finally:
        context.destroy(linger=0)


@pytest.mark.parametrize(
    ("program", "overrides", "arguments", "code", "expected"),
    [
        ("std_data_convert_jf", JUNGFRAU, None, 1, "detector_json_filename: 1 argument"),
        ("std_data_convert_gf", GIGAFROST, [], 1, "module_id: 1 argument"),
        ("std_data_convert_gf", GIGAFROST, [16], 2, "module_id: expected 0 to 15 for gigafrost, got 16"),
        ("std_data_convert_gf", GIGAFROST | {"image_pixel_width": 50}, [0], 2, "a multiple of 24"),
        ("std_data_convert_eg", GIGAFROST, [0], 2, "detector_type: expected eiger for std_data_convert_eg"),
        (
            "std_data_convert_eg",
            EIGER,
            [2],
            2,
            r"module_id: expected a key of module_positions \(0, 1\), got 2",
        ),
        ("std_data_convert_jf", JUNGFRAU, [0, "-g", "x.h5"], 2, "no gains for jungfrau-raw"),
        (
            "std_data_convert_jf",
            JUNGFRAU | {"detector_type": "jungfrau-converted"},
            [0],
            2,
            "expected --gains_and_pedestals, or --gain_file and --pedestal_file",
        ),
        (
            "std_data_sync_module",
            EIGER | {"module_positions": {"0": [0, 0, 513, 255], "1": [500, 0, 1013, 255]}},
            [],
            2,
            r"module_positions\[1\]: expected a place of its own",
        ),
        ("std_data_sync_module", {"n_modules": 4}, [], 2, "n_modules: expected 8 for gigafrost, got 4"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(
    make_deployment: MakeDeployment,
    program: str,
    overrides: dict[str, Any],
    arguments: list[Any] | None,
    code: int,
    expected: str,
) -> None:
    deployment = make_deployment(**overrides)
    if arguments is None:
        service = deployment.run(Path(deployment.stddaq).with_name(program))
    else:
        service = deployment.start(program, *arguments, ready=None)
    assert service.wait(60) == code
    (line,) = service.stderr
    assert re.search(expected, line), line


def test_without_numba_converters_say_what_to_install(
    make_deployment: MakeDeployment, tmp_path: Path
) -> None:
    deployment = make_deployment(preloaded=False, **JUNGFRAU)
    (tmp_path / "numba.py").write_text("raise ModuleNotFoundError('no numba', name='numba')\n")
    deployment.env["PYTHONPATH"] = str(tmp_path)
    service = deployment.start("std_data_convert_jf", 0, ready=None)
    assert service.wait(60) == 2
    assert (
        "package numba: expected it, for the converters, got none; pip install 'stddaq[udp]'"
        in service.stderr[0]
    )


def test_pco_has_nothing_to_synchronise(make_deployment: MakeDeployment) -> None:
    service = make_deployment(detector_type="pco").start("std_data_sync_module", ready="nothing to do")
    assert service.wait() == 0


@pytest.mark.slow
def test_a_second_converter_of_a_module_is_refused(eiger: Deployment) -> None:
    start_converters(eiger, 1, sync=False)
    second = eiger.start("std_data_convert_eg", 1, ready=None)
    assert second.wait(60) == 2
    assert re.search(r"convert-1: another running service is bound there, process \d+", second.stderr[0])
