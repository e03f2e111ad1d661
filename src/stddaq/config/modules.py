"""Where the modules of a detector lie in its image, and which positions a detector cannot have.

GigaFRoST modules have fixed places. Eiger and Jungfrau modules lie where `module_positions` says: inclusive
corners `[x0, y0, x1, y1]`; an Eiger module with y1 < y0 is upside down.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stddaq.config.model import DetectorConfig
from stddaq.errors import ConfigError
from stddaq.text import mismatch, shown, shown_key

# Rows and columns of a module in the image. Two gap columns, which the frame does not have, lie between the
# chips of an Eiger module.
EIGER_CHIP_COLUMNS, EIGER_GAP_COLUMNS = 256, 2
EIGER_FRAME_SIZE = (256, 2 * EIGER_CHIP_COLUMNS)
EIGER_SIZE = (256, 2 * EIGER_CHIP_COLUMNS + EIGER_GAP_COLUMNS)
JUNGFRAU_SIZE = (512, 1024)
# Receivers 8 to 15 of a GigaFRoST are a second set of links to the places of 0 to 7.
GIGAFROST_MODULES, GIGAFROST_RECEIVERS = 8, 16
MODULE_SIZES: Mapping[str, tuple[int, int]] = {
    "eiger": EIGER_SIZE,
    "jungfrau-raw": JUNGFRAU_SIZE,
    "jungfrau-converted": JUNGFRAU_SIZE,
}


@dataclass(frozen=True, slots=True)
class Rectangle:
    """Pixels of an image: `top <= y < bottom`, `left <= x < right`."""

    top: int
    bottom: int
    left: int
    right: int

    def overlaps(self, other: Rectangle) -> bool:
        """Return whether a pixel belongs to both."""
        return (
            self.top < other.bottom
            and other.top < self.bottom
            and self.left < other.right
            and other.left < self.right
        )


@dataclass(frozen=True, slots=True)
class ModulePlace:
    """The place of an Eiger or Jungfrau module. `is_upside_down`: its first row is the lowest one."""

    area: Rectangle
    is_upside_down: bool


def module_places(config: DetectorConfig) -> dict[int, ModulePlace]:
    """Return the place of each module of `module_positions`. Raise `ConfigError` for impossible ones."""
    if mistakes := position_mistakes(config):
        raise ConfigError("; ".join(mistakes), mistakes)
    return {int(index): _place(position) for index, position in config.module_positions.items()}


def expected_modules(config: DetectorConfig) -> list[int]:
    """Return the modules that make one image, sorted."""
    keys = {int(index) % config.n_modules for index in config.module_positions}
    return sorted(keys) or list(range(config.n_modules))


def receiver_modules(config: DetectorConfig, modules: Sequence[int], n_link_sets: int) -> list[int]:
    """Return the `module_id` of each receiver of a detector: the modules of an image for each set of links.

    Raise `ConfigError` if the detector has only one set.
    """
    if n_link_sets > 1 and config.detector_type != "gigafrost":
        raise ConfigError(mismatch("--link-sets", f"1 for {config.detector_type}", f"{n_link_sets}"))
    return [module + GIGAFROST_MODULES * link_set for link_set in range(n_link_sets) for module in modules]


def position_mistakes(config: DetectorConfig) -> list[str]:
    """Return what is wrong with `n_modules` and `module_positions` for a detector that sends packets."""
    kind, positions = config.detector_type, config.module_positions
    mistakes = []
    if kind == "gigafrost" and config.n_modules != GIGAFROST_MODULES:
        mistakes.append(mismatch("n_modules", f"{GIGAFROST_MODULES} for gigafrost", f"{config.n_modules}"))
    highest = max((int(index) for index in positions), default=-1)
    if highest >= config.n_modules:
        mistakes.append(
            mismatch(
                f"module_positions[{shown(str(highest))}]",
                f"an index below n_modules, {config.n_modules}",
                f"{highest}",
            )
        )
    if kind not in MODULE_SIZES:
        return mistakes
    # Keys are text: "1" and "01" are the same module.
    counts = Counter(int(index) for index in positions)
    mistakes += [
        mismatch(f"module_positions[{index}]", "one position of the module", f"{n}")
        for index, n in counts.items()
        if n > 1
    ]
    if not positions:
        mistakes.append(
            mismatch("module_positions", f"the position of each module of a {kind} detector", "none")
        )
    mistakes += [
        mistake for index, position in positions.items() if (mistake := _misfit(kind, index, position))
    ]
    return mistakes or _overlaps(positions)


def _misfit(kind: str, index: str, position: list[int]) -> str | None:
    """Return why a position does not fit the modules of a detector; None if it does."""
    height, width = MODULE_SIZES[kind]
    x0, y0, x1, y1 = position
    may_be_turned = kind == "eiger"
    rows = abs(y1 - y0) if may_be_turned else y1 - y0
    if x1 - x0 == width - 1 and rows == height - 1:
        return None
    y1_allowed = f"y0 + {height - 1}" + (f" or y0 - {height - 1}" if may_be_turned else "")
    expected = f"x1 = x0 + {width - 1} and y1 = {y1_allowed} for {kind}"
    return mismatch(f"module_positions[{shown_key(index)}]", expected, shown(position))


def _overlaps(positions: Mapping[str, list[int]]) -> list[str]:
    areas = {index: _place(position).area for index, position in positions.items()}
    # By the upper edge, so that each one is compared only with those that it can reach.
    order = sorted(areas, key=lambda index: areas[index].top)
    mistakes = []
    for number, index in enumerate(order):
        for other in order[number + 1 :]:
            if areas[other].top >= areas[index].bottom:
                break
            if areas[index].overlaps(areas[other]):
                where = f"module_positions[{shown_key(other)}]"
                found = f"{shown(positions[other])}, which overlaps that of module {shown_key(index)}"
                mistakes.append(mismatch(where, "a place of its own", found))
    return mistakes


def _place(position: list[int]) -> ModulePlace:
    x0, y0, x1, y1 = position
    return ModulePlace(Rectangle(min(y0, y1), max(y0, y1) + 1, x0, x1 + 1), is_upside_down=y1 < y0)


def gaps(config: DetectorConfig) -> list[Rectangle]:
    """Return the pixels that belong to no module, as rectangles that do not overlap."""
    if config.detector_type not in MODULE_SIZES:
        return []
    covered = []
    for place in module_places(config).values():
        area = place.area
        if config.detector_type == "eiger":
            chip = area.left + EIGER_CHIP_COLUMNS
            covered.append(Rectangle(area.top, area.bottom, area.left, chip))
            covered.append(Rectangle(area.top, area.bottom, chip + EIGER_GAP_COLUMNS, area.right))
        else:
            covered.append(area)
    height, width = config.image_shape
    edges = sorted({0, height, *(edge for area in covered for edge in (area.top, area.bottom))})
    found: list[Rectangle] = []
    for top, bottom in itertools.pairwise(edges):
        left = 0
        for area in sorted((a for a in covered if a.top <= top < a.bottom), key=lambda a: a.left):
            if area.left > left:
                found.append(Rectangle(top, bottom, left, area.left))
            left = area.right
        if left < width:
            found.append(Rectangle(top, bottom, left, width))
    return found
