"""New configurations, and the examples that the package contains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from stddaq.config.model import DetectorConfig
from stddaq.config.modules import GIGAFROST_MODULES, MODULE_SIZES
from stddaq.errors import ConfigError
from stddaq.text import mismatch

# Packets of a GigaFRoST hold blocks of pixels, so its images have these steps.
_GIGAFROST_STEPS = (24, 4)
_START_UDP_PORT = 50000


@dataclass(frozen=True, slots=True)
class Kind:
    """What is usual for a type of detector.

    Attributes:
        size: (width, height) of its images in pixels.
        bit_depths: possible ones, the usual one first.
    """

    size: tuple[int, int]
    bit_depths: tuple[int, ...]


KINDS: Mapping[str, Kind] = {
    "gigafrost": Kind((2016, 2016), (16,)),
    "eiger": Kind((1028, 512), (16, 8, 32)),
    "jungfrau-raw": Kind((1024, 1024), (16,)),
    "jungfrau-converted": Kind((1024, 1024), (16,)),
    "pco": Kind((2560, 2160), (16,)),
}


def new_configuration(
    name: str, detector: str, size: tuple[int, int], bit_depth: int, n_writers: int, roots: list[str]
) -> dict[str, Any]:
    """Return the content of a configuration file. `size` is (width, height). Raise `ConfigError`.

    Modules of an Eiger or Jungfrau are a regular grid, the gaps between them as wide as the size allows.
    """
    width, height = size
    if detector == "gigafrost" and (width % _GIGAFROST_STEPS[0] or height % _GIGAFROST_STEPS[1]):
        expected = "a width that is a multiple of {} and a height that is a multiple of {}".format(
            *_GIGAFROST_STEPS
        )
        raise ConfigError(mismatch("size", f"{expected} for gigafrost", f"{width}x{height}"))
    positions = _grid(detector, width, height) if detector in MODULE_SIZES else []
    content: dict[str, Any] = {
        "detector_name": name,
        "detector_type": detector,
        "n_modules": len(positions) or (GIGAFROST_MODULES if detector == "gigafrost" else 1),
        "bit_depth": bit_depth,
        "image_pixel_height": height,
        "image_pixel_width": width,
        "start_udp_port": _START_UDP_PORT,
        "module_positions": {str(module): position for module, position in enumerate(positions)},
        "log_level": "info",
        "stats_collection_period": 10,
        "number_of_writers": n_writers,
    }
    if roots:
        content["allowed_roots"] = roots
    DetectorConfig.parse(content)
    return content


def _grid(detector: str, width: int, height: int) -> list[list[int]]:
    """Return the position of each module, row by row from the first pixel."""
    module_height, module_width = MODULE_SIZES[detector]
    if width < module_width or height < module_height:
        expected = f"at least one module of {detector}, {module_width}x{module_height}"
        raise ConfigError(mismatch("size", expected, f"{width}x{height}"))
    return [
        [x, y, x + module_width - 1, y + module_height - 1]
        for y in _edges(height, module_height)
        for x in _edges(width, module_width)
    ]


def _edges(length: int, module: int) -> list[int]:
    """Return where modules begin: the first at 0, the last at the end."""
    number = length // module
    if number == 1:
        return [0]
    return [round(i * (length - module) / (number - 1)) for i in range(number)]


def example_names() -> list[str]:
    """Return the names of the example configurations."""
    return sorted(path.name.removesuffix(".json") for path in _examples().iterdir() if path.name[0] != "_")


def example(name: str) -> str:
    """Return the text of an example. Raise `ConfigError`."""
    if name not in example_names():
        raise ConfigError(mismatch("example", f"one of {', '.join(example_names())}", repr(name)))
    return (_examples() / f"{name}.json").read_text()


def _examples() -> Any:
    return resources.files("stddaq.config") / "examples"
