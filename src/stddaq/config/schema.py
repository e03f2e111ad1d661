"""The pydantic models of a configuration: they validate it, and describe it as a JSON schema.

They are made of the fields of `DetectorConfig` and `LiveStreamSetting`, which name the types of this module.
Only a process that validates imports it.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Annotated, Any, TypeVar, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    model_validator,
)

from stddaq.config.live_streams import NO_KEYS, LiveStreamSetting
from stddaq.config.model import KEYS, PIXEL_BYTES, DetectorConfig, etag_of, pixel_type_of
from stddaq.errors import ConfigError
from stddaq.text import mismatch, shown
from stddaq.validation import explain

Model = TypeVar("Model", bound=BaseModel)

# HDF5 chunks, and so images and blocks, are smaller than 4 GiB.
MAX_IMAGE_BYTES = 2**32 - 1
# 64 TiB, half of the address space of a process.
MAX_RAM_BUFFER_GB = 2**16
MISTAKES_SHOWN = 10
MAX_IMAGES = 2**31 - 1
MIN_FREQUENCY_HZ, MAX_FREQUENCY_HZ = 1e-5, 1e6

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def _usable_name(name: str) -> str:
    # It becomes part of file names in /dev/shm and /tmp, and an HDF5 group.
    if not _NAME.fullmatch(name) or len(name) > 64:
        raise ValueError("1 to 64 letters, digits, '.', '_' or '-', not starting with '.' or '-'")
    return name


DetectorName = Annotated[str, AfterValidator(_usable_name)]
# The upper limits are those of the C++ services' int; they also keep arithmetic with the values exact.
Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
NotNegative = Annotated[int, Field(ge=0, le=2**31 - 1)]
Port = Annotated[int, Field(ge=0, le=65535)]
RingSize = Annotated[int, Field(ge=0, le=MAX_RAM_BUFFER_GB)]
BlockSize = Annotated[int, Field(ge=1, le=MAX_IMAGE_BYTES)]
Uid = Annotated[int, Field(ge=0, lt=2**32)]
AbsolutePath = Annotated[str, Field(pattern=r"^/[^\x00]*$")]
ScanIndex = Annotated[int, Field(ge=0, le=MAX_IMAGES)]
ChannelName = Annotated[str, Field(pattern=r"^[!-~]{1,256}$")]

_ALLOWED = {
    "forward": '"config": [] for forward',
    "batch": '"config": [Y, N] for batch, integers with 1 <= Y <= N: Y consecutive images of every N',
    "periodic": (
        '"config": [Y, F] for periodic, Y an integer of 1 or more, F a number from 1e-5 to 1e6: '
        "Y consecutive images, F times a second"
    ),
}


class _Keys(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="allow")


class _LiveStreamKeys(_Keys):
    @model_validator(mode="after")
    def _possible(self) -> _LiveStreamKeys:
        mistake = _impossible(self.__dict__)
        if mistake:
            raise ValueError(mistake)
        return self


class _DetectorKeys(_Keys):
    @model_validator(mode="after")
    def _consistent(self) -> _DetectorKeys:
        mistakes = _inconsistencies(self.__dict__)
        if mistakes:
            raise ValueError("\n".join(mistakes))
        return self


def _model(declared: type, base: type[Model], nested: dict[str, Any]) -> type[Model]:
    """Return the model of a dataclass. `nested`: the types of fields that have a model of their own."""
    types = get_type_hints(declared, localns=globals(), include_extras=True) | nested
    definitions: dict[str, Any] = {}
    for field in fields(declared):
        if field.name not in NO_KEYS:
            default = ... if field.default is MISSING else field.default
            if field.default_factory is not MISSING:
                default = Field(default_factory=field.default_factory)
            definitions[field.name] = (types[field.name], default)
    return create_model(declared.__name__, __base__=base, __doc__=declared.__doc__, **definitions)


LiveStreamModel = _model(LiveStreamSetting, _LiveStreamKeys, {})


@functools.cache
def detector_model(*, with_nexus: bool = True) -> type[BaseModel]:
    """Return the model of a configuration, without `with_nexus` of one whose `nexus` is null."""
    nexus: Any = None
    if with_nexus:
        # Not at the top: its models take a sixth of the start of a service.
        from stddaq.run_metadata import RunMetadata

        nexus = RunMetadata | None
    streams = dict[str, LiveStreamModel]
    return _model(DetectorConfig, _DetectorKeys, {"live_stream_configs": streams, "nexus": nexus})


def validated(content: object, where: str, text: bytes) -> DetectorConfig:
    """Return the configuration of `content`; see `DetectorConfig.parse`."""
    if not isinstance(content, dict):
        mistake = f"expected a JSON object of configuration keys, got {shown(content)}"
        raise ConfigError(f"{where}: {mistake}", [mistake])
    try:
        model = detector_model(with_nexus=content.get("nexus") is not None).model_validate(content)
    except ValidationError as error:
        mistakes = _mistakes(error, content)
        reported = mistakes[:MISTAKES_SHOWN]
        if len(mistakes) > MISTAKES_SHOWN:
            reported.append(f"and {len(mistakes) - MISTAKES_SHOWN} more mistakes")
        raise ConfigError(f"{where}: {'; '.join(reported)}", mistakes) from error
    values: dict[str, Any] = {key: getattr(model, key) for key in KEYS}
    values["live_stream_configs"] = {
        address: _setting_of(setting) for address, setting in values["live_stream_configs"].items()
    }
    if values["nexus"] is not None:
        values["nexus"] = values["nexus"].model_dump(mode="json", exclude_unset=True)
    etag = etag_of(text) if text else ""
    return DetectorConfig(**values, others=model.model_extra or {}, text=text, etag=etag)


def live_stream_setting(content: object) -> LiveStreamSetting:
    """Validate the setting of a live stream, which is decoded JSON. Raise `ValidationError`."""
    return _setting_of(LiveStreamModel.model_validate(content))


def _setting_of(model: BaseModel) -> LiveStreamSetting:
    values = {name: getattr(model, name) for name in type(model).model_fields}
    return LiveStreamSetting(**values, others=model.model_extra or {})


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
        image_bytes = height * width * PIXEL_BYTES[pixel_type_of(kind, depth)]
        if image_bytes > MAX_IMAGE_BYTES:
            mistakes.append(
                mismatch(
                    "image_pixel_height x image_pixel_width",
                    f"an image of at most {MAX_IMAGE_BYTES} bytes",
                    str(image_bytes),
                )
            )
    nexus: Any = values.get("nexus")
    # It is no model yet if other keys are wrong.
    mask_file = None if nexus is None or isinstance(nexus, dict) else nexus.detector.mask_file
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


def _impossible(setting: Mapping[str, Any]) -> str:
    """Return what would be possible for the setting of a live stream; empty if this is."""
    kind, numbers, header = setting["type"], setting["config"], setting["header"]
    if kind == "forward":
        fits = not numbers
    elif kind == "batch":
        fits = len(numbers) == 2 and all(map(_is_count, numbers)) and numbers[0] <= numbers[1]
    else:
        fits = len(numbers) == 2 and _is_count(numbers[0]) and _is_frequency(numbers[1])
    if not fits:
        return _ALLOWED[kind]
    return '"header": a list without repetition' if len(set(header)) < len(header) else ""


def _is_count(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_IMAGES


def _is_frequency(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and MIN_FREQUENCY_HZ <= value <= MAX_FREQUENCY_HZ
