"""Positions of modules: which fit a detector, and what lies between them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from support.processes.deployment import make_config
from support.processes.udp_modules import EIGER_MODULE

from stddaq.config import DetectorConfig
from stddaq.config.creation import example
from stddaq.config.modules import (
    Rectangle,
    expected_modules,
    gaps,
    module_places,
    position_mistakes,
)
from stddaq.errors import ConfigError

ONE_MODULE = EIGER_MODULE["module_positions"]


def eiger(**overrides: Any) -> DetectorConfig:
    return DetectorConfig.parse(make_config(**(EIGER_MODULE | overrides)))


def jungfrau(**positions: list[int]) -> DetectorConfig:
    return DetectorConfig.parse(
        make_config(
            detector_type="jungfrau-raw",
            n_modules=3,
            image_pixel_height=1100,
            image_pixel_width=1100,
            module_positions={name.removeprefix("m"): position for name, position in positions.items()},
        )
    )


def test_an_eiger_module_with_y1_below_y0_is_upside_down() -> None:
    places = module_places(eiger())
    assert places[0].area == Rectangle(258, 514, 0, 514)
    assert not places[0].is_upside_down
    assert places[2].area == Rectangle(0, 256, 0, 514)
    assert places[2].is_upside_down


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        ([513, 258, 0, 513], "x1 = x0 + 513"),
        ([0, 258, 512, 513], "x1 = x0 + 513"),
        ([0, 258, 513, 512], r"y1 = y0 \+ 255 or y0 - 255"),
    ],
    ids=["mirrored columns", "too narrow", "too low"],
)
def test_a_position_that_an_eiger_cannot_have_is_refused_with_its_module(
    position: list[int], expected: str
) -> None:
    config = eiger(module_positions=ONE_MODULE | {"1": position})
    (mistake,) = position_mistakes(config)
    assert mistake.startswith("module_positions[1]: expected ")
    assert expected.replace("\\", "") in mistake
    with pytest.raises(ConfigError, match=r"module_positions\[1\]"):
        module_places(config)


def test_modules_that_overlap_are_refused_with_both_indices() -> None:
    config = eiger(module_positions=ONE_MODULE | {"3": [513, 255, 1026, 0]})
    assert position_mistakes(config) == [
        "module_positions[3]: expected a place of its own, "
        "got [513, 255, 1026, 0], which overlaps that of module 2"
    ]


def test_corners_outside_the_image_are_refused_with_the_module() -> None:
    with pytest.raises(ConfigError, match=r'module_positions\["0"\]: expected a place inside the image'):
        eiger(module_positions={"0": [0, 259, 513, 514]})


def test_jungfrau_modules_cannot_be_turned() -> None:
    assert position_mistakes(jungfrau(m0=[0, 0, 1023, 511])) == []
    assert "y1 = y0 + 511 for" in position_mistakes(jungfrau(m2=[0, 511, 1023, 0]))[0]


def test_an_index_beyond_n_modules_is_refused() -> None:
    assert position_mistakes(eiger(n_modules=3))[0].startswith(
        'module_positions["3"]: expected an index below'
    )


def test_two_positions_of_a_module_are_refused() -> None:
    config = eiger(module_positions=ONE_MODULE | {"01": ONE_MODULE["1"]})
    assert position_mistakes(config) == ["module_positions[1]: expected one position of the module, got 2"]


def test_a_detector_of_modules_needs_positions() -> None:
    assert "the position of each module" in position_mistakes(eiger(module_positions={}))[0]


def test_all_modules_are_expected_without_positions_and_else_those_with_one() -> None:
    assert expected_modules(eiger(module_positions={})) == [0, 1, 2, 3]
    assert expected_modules(eiger(module_positions={"2": ONE_MODULE["2"], "0": ONE_MODULE["0"]})) == [0, 2]


@pytest.mark.parametrize("config", [eiger(), jungfrau(m0=[7, 3, 1030, 514], m1=[50, 580, 1073, 1091])])
def test_gaps_are_all_pixels_that_belong_to_no_module(config: DetectorConfig) -> None:
    image = np.zeros(config.image_shape, int)
    for gap in gaps(config):
        image[gap.top : gap.bottom, gap.left : gap.right] += 1
    expected = np.ones(config.image_shape, int)
    for place in module_places(config).values():
        area = place.area
        expected[area.top : area.bottom, area.left : area.right] = 0
        if config.detector_type == "eiger":
            expected[area.top : area.bottom, area.left + 256 : area.left + 258] = 1
    assert np.array_equal(image, expected)


@pytest.mark.parametrize("name", ["eiger", "eiger-500k", "gigafrost", "jungfrau"])
def test_examples_of_detectors_that_send_packets_have_possible_positions(name: str) -> None:
    assert position_mistakes(DetectorConfig.parse(json.loads(example(name)))) == []
