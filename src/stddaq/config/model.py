"""The detector configuration: one JSON file, the first argument of every service.

`DetectorConfig.load` reads, validates and freezes it. Unknown keys belong to other services and are kept.
A wrong value is a `ConfigError`: one line that names the file, every wrong key, what was expected and what
was found. The keys are those of the std_daq configuration file.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from stddaq.config.live_streams import LiveStreamSetting
from stddaq.errors import ConfigError
from stddaq.run_metadata import RunMetadata
from stddaq.text import mismatch, shown, shown_key
from stddaq.validation import explain

if TYPE_CHECKING:
    import numpy as np

DetectorType = Literal["gigafrost", "eiger", "pco", "jungfrau-raw", "jungfrau-converted"]
PixelType = Literal["uint8", "uint16", "uint32", "float32"]
LogLevel = Literal["debug", "info", "warning", "error", "off"]
# Images go to writer `image_id % number_of_writers`, or to the writers in turn as they arrive. Division by
# arrival loads all writers evenly, even if the ids of a stream share a factor with the number of writers.
ImageDivision = Literal["image_id", "arrival"]
# Statistics in the form of the C++ services, or in the line protocol of InfluxDB.
StatisticsFormat = Literal["std_daq", "influxdb"]

DEFAULT_BLOCK_SIZE = 16 * 2**20
MIN_SLOTS = 1000
# HDF5 chunks, and so images and blocks, are smaller than 4 GiB.
MAX_IMAGE_BYTES = 2**32 - 1
# 64 TiB, half of the address space of a process.
MAX_RAM_BUFFER_GB = 2**16
MAX_DEPTH = 100
MISTAKES_SHOWN = 10

_UNSIGNED: dict[int, PixelType] = {8: "uint8", 16: "uint16", 32: "uint32"}
_BYTES: dict[PixelType, int] = {"uint8": 1, "uint16": 2, "uint32": 4, "float32": 4}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
# The upper limits are those of the C++ services' int; they also keep arithmetic with the values exact.
Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
NotNegative = Annotated[int, Field(ge=0, le=2**31 - 1)]
AbsolutePath = Annotated[str, Field(pattern=r"^/[^\x00]*$")]

# Keys that decide who may do what: only an edit of the file changes them.
RIGHTS = ("services", "switch_user_active", "allowed_roots", "trusted_uids")


class DetectorConfig(BaseModel):
    """One detector and its services; immutable. Sizes are in pixels unless the name says bytes."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    detector_name: str
    detector_type: DetectorType
    n_modules: Positive
    bit_depth: Literal[8, 16, 32]
    image_pixel_height: Positive
    image_pixel_width: Positive
    start_udp_port: Annotated[int, Field(ge=0, le=65535)]
    module_positions: dict[str, list[int]]

    log_level: LogLevel = "info"
    stats_collection_period: Positive = 10
    ram_buffer_gb: Annotated[int, Field(ge=0, le=MAX_RAM_BUFFER_GB)] | None = None
    number_of_writers: NotNegative = 0
    gpfs_block_size: Annotated[int, Field(ge=1, le=MAX_IMAGE_BYTES)] = DEFAULT_BLOCK_SIZE
    live_stream_configs: dict[str, LiveStreamSetting] = Field(default_factory=dict)
    switch_user_active: bool = False
    delay_filter_timeout: Positive = 10
    max_number_of_forwarders_spawned: Positive = 8
    use_all_forwarders: bool = False
    sender_sends_full_images: bool = False
    module_sync_queue_size: Positive = 50

    # Keys of stddaq alone; the C++ services tolerate them.
    allowed_roots: list[AbsolutePath] = Field(default_factory=list)
    trusted_uids: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(default_factory=list)
    image_checksums: bool = False
    image_division: ImageDivision = "image_id"
    statistics_format: StatisticsFormat = "std_daq"
    services: list[str] = Field(default_factory=list)
    nexus: RunMetadata | None = None

    @classmethod
    def load(cls, path: str | Path) -> DetectorConfig:
        """Read and validate the JSON file at `path`. Raise `ConfigError` with a message of one line."""
        return cls.load_with_etag(path)[0]

    @classmethod
    def load_with_etag(cls, path: str | Path) -> tuple[DetectorConfig, str]:
        """Return what `load` returns, and what identifies the content of the file."""
        path = Path(path)
        text = _read(path)
        return cls.parse(_decoded(path, text), where=str(path)), etag_of(text)

    @classmethod
    def parse(cls, content: object, where: str = "configuration") -> DetectorConfig:
        """Validate `content`, which is decoded JSON. `where` opens the message of a `ConfigError`."""
        if not isinstance(content, dict):
            mistake = f"expected a JSON object of configuration keys, got {shown(content)}"
            raise ConfigError(f"{where}: {mistake}", [mistake])
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            mistakes = _mistakes(error, content)
            reported = mistakes[:MISTAKES_SHOWN]
            if len(mistakes) > MISTAKES_SHOWN:
                reported.append(f"and {len(mistakes) - MISTAKES_SHOWN} more mistakes")
            raise ConfigError(f"{where}: {'; '.join(reported)}", mistakes) from error

    @field_validator("detector_name")
    @classmethod
    def _name_is_usable(cls, name: str) -> str:
        # It becomes part of file names in /dev/shm and /tmp, and an HDF5 group.
        if not _NAME.fullmatch(name) or len(name) > 64:
            raise ValueError("1 to 64 letters, digits, '.', '_' or '-', not starting with '.' or '-'")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> DetectorConfig:
        mistakes = _inconsistencies(self.__dict__)
        if mistakes:
            raise ValueError("\n".join(mistakes))
        return self

    @property
    def dtype(self) -> np.dtype:
        """The type of one pixel, little-endian."""
        # Not at the top: services that pass pixels on as bytes save the 6 MB of memory that NumPy takes.
        import numpy as np

        return np.dtype(self.pixel_type).newbyteorder("<")

    @property
    def pixel_type(self) -> PixelType:
        """The name of `dtype`."""
        return _pixel_type(self.detector_type, self.bit_depth)

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.image_pixel_height, self.image_pixel_width)

    @property
    def image_bytes(self) -> int:
        """The bytes of one uncompressed image, which is one slot of the ring buffer."""
        return self.image_pixel_height * self.image_pixel_width * _BYTES[self.pixel_type]

    @property
    def n_slots(self) -> int:
        """The number of slots of each ring buffer of this detector."""
        if self.ram_buffer_gb is None:
            return MIN_SLOTS
        return max(MIN_SLOTS, self.ram_buffer_gb * 2**30 // self.image_bytes)


def etag_of(text: bytes) -> str:
    """Return what identifies the content of a configuration file."""
    return hashlib.sha256(text).hexdigest()[:32]


def read_json(path: Path) -> Any:
    """Decode the JSON of a file. Raise `ConfigError`, which names it."""
    return _decoded(path, _read(path))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def _decoded(path: Path, text: bytes) -> Any:
    try:
        return parse_json(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}", error.mistakes) from error


def parse_json(text: bytes) -> Any:
    """Decode the JSON of a configuration. Raise `ConfigError`, which does not name the file."""
    try:
        # Windows editors prepend a byte order mark.
        content = json.loads(
            text.decode("utf-8-sig"),
            object_pairs_hook=_unique_keys,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except ConfigError:
        raise  # One of the hooks raised it; it is also a ValueError.
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"is not JSON: {error.msg}, line {error.lineno}") from error
    except ValueError as error:
        raise ConfigError("is not usable JSON: a number of thousands of digits") from error
    except RecursionError as error:
        raise ConfigError("is not usable JSON: nested too deeply") from error
    # The depth at which Python fails depends on the caller; all services must accept the same files.
    if _depth(content) > MAX_DEPTH:
        raise ConfigError(f"is not usable JSON: nested too deeply, expected at most {MAX_DEPTH} levels")
    return content


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse two values for one key, because JSON readers silently use one of them."""
    content = dict(pairs)
    if len(content) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ConfigError(mismatch(shown_key(twice), "one value in an object", "several"))
    return content


def _no_constant(name: str) -> NoReturn:
    raise ConfigError(f"expected a number of JSON, got {name}")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ConfigError(f"expected a number up to 1.8e308, got {text[:60]}")
    return value


def _mistakes(error: ValidationError, content: dict[str, Any]) -> list[str]:
    """Return every mistake in words: of single keys, and of keys that are valid but do not fit together."""
    mistakes: list[str] = []
    for single in error.errors():
        if single["loc"]:
            mistakes.append(explain(single, "configuration"))
        else:  # A mistake of several keys; its message is complete.
            mistakes += single["msg"].removeprefix("Value error, ").split("\n")
    wrong = {single["loc"][0] for single in error.errors() if single["loc"]}
    if wrong:
        mistakes += _inconsistencies({key: value for key, value in content.items() if key not in wrong})
    return mistakes


def _inconsistencies(values: Mapping[str, Any]) -> list[str]:
    """Return what does not fit together among the keys that are present."""
    mistakes = []
    kind, depth = values.get("detector_type"), values.get("bit_depth")
    height, width = values.get("image_pixel_height"), values.get("image_pixel_width")
    if kind == "gigafrost" and depth not in (None, 16):
        mistakes.append(mismatch("bit_depth", "16 for gigafrost (2 bytes per pixel)", str(depth)))
    if kind and depth and height and width:
        image_bytes = height * width * _BYTES[_pixel_type(kind, depth)]
        if image_bytes > MAX_IMAGE_BYTES:
            mistakes.append(
                mismatch(
                    "image_pixel_height x image_pixel_width",
                    f"an image of at most {MAX_IMAGE_BYTES} bytes",
                    str(image_bytes),
                )
            )
    nexus = values.get("nexus")
    mask_file = nexus.detector.mask_file if isinstance(nexus, RunMetadata) else None
    if mask_file is not None and not mask_file.startswith("/"):
        mistakes.append(mismatch("nexus.detector.mask_file", "an absolute path", shown(mask_file)))
    for index, position in values.get("module_positions", {}).items():
        mistakes += _position_mistakes(index, position, height, width)
    return mistakes


def _position_mistakes(index: str, position: list[int], height: int | None, width: int | None) -> list[str]:
    where = f"module_positions[{shown(index)}]"
    mistakes = []
    if not (index.isascii() and index.isdecimal()):
        mistakes.append(mismatch(where, "the decimal index of a module as key", shown(index)))
    if len(position) != 4:
        mistakes.append(mismatch(where, "4 integers [x0, y0, x1, y1]", shown(position)))
    elif height and width:
        limits = (width, height, width, height)
        if not all(0 <= value < limit for value, limit in zip(position, limits, strict=True)):
            mistakes.append(
                mismatch(
                    where,
                    f"a place inside the image, x from 0 to {width - 1}, y from 0 to {height - 1}",
                    shown(position),
                )
            )
    return mistakes


def _pixel_type(detector_type: str, bit_depth: int) -> PixelType:
    return "float32" if detector_type == "jungfrau-converted" else _UNSIGNED[bit_depth]


def _depth(content: object) -> int:
    """Return the depth of nested lists and objects."""
    depth, level = 0, [content]
    while level := [node for node in level if isinstance(node, dict | list)]:
        depth += 1
        level = [child for node in level for child in (node.values() if isinstance(node, dict) else node)]
    return depth
