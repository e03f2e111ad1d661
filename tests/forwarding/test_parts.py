"""How images are cut into parts, for both sides and for C++ peers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.processes.deployment import make_config

from stddaq.config import DetectorConfig
from stddaq.forwarding.parts import Part, part_of, parts_of


def config_of(height: int, width: int, n_pairs: int, mode: str = "max", **more: Any) -> DetectorConfig:
    return DetectorConfig.parse(
        make_config(
            image_pixel_height=height,
            image_pixel_width=width,
            max_number_of_forwarders_spawned=n_pairs,
            use_all_forwarders=mode == "all",
            sender_sends_full_images=mode == "full",
            **more,
        )
    )


EIGER: dict[str, Any] = {"detector_type": "eiger", "bit_depth": 16}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (config_of(2016, 2016, 8), [(i * 1016064, 1016064) for i in range(8)]),
        (config_of(800, 1200, 8), [(0, 1016064), (1016064, 1920000 - 1016064)]),
        (config_of(528, 280, 8), [(0, 295680)]),
        (config_of(3106, 3264, 8, **EIGER), [(i * 5068992, 5068992) for i in range(4)]),
        (config_of(128, 480, 10, "all"), [(i * 12288, 12288) for i in range(10)]),
    ],
)
def test_parts_are_those_of_the_documented_examples(
    config: DetectorConfig, expected: list[tuple[int, int]]
) -> None:
    assert [(part.offset, part.length) for part in parts_of(config)] == expected
    assert all(part.cpp_length == part.length for part in parts_of(config))


def test_offsets_of_ten_parts_are_those_of_cpp_and_no_byte_is_left_out() -> None:
    parts = parts_of(config_of(2016, 2016, 10, "all"))
    offsets = [0, 812851, 1625702, 2438553, 3251404, 4064256, 4877107, 5689958, 6502809, 7315660]
    assert [part.offset for part in parts] == offsets
    # C++ senders leave out the last byte of two parts.
    left_out = [part.offset + part.cpp_length for part in parts if part.cpp_length < part.length]
    assert left_out == [4064255, 8128511]


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 12), st.sampled_from(["max", "all"]))
def test_parts_cover_every_byte_once(height: int, width: int, n_pairs: int, mode: str) -> None:
    config = config_of(height, width, n_pairs, mode)
    end = 0
    for part in parts_of(config):
        assert part.offset == end
        end += part.length
        assert 0 <= part.length - part.cpp_length <= 1
    assert end == config.image_bytes


def test_whole_images_have_a_part_for_each_pair() -> None:
    config = config_of(32, 48, 3, "full")
    assert parts_of(config) == [Part(i, 0, 3072, 3072) for i in range(3)]
    assert part_of(config, 3) is None


def test_an_image_larger_than_any_of_its_detector_is_forwarded_whole() -> None:
    parts = parts_of(config_of(2016, 2017, 8))
    assert sum(part.length for part in parts) == 2016 * 2017 * 2
