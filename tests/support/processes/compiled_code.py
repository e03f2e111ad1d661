"""Compiled code of receivers and converters, loaded by importing this before services are forked."""

from __future__ import annotations

from support.peers.assembly_bench import eiger
from support.processes.deployment import make_config
from support.processes.udp_modules import EIGER

from stddaq.config import DetectorConfig
from stddaq.udp import conversion
from stddaq.udp.converter import load_compiled_code

JUNGFRAU = {"detector_type": "jungfrau-raw", "image_pixel_height": 512, "image_pixel_width": 1024}

eiger().compile()
for kind, keys in (
    (conversion.GigaFrostConversion, {"image_pixel_height": 280, "image_pixel_width": 528, "n_modules": 8}),
    (conversion.EigerConversion, EIGER),
    (conversion.EigerConversion, EIGER | {"bit_depth": 16}),
    (conversion.JungfrauRawConversion, JUNGFRAU | {"module_positions": {"0": [0, 0, 1023, 511]}}),
):
    config = DetectorConfig.parse(make_config(**keys))
    load_compiled_code(kind(config, 0), config)
