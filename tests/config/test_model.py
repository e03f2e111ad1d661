"""The configuration file: every key of the specification, and every kind of mistake."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.processes.deployment import make_config

from stddaq.config import DetectorConfig
from stddaq.errors import ConfigError

MANDATORY = (
    "detector_name",
    "detector_type",
    "n_modules",
    "bit_depth",
    "image_pixel_height",
    "image_pixel_width",
    "start_udp_port",
    "module_positions",
)
DEFAULTS = {
    "log_level": "info",
    "stats_collection_period": 10,
    "ram_buffer_gb": None,
    "number_of_writers": 0,
    "gpfs_block_size": 16777216,
    "live_stream_configs": {},
    "switch_user_active": False,
    "allowed_roots": [],
    "trusted_uids": [],
    "delay_filter_timeout": 10,
    "max_number_of_forwarders_spawned": 8,
    "use_all_forwarders": False,
    "sender_sends_full_images": False,
    "module_sync_queue_size": 50,
    "image_checksums": False,
    "image_division": "image_id",
    "statistics_format": "std_daq",
    "services": [],
    "nexus": None,
}


def minimal(**changes: Any) -> dict[str, Any]:
    """Return the mandatory keys, for images of 8 x 12 pixels, with changes."""
    content = {
        "detector_name": "camera",
        "detector_type": "gigafrost",
        "n_modules": 8,
        "bit_depth": 16,
        "image_pixel_height": 8,
        "image_pixel_width": 12,
        "start_udp_port": 2000,
        "module_positions": {},
    }
    return content | changes


def written(directory: Path, content: object) -> Path:
    """Return a file with `content` as JSON, or unchanged if it is bytes."""
    path = directory / "detector.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def refusal(path: Path) -> str:
    """Return the message that refuses `path`: one line that starts with the path."""
    with pytest.raises(ConfigError) as refused:
        DetectorConfig.load(path)
    message = str(refused.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    return message.removeprefix(f"{path}: ")


def test_mandatory_keys_are_enough_and_the_others_have_the_specified_defaults(tmp_path: Path) -> None:
    config = DetectorConfig.load(written(tmp_path, minimal()))

    assert {key: getattr(config, key) for key in MANDATORY} == minimal()
    assert {key: value for key, value in config.as_json().items() if key not in MANDATORY} == DEFAULTS


@pytest.mark.parametrize("key", MANDATORY)
def test_missing_mandatory_key_is_named(tmp_path: Path, key: str) -> None:
    content = minimal()
    del content[key]
    assert refusal(written(tmp_path, content)) == f"{key}: expected a value, got nothing; it is mandatory"


def test_all_mistakes_are_named_in_one_line(tmp_path: Path) -> None:
    content = minimal(bit_depth=12, n_modules="8")
    del content["start_udp_port"]
    message = refusal(written(tmp_path, content))
    assert all(key in message for key in ("bit_depth", "n_modules", "start_udp_port"))


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("detector_name", 5, "5"),
        ("detector_name", "", '""'),
        ("detector_name", "a/b", '"a/b"'),
        ("detector_name", "..", '".."'),
        ("detector_name", "two words", '"two words"'),
        ("detector_name", "line\nbreak", '"line\\nbreak"'),
        ("detector_name", "x" * 65, '"xxx'),
        ("detector_type", "Eiger", '"Eiger"'),
        ("detector_type", None, "null"),
        ("n_modules", 0, "0"),
        ("n_modules", 1.0, "1.0"),
        ("n_modules", True, "true"),
        ("n_modules", 10**100, "1000"),
        ("bit_depth", 12, "12"),
        ("bit_depth", 64, "64"),
        ("bit_depth", "16", '"16"'),
        ("image_pixel_height", 0, "0"),
        ("image_pixel_height", -1, "-1"),
        ("image_pixel_width", 2**31, "2147483648"),
        ("image_pixel_width", "12", '"12"'),
        ("start_udp_port", -1, "-1"),
        ("start_udp_port", 65536, "65536"),
        ("module_positions", [], "[]"),
        ("module_positions", None, "null"),
        ("module_positions", {"0": [0, 0, 1]}, "[0, 0, 1]"),
        ("module_positions", {"0": [0, 0, 1, 1, 1]}, "[0, 0, 1, 1, 1]"),
        ("module_positions", {"0": [0, 0, 1, "1"]}, '"1"'),
        ("module_positions", {"0": [0, 0, 1.5, 1]}, "1.5"),
        ("module_positions", {"0": [0, 0, 12, 7]}, "[0, 0, 12, 7]"),
        ("module_positions", {"0": [0, 0, 11, 8]}, "[0, 0, 11, 8]"),
        ("module_positions", {"0": [-1, 0, 11, 7]}, "[-1, 0, 11, 7]"),
        ("module_positions", {"first": [0, 0, 11, 7]}, '"first"'),
        ("module_positions", {"a\nb": 5}, "5"),
        ("log_level", "trace", '"trace"'),
        ("log_level", "INFO", '"INFO"'),
        ("stats_collection_period", 0, "0"),
        ("stats_collection_period", 0.5, "0.5"),
        ("stats_collection_period", 10**400, "1000"),
        ("ram_buffer_gb", -1, "-1"),
        ("ram_buffer_gb", "4", '"4"'),
        ("ram_buffer_gb", 2**40, str(2**40)),
        ("number_of_writers", -1, "-1"),
        ("number_of_writers", "2", '"2"'),
        ("gpfs_block_size", 0, "0"),
        ("gpfs_block_size", 2**32, str(2**32)),
        ("live_stream_configs", [], "[]"),
        ("live_stream_configs", {"tcp://*:1": []}, "[]"),
        ("switch_user_active", 1, "1"),
        ("switch_user_active", "true", '"true"'),
        ("delay_filter_timeout", -1, "-1"),
        ("max_number_of_forwarders_spawned", "8", '"8"'),
        ("use_all_forwarders", 0, "0"),
        ("sender_sends_full_images", None, "null"),
        ("module_sync_queue_size", 0, "0"),
        ("image_checksums", 1, "1"),
        ("image_division", "random", '"random"'),
        ("statistics_format", "csv", '"csv"'),
        ("nexus", [], "[]"),
        ("nexus", {"beam": {"energy_kev": 0}}, "0"),
        ("nexus", {"detector": {"mask_file": "mask.npy"}}, '"mask.npy"'),
    ],
)
def test_wrong_value_is_refused_with_its_key_and_what_was_expected_and_found(
    tmp_path: Path, key: str, value: object, shown: str
) -> None:
    message = refusal(written(tmp_path, minimal(**{key: value})))
    assert message.startswith(key)
    assert "expected " in message
    assert f"got {shown}" in message


def test_every_place_inside_the_image_is_a_module_position() -> None:
    positions = {"0": [0, 0, 11, 7], "1": [11, 7, 0, 0]}
    assert DetectorConfig.parse(minimal(module_positions=positions)).module_positions == positions


@pytest.mark.parametrize(
    ("detector_type", "bit_depth", "dtype", "bytes_per_pixel"),
    [
        ("gigafrost", 16, "<u2", 2),
        ("eiger", 8, "|u1", 1),
        ("eiger", 16, "<u2", 2),
        ("eiger", 32, "<u4", 4),
        ("pco", 16, "<u2", 2),
        ("jungfrau-raw", 16, "<u2", 2),
        ("jungfrau-converted", 16, "<f4", 4),
        ("jungfrau-converted", 32, "<f4", 4),
    ],
)
def test_pixel_type_and_image_bytes_follow_detector_type_and_bit_depth(
    detector_type: str, bit_depth: int, dtype: str, bytes_per_pixel: int
) -> None:
    config = DetectorConfig.parse(minimal(detector_type=detector_type, bit_depth=bit_depth))
    assert config.dtype == np.dtype(dtype)
    assert config.image_bytes == 8 * 12 * bytes_per_pixel
    assert config.image_shape == (8, 12)


@pytest.mark.parametrize("bit_depth", [8, 32])
def test_gigafrost_of_another_depth_than_two_bytes_per_pixel_is_refused(
    tmp_path: Path, bit_depth: int
) -> None:
    message = refusal(written(tmp_path, minimal(bit_depth=bit_depth)))
    assert message == f"bit_depth: expected 16 for gigafrost (2 bytes per pixel), got {bit_depth}"


def test_image_of_4_gib_is_refused_because_no_hdf5_chunk_holds_it(tmp_path: Path) -> None:
    message = refusal(written(tmp_path, minimal(image_pixel_height=2**16, image_pixel_width=2**15)))
    assert f"expected an image of at most {2**32 - 1} bytes, got {2**32}" in message
    DetectorConfig.parse(minimal(image_pixel_height=2**16 - 1, image_pixel_width=2**15))


@pytest.mark.parametrize(
    ("ram_buffer_gb", "height", "width", "n_slots"),
    [
        (None, 2016, 2016, 1000),
        (0, 2016, 2016, 1000),
        (1, 2016, 2016, 1000),
        (8, 2016, 2016, 8 * 2**30 // (2016 * 2016 * 2)),
        (1, 1024, 1, 2**30 // 2048),
    ],
)
def test_number_of_slots_is_what_the_ram_buffer_holds_but_at_least_1000(
    ram_buffer_gb: int | None, height: int, width: int, n_slots: int
) -> None:
    config = DetectorConfig.parse(
        minimal(ram_buffer_gb=ram_buffer_gb, image_pixel_height=height, image_pixel_width=width)
    )
    assert config.n_slots == n_slots


def test_keys_of_other_services_are_kept(tmp_path: Path) -> None:
    others = {"submodule_info": {"a": [1, 2.5, None]}, "writer_user_id": 12345, "": "ä"}
    config = DetectorConfig.load(written(tmp_path, minimal(**others)))
    assert config.others == others


def test_configuration_is_immutable() -> None:
    config = DetectorConfig.parse(minimal())
    with pytest.raises(FrozenInstanceError):
        config.n_modules = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = written(tmp_path, b"\xef\xbb\xbf" + json.dumps(minimal()).encode())
    assert DetectorConfig.load(path) == DetectorConfig.parse(minimal())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"{'a': 1}", "line 1"),
        (b'{\n"a": 1\n"b": 2}', "line 3"),
        (b"\xff\xfe{}", "is not UTF-8 text"),
        (b"[]", "expected a JSON object of configuration keys, got []"),
        (b"5", "expected a JSON object of configuration keys, got 5"),
        (b"null", "expected a JSON object of configuration keys, got null"),
        (b'"text"', 'expected a JSON object of configuration keys, got "text"'),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", "nested too deeply, expected at most 100 levels"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"n_modules": ' + b"9" * 5000 + b"}", "a number of thousands of digits"),
        (b'{"n_modules": NaN}', "got NaN"),
        (b'{"other": [-Infinity]}', "got -Infinity"),
        (b'{"n_modules": 1, "n_modules": 2}', "n_modules: expected one value in an object, got several"),
        (b'{"other": {"a\\nb": 1, "a\\nb": 2}}', '"a\\nb": expected one value in an object, got several'),
    ],
)
def test_file_without_a_json_object_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    assert reason in refusal(written(tmp_path, content))


def test_file_that_cannot_be_read_is_refused_with_the_systems_reason(tmp_path: Path) -> None:
    assert refusal(tmp_path / "missing.json") == "cannot be read: No such file or directory"
    assert refusal(tmp_path) == "cannot be read: Is a directory"
    assert refusal(written(tmp_path, minimal()) / "below") == "cannot be read: Not a directory"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
small = st.integers(1, 500)


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Generate valid content: mandatory keys, some optional keys, and keys of other services."""
    height, width = draw(small), draw(small)
    detector_type = draw(st.sampled_from(("gigafrost", "eiger", "pco", "jungfrau-raw", "jungfrau-converted")))
    x, y = st.integers(0, width - 1), st.integers(0, height - 1)
    position = st.tuples(x, y, x, y).map(list)
    content = make_config(
        detector_type=detector_type,
        bit_depth=16 if detector_type == "gigafrost" else draw(st.sampled_from((8, 16, 32))),
        image_pixel_height=height,
        image_pixel_width=width,
        module_positions=draw(st.dictionaries(st.integers(0, 99).map(str), position, max_size=4)),
        log_level=draw(st.sampled_from(("debug", "info", "warning", "error", "off"))),
        ram_buffer_gb=draw(st.none() | st.integers(0, 64)),
        number_of_writers=draw(st.integers(0, 64)),
        image_division=draw(st.sampled_from(("image_id", "arrival"))),
        statistics_format=draw(st.sampled_from(("std_daq", "influxdb"))),
    )
    others = draw(st.dictionaries(st.text().filter(lambda key: key not in DEFAULTS), json_values, max_size=3))
    return others | content


@given(configurations())
def test_valid_content_survives_a_round_trip_through_json(content: dict[str, Any]) -> None:
    config = DetectorConfig.parse(json.loads(json.dumps(content)))

    assert {key: config.as_json()[key] for key in content} == content
    assert DetectorConfig.parse(json.loads(json.dumps(config.as_json()))) == config


@given(
    st.dictionaries(st.sampled_from(MANDATORY + tuple(DEFAULTS)) | st.text(), json_values, max_size=4),
    st.sets(st.sampled_from(MANDATORY)),
)
def test_any_json_object_is_either_accepted_or_refused_in_one_line(
    changes: dict[str, Any], removed: set[str]
) -> None:
    content = {key: value for key, value in minimal(**changes).items() if key not in removed}
    try:
        DetectorConfig.parse(content, where="detector.json")
    except ConfigError as error:
        assert str(error).startswith("detector.json: ")  # noqa: PT017 - either way is right
        assert len(str(error).splitlines()) == 1  # noqa: PT017
