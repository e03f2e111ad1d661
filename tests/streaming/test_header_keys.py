"""The keys of array-1.0 headers that single consumers need, byte by byte, and as each consumer reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.processes.deployment import make_config

from stddaq.config import DetectorConfig
from stddaq.config.live_streams import LiveStreamSetting
from stddaq.config.schema import live_stream_setting
from stddaq.dataplane.metadata import ImageMetadata
from stddaq.errors import ConfigError
from stddaq.streaming.bsread_encoder import BsreadEncoder
from stddaq.streaming.encoders import Array10Encoder
from stddaq.streaming.viewer_queue import ImageBuffers
from stddaq.wire import array10

CONFIG = DetectorConfig.parse(make_config(detector_name="GF2", image_pixel_height=2, image_pixel_width=3))
PIXELS = np.arange(6, dtype="<u2").reshape(2, 3)
ALL = ["pulse_id", "source", "is_good_frame", "detector_name", "image_attributes"]
BEGIN = b'{"htype":"array-1.0", "shape":[2,3], "type":"uint16", "frame":'


def encoder(**setting: Any) -> Array10Encoder:
    """Return the encoder of a stream with these keys of its setting."""
    made = Array10Encoder(CONFIG, ImageBuffers(PIXELS.nbytes))
    made.use(LiveStreamSetting(type="forward", **setting))
    return made


def metadata(image_id: int, status: int = 1) -> ImageMetadata:
    found = ImageMetadata(image_id=image_id, size=PIXELS.nbytes, status=status)  # pyright: ignore[reportArgumentType]
    found.gf.scan_id, found.gf.scan_time, found.gf.sync_time = 5, 6, 7
    found.gf.frame_timestamp, found.gf.exposure_time = 8, 9
    return found


def parts(made: Array10Encoder, image_id: int, status: int = 1) -> list[bytes]:
    """Return the message of an image."""
    described = metadata(image_id, status)
    message, _ = made.parts(described, made.take(described, PIXELS.data.cast("B")))
    return [bytes(part) for part in message]


def header(made: Array10Encoder, image_id: int) -> dict[str, Any]:
    return json.loads(parts(made, image_id)[0])


def test_without_the_keys_the_header_is_that_of_std_daq_byte_by_byte() -> None:
    assert parts(encoder(), 3)[0] == BEGIN + b"3}"
    assert parts(encoder(), 3, 2)[0] == BEGIN + b'3, "status":"missing_packets"}'


def test_keys_follow_those_of_std_daq_byte_by_byte() -> None:
    expected = b'3, "pulse_id":3, "source":"GF2", "is_good_frame":%s, "detector_name":"GF2", '
    expected += b'"image_attributes":{"scan_index": 0, "image_number": 3, "scan_id": 5, "scan_time": 6, '
    expected += b'"sync_time": 7, "frame_timestamp": 8, "exposure_time": 9}'
    made = encoder(header=ALL, scan_index=0)
    assert parts(made, 3)[0] == BEGIN + expected % b"true" + b"}"
    assert parts(made, 3, 2)[0] == BEGIN + expected % b"false" + b', "status":"missing_packets"}'
    assert array10.decode(parts(made, 3)).image_id == 3


def test_only_the_wanted_keys_are_sent() -> None:
    assert parts(encoder(header=["is_good_frame"]), 3)[0] == BEGIN + b'3, "is_good_frame":true}'


def test_frame_is_counted_since_the_scan_began_and_lost_images_leave_gaps() -> None:
    setting: dict[str, Any] = {"header": ["image_attributes"], "frame": "since_scan"}
    made = encoder(scan_index=0, **setting)
    assert [header(made, image_id)["frame"] for image_id in (100, 101, 105)] == [0, 1, 5]
    made.use(LiveStreamSetting(type="batch", config=[1, 2], scan_index=0, **setting))
    assert header(made, 106)["frame"] == 6, "the scan goes on"
    made.use(LiveStreamSetting(type="forward", scan_index=2, **setting))
    first = header(made, 200)
    assert (first["frame"], first["image_attributes"]["scan_index"]) == (0, 2)
    assert first["image_attributes"]["image_number"] == 200
    assert [header(made, image_id)["frame"] for image_id in (201, 3, 4)] == [1, 0, 1], "the ids restart"


@pytest.mark.parametrize(
    "setting", [{"header": ["pulse"]}, {"header": ["source"] * 2}, {"scan_index": -1}, {"frame": "scan"}]
)
def test_unknown_keys_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"header|scan_index|frame"):
        live_stream_setting({"type": "forward"} | setting)


def test_keys_of_the_other_type_are_refused() -> None:
    made = BsreadEncoder(CONFIG)
    with pytest.raises(ConfigError, match=r"expected a stream of type array-1\.0, got bsread"):
        made.use(LiveStreamSetting(type="forward", header=["source"]))
    with pytest.raises(ConfigError, match=r"channel: expected a stream of type bsread, got array-1\.0"):
        encoder(channel="X:FPICTURE")


def as_streamvis(message: list[bytes]) -> np.ndarray:
    read, payload = json.loads(message[0]), message[1]
    assert len(message) == 2
    assert tuple(read["shape"]) != (2, 2), "it shows nothing"
    assert isinstance(read["pulse_id"], int)
    assert read["is_good_frame"] is True
    assert not read["detector_name"].startswith(("JF", "X.EG"))
    return np.frombuffer(payload, read["type"]).reshape(read["shape"])


def as_datahub(message: list[bytes]) -> np.ndarray:
    read = json.loads(message[0])
    assert read["source"] == "GF2"
    assert read["htype"] == "array-1.0"
    assert isinstance(read["frame"], int)
    return np.frombuffer(message[1], read.get("type", "int8")).reshape(read["shape"])


def as_pshell(message: list[bytes]) -> np.ndarray:
    read = json.loads(message[0])
    assert read.get("endianness", "little") == "little"
    assert str(read["frame"]).isdigit()
    return np.frombuffer(message[1], np.dtype(read["type"]).newbyteorder("<")).reshape(read["shape"])


def as_recastx(message: list[bytes]) -> np.ndarray:
    read = json.loads(message[0])
    # It aborts without this key, and leaves images with other numbers out.
    assert read["image_attributes"]["scan_index"] in (0, 1, 2)
    assert isinstance(read["frame"], int)
    return np.frombuffer(message[1], np.uint16).reshape(read["shape"])


def as_tomcat_preview(message: list[bytes]) -> np.ndarray:
    read = json.loads(message[0])
    assert (len(message), read["type"]) == (2, "uint16")
    image = np.frombuffer(message[1], np.uint16)
    assert image.size == np.prod(read["shape"])
    return image.reshape(read["shape"])


@pytest.mark.parametrize("consumer", [as_streamvis, as_datahub, as_pshell, as_recastx, as_tomcat_preview])
def test_consumer_finds_what_it_takes_from_the_header(
    consumer: Callable[[list[bytes]], np.ndarray],
) -> None:
    np.testing.assert_array_equal(consumer(parts(encoder(header=ALL), 3)), PIXELS)
