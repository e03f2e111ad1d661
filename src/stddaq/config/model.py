"""The detector configuration: one JSON file, the first argument of every service.

`DetectorConfig.load` reads, validates and freezes it. Unknown keys belong to other services and are kept.
A wrong value is a `ConfigError`: one line that names the file, every wrong key, what was expected and what
was found. The keys are those of the std_daq configuration file.

Keys, types and defaults are declared here. `stddaq.config.schema` makes a pydantic model of them, and is
imported only to validate: pydantic takes 11 MB of memory, so services validate in a child process.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from stddaq.config.live_streams import NO_KEYS, LiveStreamSetting
from stddaq.errors import ConfigError
from stddaq.text import mismatch, nesting_depth, shown_key

if TYPE_CHECKING:
    import numpy as np

    from stddaq.config.schema import (
        AbsolutePath,
        BlockSize,
        DetectorName,
        NotNegative,
        Port,
        Positive,
        RingSize,
        Uid,
    )

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
MAX_DEPTH = 100

_UNSIGNED: dict[int, PixelType] = {8: "uint8", 16: "uint16", 32: "uint32"}
PIXEL_BYTES: Mapping[PixelType, int] = {"uint8": 1, "uint16": 2, "uint32": 4, "float32": 4}

# Keys that decide who may do what: only an edit of the file changes them.
RIGHTS = ("services", "switch_user_active", "allowed_roots", "trusted_uids")


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorConfig:
    """One detector and its services; immutable. Sizes are in pixels unless the name says bytes."""

    detector_name: DetectorName
    detector_type: DetectorType
    n_modules: Positive
    bit_depth: Literal[8, 16, 32]
    image_pixel_height: Positive
    image_pixel_width: Positive
    start_udp_port: Port
    module_positions: dict[str, list[int]]

    log_level: LogLevel = "info"
    stats_collection_period: Positive = 10
    ram_buffer_gb: RingSize | None = None
    number_of_writers: NotNegative = 0
    gpfs_block_size: BlockSize = DEFAULT_BLOCK_SIZE
    live_stream_configs: dict[str, LiveStreamSetting] = field(default_factory=dict)
    switch_user_active: bool = False
    delay_filter_timeout: Positive = 10
    max_number_of_forwarders_spawned: Positive = 8
    use_all_forwarders: bool = False
    sender_sends_full_images: bool = False
    module_sync_queue_size: Positive = 50

    # Keys of stddaq alone; the C++ services tolerate them.
    allowed_roots: list[AbsolutePath] = field(default_factory=list)
    trusted_uids: list[Uid] = field(default_factory=list)
    image_checksums: bool = False
    image_division: ImageDivision = "image_id"
    statistics_format: StatisticsFormat = "std_daq"
    services: list[str] = field(default_factory=list)
    # What is set of the keys of `RunMetadata`, as JSON.
    nexus: dict[str, Any] | None = None

    # The keys of other services; the content of the file, and what identifies it, both empty without a file.
    others: dict[str, Any] = field(default_factory=dict)
    text: bytes = field(default=b"", repr=False, compare=False)
    etag: str = field(default="", compare=False)

    @classmethod
    def load(cls, path: str | Path) -> DetectorConfig:
        """Read and validate the JSON file at `path`. Raise `ConfigError` with a message of one line."""
        return cls.of_text(read_file(Path(path)), str(path))

    @classmethod
    def of_text(cls, text: bytes, where: str) -> DetectorConfig:
        """Validate the content of the file `where`. Raise `ConfigError` as `load` does."""
        return cls.parse(_decoded(where, text), where, text)

    @classmethod
    def parse(cls, content: object, where: str = "configuration", text: bytes = b"") -> DetectorConfig:
        """Validate `content`, which is decoded JSON, of a file with this text.

        `where` opens the message of a `ConfigError`.
        """
        # Not at the top; see the module.
        from stddaq.config.schema import validated

        return validated(content, where, text)

    def as_json(self) -> dict[str, Any]:
        """Return the content of a file with this configuration: all keys, also those of other services."""
        content: dict[str, Any] = {key: getattr(self, key) for key in KEYS}
        content["live_stream_configs"] = {
            address: setting.as_json() for address, setting in self.live_stream_configs.items()
        }
        return content | self.others

    @property
    def dtype(self) -> np.dtype:
        """The type of one pixel, little-endian."""
        # Not at the top: services that pass pixels on as bytes save the 6 MB of memory that NumPy takes.
        import numpy as np

        return np.dtype(self.pixel_type).newbyteorder("<")

    @property
    def pixel_type(self) -> PixelType:
        """The name of `dtype`."""
        return pixel_type_of(self.detector_type, self.bit_depth)

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.image_pixel_height, self.image_pixel_width)

    @property
    def image_bytes(self) -> int:
        """The bytes of one uncompressed image, which is one slot of the ring buffer."""
        return self.image_pixel_height * self.image_pixel_width * PIXEL_BYTES[self.pixel_type]

    @property
    def n_slots(self) -> int:
        """The number of slots of each ring buffer of this detector."""
        if self.ram_buffer_gb is None:
            return MIN_SLOTS
        return max(MIN_SLOTS, self.ram_buffer_gb * 2**30 // self.image_bytes)


# The keys of the file that stddaq knows, and the defaults of those that are not mandatory.
KEYS = tuple(key.name for key in fields(DetectorConfig) if key.name not in NO_KEYS)
DEFAULTS: Mapping[str, Any] = {
    key.name: key.default if key.default_factory is MISSING else key.default_factory()
    for key in fields(DetectorConfig)
    if key.name in KEYS and (key.default, key.default_factory) != (MISSING, MISSING)
}


def etag_of(text: bytes) -> str:
    """Return what identifies the content of a configuration file."""
    # Not at the top: services leave it to the process that validates, and save the 0.5 MB of OpenSSL.
    import hashlib

    return hashlib.sha256(text).hexdigest()[:32]


def read_json(path: Path) -> Any:
    """Decode the JSON of a file. Raise `ConfigError`, which names it."""
    return _decoded(str(path), read_file(path))


def read_file(path: Path) -> bytes:
    """Return the content of a configuration file. Raise `ConfigError`, which names it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def _decoded(where: str, text: bytes) -> Any:
    try:
        return parse_json(text)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}", error.mistakes) from error


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
    if nesting_depth(content) > MAX_DEPTH:
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


def pixel_type_of(detector_type: str, bit_depth: int) -> PixelType:
    """Return the name of the type of one pixel."""
    return "float32" if detector_type == "jungfrau-converted" else _UNSIGNED[bit_depth]
