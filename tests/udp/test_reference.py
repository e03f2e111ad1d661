"""Packets that the existing services (C++) have converted give the same images and the same messages here,
and recorded ones the images of their detector.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import lzma
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.peers.udp_detectors import free_udp_ports
from support.processes.deployment import Deployment, make_config
from support.processes.udp_modules import EIGER_MODULE, replayed_images

from stddaq.config import DetectorConfig
from stddaq.config.modules import expected_modules
from stddaq.dataplane.metadata import GOOD_IMAGE, ImageMetadata, dtype_code
from stddaq.udp.conversion import Conversion, EigerConversion, GigaFrostConversion, JungfrauRawConversion
from stddaq.udp.detector_fields import fields_of
from stddaq.udp.frame_message import frame_layout
from stddaq.udp.geometry import GigaFrostGeometry, frame_bytes
from stddaq.udp.module_sync import ModuleSync

FOLDER = Path(os.environ.get("STDDAQ_TEST_DATA") or Path(__file__).parents[2] / "../shared/data")
REFERENCES = ["gigafrost_200x288", "eiger_0.5M_8bit", "eiger_0.5M_32bit", "jungfrau_raw_2modules"]
CONVERSIONS: dict[str, type[GigaFrostConversion | EigerConversion | JungfrauRawConversion]] = {
    "gigafrost": GigaFrostConversion,
    "eiger": EigerConversion,
    "jungfrau-raw": JungfrauRawConversion,
}
EIGER = EIGER_MODULE | {"bit_depth": 32}
RECORDED_IDS = range(29512, 29517)
RECORDED_SHA256 = {
    29512: "fe52032d522861392932802ac3423977170bdddb185e0e0b687e739845dc9fac",
    29513: "8ced3fb0b231813242be0e05c6e011ad940ad48461fa93253759ae2a2880e49b",
}


def needs(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path.name} is not there; set STDDAQ_TEST_DATA to its folder")
    return path


class Assembler:
    """Puts complete packets into frames, in the simplest way."""

    def __init__(self, config: DetectorConfig) -> None:
        self._config, self._n_bytes = config, frame_bytes(config)
        self.frames: defaultdict[int, np.ndarray] = defaultdict(lambda: np.zeros(self._n_bytes, np.uint8))
        if config.detector_type == "gigafrost":
            self._geometry = GigaFrostGeometry.of(*config.image_shape)

    def add(self, packet: bytes) -> int:
        """Return the id of the frame of the packet."""
        if self._config.detector_type == "gigafrost":
            image_id, row = int.from_bytes(packet[8:12], "little"), int.from_bytes(packet[14:16], "little")
            width = self._geometry.module_width
            start = row * width * 3 // 2
            n_rows = min(self._geometry.rows, self._geometry.module_height - row)
            payload = packet[32 : 32 + n_rows * width * 3 // 2]
        else:
            number, payload = int.from_bytes(packet[12:16], "little"), packet[48:]
            start = number * len(payload)
            if self._config.detector_type == "eiger":
                image_id = int.from_bytes(packet[0:8], "little")
            else:
                image_id = int(np.frombuffer(packet[16:24], "<f8")[0])
        self.frames[image_id][start : start + len(payload)] = np.frombuffer(payload, np.uint8)
        return image_id


def conversion_of(config: DetectorConfig, module: int) -> Conversion:
    return CONVERSIONS[config.detector_type](config, module)


@pytest.mark.parametrize("name", REFERENCES)
def test_images_and_messages_are_those_of_the_cpp_services(name: str) -> None:
    with np.load(needs(FOLDER / "udp-reference" / f"{name}.npz")) as file:
        data: dict[str, Any] = {key: file[key] for key in file.files}
    config = DetectorConfig.parse(json.loads(str(data["config_json"])))
    modules = expected_modules(config)
    assemblers = {module: Assembler(config) for module in modules}
    edges = data["packet_offsets"]
    for module, begin, end in zip(data["packet_module"], edges, edges[1:], strict=False):
        assemblers[int(module)].add(data["packet_bytes"][begin:end].tobytes())
    layout = frame_layout(config.detector_type)
    for expected, image_id in zip(data["images"], data["image_id"], strict=True):
        image = np.zeros(config.image_shape, config.dtype)
        for module in modules:
            frame = assemblers[module].frames[int(image_id)]
            conversion_of(config, module).convert(frame, image, np.zeros((), layout))
        assert np.array_equal(image, expected)
    sent = data["message_offsets"]
    expected_messages = [data["message_bytes"][a:b].tobytes() for a, b in itertools.pairwise(sent)]
    assert messages_of(config, data["frame_struct"]) == expected_messages


def messages_of(config: DetectorConfig, structs: np.ndarray) -> list[bytes]:
    """Return the announcements for the messages of frames."""
    sync = ModuleSync(
        expected_modules(config),
        config.n_modules,
        50,
        config.n_slots,
        is_gigafrost=config.detector_type == "gigafrost",
    )
    fill = fields_of(config.detector_type)
    messages = []
    for struct in structs:
        if not sync.add(struct.tobytes(), 0.0):
            continue
        for image in sync.take(0.0):
            metadata = ImageMetadata(
                image_id=image.image_id,
                height=config.image_pixel_height,
                width=config.image_pixel_width,
                size=config.image_bytes,
                dtype=dtype_code(config.pixel_type),  # pyright: ignore[reportArgumentType]
                status=image.status,  # pyright: ignore[reportArgumentType]
            )
            fill(metadata, image.message)
            messages.append(metadata.SerializeToString())
    return messages


def recorded_datagrams(module: int) -> bytes:
    """Return the file of a port as the dump tool has written it."""
    return lzma.decompress(needs(FOLDER / "eiger-udp" / f"{50020 + module}.dat.xz").read_bytes())


def test_recorded_packets_of_an_eiger_give_the_known_images() -> None:
    config = DetectorConfig.parse(make_config(**EIGER))
    images: defaultdict[int, np.ndarray] = defaultdict(lambda: np.zeros(config.image_shape, config.dtype))
    for module in range(4):
        records = recorded_datagrams(module)
        assembler, position = Assembler(config), 0
        while position < len(records):
            length = int.from_bytes(records[position : position + 8], "little")
            assembler.add(records[position + 8 : position + 8 + length])
            position += 8 + length
        conversion = EigerConversion(config, module)
        for image_id, frame in assembler.frames.items():
            conversion.convert(frame, images[image_id], np.zeros((), frame_layout("eiger")))
    assert sorted(images) == list(RECORDED_IDS)
    for image_id, expected in RECORDED_SHA256.items():
        assert hashlib.sha256(images[image_id].tobytes()).hexdigest() == expected


@pytest.mark.slow
def test_a_recording_replayed_through_all_services_gives_the_known_images(
    make_deployment: Callable[..., Deployment], directory: Path
) -> None:
    deployment = make_deployment(start_udp_port=free_udp_ports(4), **EIGER)
    for module in range(4):
        path = directory / f"{deployment.config['start_udp_port'] + module}.dat"
        path.write_bytes(recorded_datagrams(module))
    images = replayed_images(deployment, directory)
    assert [(image.image_id, image.status, image.is_held) for image in images] == [
        (image_id, GOOD_IMAGE, True) for image_id in RECORDED_IDS
    ]
    for image in images[: len(RECORDED_SHA256)]:
        assert hashlib.sha256(image.content).hexdigest() == RECORDED_SHA256[image.image_id]
