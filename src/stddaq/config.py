"""The detector configuration: one JSON file, the start-up argument of every service.

`DetectorConfig.load` reads, validates and freezes it. Keys of other services are kept and tolerated;
a mistake in one of ours is a `ConfigError` with one line that names the file, every offending key, what
was found and what is allowed. The keys are those of the std_daq configuration file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from stddaq.errors import ConfigError, shown, shown_key

DetectorType = Literal["gigafrost", "eiger", "pco", "jungfrau-raw", "jungfrau-converted"]
LogLevel = Literal["debug", "info", "warning", "error", "off"]
# How images go to writers: `image_id % number_of_writers`, or in turn as they arrive. The second keeps the
# writers evenly loaded when the ids of a stream share a factor with the number of writers.
ImageDivision = Literal["image_id", "arrival"]

DEFAULT_BLOCK_SIZE = 16 * 2**20
MIN_SLOTS = 1000
# HDF5 chunks, and so images and blocks, are smaller than 4 GiB.
MAX_IMAGE_BYTES = 2**32 - 1
# 64 TiB, half of what a process can address.
MAX_RAM_BUFFER_GB = 2**16
MAX_DEPTH = 100
MISTAKES_SHOWN = 10

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
# The upper limits are those of the C++ services' int; they also keep arithmetic with the values exact.
Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
NotNegative = Annotated[int, Field(ge=0, le=2**31 - 1)]


class DetectorConfig(BaseModel):
    """One detector and the services around it; immutable. Sizes are in pixels unless the name says bytes."""

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
    live_stream_configs: dict[str, dict[str, Any]] = Field(default_factory=dict)
    switch_user_active: bool = False
    delay_filter_timeout: Positive = 10
    max_number_of_forwarders_spawned: Positive = 8
    use_all_forwarders: bool = False
    sender_sends_full_images: bool = False
    module_sync_queue_size: Positive = 50

    # Ours: not in the configuration of the C++ services, which tolerate it.
    image_division: ImageDivision = "image_id"

    @classmethod
    def load(cls, path: str | Path) -> DetectorConfig:
        """Read and validate the JSON file at `path`. Raises `ConfigError`, a message of one line."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")  # Editors of Windows put a mark in front.
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from error
        try:
            content = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}: is not JSON: {error.msg}, line {error.lineno}") from error
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
        except ValueError as error:
            raise ConfigError(f"{path}: is not usable JSON: a number of thousands of digits") from error
        except RecursionError as error:
            raise ConfigError(f"{path}: is not usable JSON: nested too deeply") from error
        # Where Python gives up depends on who calls; a service must not refuse what another accepted.
        if _depth(content) > MAX_DEPTH:
            raise ConfigError(
                f"{path}: is not usable JSON: nested too deeply, allowed are {MAX_DEPTH} levels"
            )
        return cls.parse(content, where=str(path))

    @classmethod
    def parse(cls, content: object, where: str = "configuration") -> DetectorConfig:
        """Validate `content`, the decoded JSON. `where` opens the message of a `ConfigError`."""
        if not isinstance(content, dict):
            raise ConfigError(
                f"{where}: found {shown(content)}, allowed is a JSON object of configuration keys"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            mistakes = [_explain(e) for e in error.errors()[:MISTAKES_SHOWN]]
            if error.error_count() > MISTAKES_SHOWN:
                mistakes.append(f"and {error.error_count() - MISTAKES_SHOWN} more mistakes")
            raise ConfigError(f"{where}: {'; '.join(mistakes)}") from error

    @field_validator("detector_name")
    @classmethod
    def _name_is_usable(cls, name: str) -> str:
        # It becomes part of file names in /dev/shm and /tmp, and an HDF5 group.
        if not _NAME.fullmatch(name) or len(name) > 64:
            raise ValueError("1 to 64 letters, digits, '.', '_' or '-', not starting with '.' or '-'")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> DetectorConfig:
        if self.detector_type == "gigafrost" and self.bit_depth != 16:
            raise ValueError(
                f"bit_depth: found {self.bit_depth}, allowed for gigafrost is 16 (2 bytes per pixel)"
            )
        if self.image_bytes > MAX_IMAGE_BYTES:
            raise ValueError(
                f"image_pixel_height x image_pixel_width: found an image of {self.image_bytes} bytes, "
                f"allowed are up to {MAX_IMAGE_BYTES}"
            )
        for index, position in self.module_positions.items():
            self._check_position(index, position)
        return self

    def _check_position(self, index: str, position: list[int]) -> None:
        if not (index.isascii() and index.isdecimal()):
            raise ValueError(
                f"module_positions: found key {shown(index)}, allowed is the decimal index of a module"
            )
        where = f"module_positions[{shown(index)}]"
        if len(position) != 4:
            raise ValueError(f"{where}: found {shown(position)}, allowed are exactly 4 ints [x0, y0, x1, y1]")
        width, height = self.image_pixel_width, self.image_pixel_height
        limits = (width, height, width, height)
        if not all(0 <= value < limit for value, limit in zip(position, limits, strict=True)):
            raise ValueError(
                f"{where}: found {shown(position)}, allowed is a place inside the image: "
                f"x from 0 to {width - 1}, y from 0 to {height - 1}"
            )

    @property
    def dtype(self) -> np.dtype:
        """Type of one pixel, little-endian."""
        if self.detector_type == "jungfrau-converted":
            return np.dtype("<f4")
        return np.dtype(f"<u{self.bit_depth // 8}")

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.image_pixel_height, self.image_pixel_width)

    @property
    def image_bytes(self) -> int:
        """Bytes of one uncompressed image, which is one slot of the ring buffer."""
        return self.image_pixel_height * self.image_pixel_width * self.dtype.itemsize

    @property
    def n_slots(self) -> int:
        """Slots of each ring buffer of this detector."""
        if self.ram_buffer_gb is None:
            return MIN_SLOTS
        return max(MIN_SLOTS, self.ram_buffer_gb * 2**30 // self.image_bytes)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two values for one key, JSON readers silently take either; nobody can mean both."""
    content = dict(pairs)
    if len(content) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ConfigError(f"{shown_key(twice)}: found more than once in one object, allowed is once")
    return content


def _no_constant(name: str) -> NoReturn:
    raise ConfigError(f"found {name}, allowed are the numbers of JSON")


def _explain(error: ErrorDetails) -> str:
    """One mistake in words: key, what was found, what is allowed."""
    key = ".".join(shown_key(str(part)) for part in error["loc"])
    if error["type"] == "missing":
        return f"{key}: missing, it is mandatory"
    message = error["msg"].removeprefix("Value error, ")
    if not key:  # A mistake of several keys together says itself what was found.
        return message
    message = (
        message.removeprefix("Input should be ")
        .replace("a valid ", "a ")
        .replace("a integer", "an integer")
        .replace("a dictionary", "an object")
    )
    return f"{key}: found {shown(error['input'])}, allowed is {message}"


def _depth(content: object) -> int:
    """How many levels of lists and objects there are, one within the other."""
    depth, level = 0, [content]
    while level := [node for node in level if isinstance(node, dict | list)]:
        depth += 1
        level = [child for node in level for child in (node.values() if isinstance(node, dict) else node)]
    return depth
