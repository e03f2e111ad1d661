"""Simulated images: moving, physically plausible, and reproducible in any process.

`rings` is powder diffraction with a beam stop, a breathing lattice and a turning texture. `phantom` is the
shadow of a rotating sample in a parallel beam. Both are Poisson counts. A scene is deterministic: the same
kind, shape, pixel type and seed give the same pixels for an id, with one version of numpy on one machine.

The first eight pixels of an image hold its id instead of counts, one base-256 digit per pixel, lowest first
(see `write_stamp`). No two images of a run are equal, and a misplaced image is identified.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from stddaq.config import DetectorConfig

SceneKind = Literal["rings", "phantom"]
SCENE_KINDS: tuple[SceneKind, ...] = get_args(SceneKind)

# A scene repeats after `n_images`, the largest number within these limits, at least one. The limit of pixels
# keeps the start-up below a few seconds.
MAX_IMAGES = 256
MAX_BYTES = 256 * 2**20
MAX_PIXELS = 32 * 2**20
STAMP_PIXELS = 8

# Expected counts of the brightest pixel: with noise, within the range of the type.
_PEAK_COUNTS = {"u1": 150.0, "u2": 3000.0, "u4": 20000.0, "f4": 500.0}
# Photons; only for detectors with float32 pixels.
_READOUT_NOISE = 0.1
_BLOCK_PIXELS = 2**20

# Returns expected counts of some rows, relative to the brightest pixel, at `phase` of the period (0 to 1).
Render = Callable[[slice, float], np.ndarray]


class Scene:
    """The images of a simulated detector.

    Attributes:
        n_images: number of different images, apart from their stamps; then the scene repeats.
        shape, dtype: (height, width) and pixel type of every image.
    """

    def __init__(self, kind: SceneKind, shape: tuple[int, int], dtype: np.dtype, seed: int = 0) -> None:
        """Compute all images. Costs about 0.1 us per pixel and core, a few seconds at most.

        `dtype` is uint8, uint16, uint32 or float32; `seed` not negative.
        """
        self.shape, self.dtype, self._seed = shape, np.dtype(dtype), seed
        n_pixels = shape[0] * shape[1]
        limits = MAX_BYTES // (n_pixels * self.dtype.itemsize), MAX_PIXELS // n_pixels, MAX_IMAGES
        self.n_images = max(1, min(limits))
        self._render: Render = (_Rings if kind == "rings" else _Phantom)(shape)
        self._images = np.empty((self.n_images, *shape), self.dtype)
        with ThreadPoolExecutor(min(self.n_images, os.cpu_count() or 1)) as pool:
            list(pool.map(self._compute, range(self.n_images)))

    @classmethod
    def of(cls, config: DetectorConfig, kind: SceneKind, seed: int = 0) -> Scene:
        """Return the scene of a detector."""
        return cls(kind, config.image_shape, config.dtype, seed)

    def image(self, image_id: int) -> np.ndarray:
        """Return image `image_id` as a new array (height, width)."""
        pixels = np.empty(self.shape, self.dtype)
        self.write(image_id, pixels)
        return pixels

    def write(self, image_id: int, pixels: np.ndarray) -> None:
        """Fill `pixels`, a C-contiguous array (height, width), with image `image_id`."""
        np.copyto(pixels, self._images[image_id % self.n_images])
        write_stamp(pixels, image_id)

    def _compute(self, index: int) -> None:
        """Fill one image, in blocks of rows that keep the temporary arrays small."""
        random = np.random.default_rng([self._seed, index])
        height, width = self.shape
        rows = max(1, _BLOCK_PIXELS // width)
        peak = _PEAK_COUNTS[self.dtype.str[1:]]
        for first in range(0, height, rows):
            block = slice(first, min(first + rows, height))
            counts = random.poisson(self._render(block, index / self.n_images) * peak)
            if self.dtype.kind == "f":
                noise = random.standard_normal(counts.shape, np.float32) * np.float32(_READOUT_NOISE)
                self._images[index, block] = counts + noise
            else:
                self._images[index, block] = np.minimum(counts, np.iinfo(self.dtype).max)


def write_stamp(pixels: np.ndarray, image_id: int) -> None:
    """Put the id into the first eight pixels of a C-contiguous image, or into all of a smaller one."""
    n = min(STAMP_PIXELS, pixels.size)
    digits = np.frombuffer(image_id.to_bytes(STAMP_PIXELS, "little"), np.uint8)
    pixels.reshape(-1)[:n] = digits[:n]


def read_stamp(pixels: np.ndarray) -> int:
    """Return the id in an image (modulo 256 ** n if it has only n < 8 pixels)."""
    return int.from_bytes(pixels.reshape(-1)[:STAMP_PIXELS].astype(np.uint8).tobytes(), "little")


class _Rings:
    """Debye-Scherrer rings of a face-centred cubic powder on a falling background.

    Radii are in units of half the image's diagonal.
    """

    # (squared index sum, relative intensity) of the reflections 111, 200, 220, 311, 222, 400, 331, 420.
    _REFLECTIONS = ((3, 1.0), (4, 0.5), (8, 0.4), (11, 0.45), (12, 0.15), (16, 0.1), (19, 0.2), (20, 0.18))
    _FIRST_RADIUS = 0.25
    _WIDTH = 0.009
    _STOP_RADIUS = 0.06
    _STOP_ARM = 0.012
    _BINS = 4096

    def __init__(self, shape: tuple[int, int]) -> None:
        height, width = shape
        self._unit = max(1.0, math.hypot(height, width) / 2)
        # The beam is off centre, as in real images.
        self._y = (np.arange(height, dtype=np.float32)[:, None] - 0.52 * height) / self._unit
        self._x = (np.arange(width, dtype=np.float32)[None, :] - 0.49 * width) / self._unit
        self._radii = np.arange(self._BINS) * (1.2 / self._BINS)

    def __call__(self, rows: slice, phase: float) -> np.ndarray:
        y, x = self._y[rows], self._x
        squared = y * y + x * x
        index = np.minimum(np.sqrt(squared) * (self._BINS / 1.2), self._BINS - 1).astype(np.int16)
        rings, background = self._profiles(phase)
        # Preferred orientation: two brighter sides of each ring, turning half a turn per period.
        angle = 2 * math.pi * phase
        squared += np.float32(1e-9)
        texture = ((x * x - y * y) * math.cos(angle) + 2 * x * y * math.sin(angle)) / squared
        texture *= np.float32(0.35)
        texture += np.float32(0.65)
        expected = rings[index] * texture + background[index]
        behind_arm = (np.abs(y) < self._STOP_ARM) & (x < 0)
        expected[behind_arm] = 0.001
        return expected

    def _profiles(self, phase: float) -> tuple[np.ndarray, np.ndarray]:
        """Counts by radius: of the rings and of the background, both behind the beam stop."""
        radii = self._radii
        breathing = 1 + 0.05 * math.sin(2 * math.pi * phase)
        rings = np.zeros_like(radii)
        for number, (index_sum, intensity) in enumerate(self._REFLECTIONS):
            centre = self._FIRST_RADIUS * math.sqrt(index_sum / 3) * breathing
            swing = 1 + 0.25 * math.sin(2 * math.pi * (phase + 0.13 * number))
            rings += 0.6 * intensity * swing * np.exp(-(((radii - centre) / self._WIDTH) ** 2) / 2)
        background = 0.004 + 0.25 * np.exp(-radii * 7)
        stop = np.where(radii < self._STOP_RADIUS, 0.004, 1.0)
        return (rings * stop).astype(np.float32), (background * stop).astype(np.float32)


@dataclass(frozen=True, slots=True)
class _Ellipsoid:
    """Part of the phantom: half-axes along its own x, y and the vertical, centre, turn in the plane.

    Lengths in units of half the image's width (height for the vertical), absorption per unit of length.
    """

    a: float
    b: float
    c: float
    x: float
    y: float
    z: float
    turn: float
    absorption: float


class _Phantom:
    """Projections of ellipsoids turning about the vertical axis in a parallel beam, one turn per period."""

    _PARTS = (
        _Ellipsoid(0.80, 0.62, 0.92, 0.0, 0.0, 0.0, 0.0, 0.55),
        _Ellipsoid(0.72, 0.54, 0.84, 0.0, 0.0, 0.0, 0.0, -0.30),
        _Ellipsoid(0.22, 0.12, 0.40, 0.35, 0.10, -0.20, 0.6, 1.60),
        _Ellipsoid(0.14, 0.20, 0.30, -0.40, -0.12, 0.25, -0.3, 1.20),
        _Ellipsoid(0.10, 0.10, 0.12, 0.05, 0.32, 0.45, 0.0, 3.50),
        _Ellipsoid(0.06, 0.06, 0.08, -0.15, 0.20, -0.55, 0.0, 6.00),
        _Ellipsoid(0.16, 0.16, 0.18, 0.10, -0.25, 0.05, 0.0, -0.25),
    )

    def __init__(self, shape: tuple[int, int]) -> None:
        height, width = shape
        self._z = ((np.arange(height) + 0.5) / height * 2 - 1).astype(np.float32)
        self._s = ((np.arange(width) + 0.5) / width * 2 - 1).astype(np.float32)

    def __call__(self, rows: slice, phase: float) -> np.ndarray:
        z, s = self._z[rows], self._s
        path = np.zeros((len(z), len(s)), np.float32)
        for part in self._PARTS:
            self._add(path, part, z, 2 * math.pi * phase)
        beam = (1 - 0.2 * z**2)[:, None] * (1 - 0.05 * s**2)[None, :]
        return 0.9 * beam * np.exp(-path)

    def _add(self, path: np.ndarray, part: _Ellipsoid, z: np.ndarray, angle: float) -> None:
        """Add the absorption of one ellipsoid to the rays through rows `z`.

        The cross-section at height z is an ellipse; with its half-width w = sqrt(a^2 cos^2 + b^2 sin^2) seen
        at that angle, the chord of the ray at distance t from its centre is 2 a b sqrt(k w^2 - t^2) / w^2,
        where k = 1 - ((z - z0) / c)^2 shrinks the ellipse towards its poles.
        """
        seen = angle - part.turn
        squared_width = (part.a * math.cos(seen)) ** 2 + (part.b * math.sin(seen)) ** 2
        centre = part.x * math.cos(angle) + part.y * math.sin(angle)
        k = 1 - ((z - part.z) / part.c) ** 2
        rows = _extent(k > 0)
        columns = _extent((self._s - centre) ** 2 < squared_width)
        t = (self._s[columns] - centre)[None, :]
        chord = np.sqrt(np.maximum(k[rows, None] * squared_width - t * t, 0), dtype=np.float32)
        path[rows, columns] += chord * (part.absorption * 2 * part.a * part.b / squared_width)


def _extent(inside: np.ndarray) -> slice:
    """Return the slice from the first to the last true value."""
    places = np.flatnonzero(inside)
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)
