"""Tomography of a simulated beamline: record darks, flats and projections, read them from tiled, and plot.

Start the services and a tiled catalog that may read the files. This program is the detector itself:

    stddaq up services/config/simulated.json -m
    mkdir -p data
    tiled serve catalog --temp --read data --api-key secret

Then:

    python examples/tomography.py services/config/simulated.json data http://127.0.0.1:8000 tomography.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from bluesky import RunEngine
from bluesky_tiled_plugins import TiledWriter
from ophyd import Signal
from ophyd.sim import SynAxis
from tiled.client import from_uri

from stddaq.client import DEFAULT_URL
from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq_ophyd import StdDaqDetector
from stddaq_ophyd.plans import tomography


class Beamline:
    """Shutter, sample stage, rotation, and a detector that records the shadow of some rods in a beam."""

    # Radius, x and y of each rod in units of half the width, and its absorption.
    RODS = ((0.7, 0.0, 0.0, 0.8), (0.15, 0.3, 0.2, 3.0), (0.1, -0.35, 0.1, 5.0), (0.2, 0.0, -0.4, -0.8))
    OFFSET, BEAM = 100.0, 4000.0

    def __init__(self, source: ImagePublisher, shape: tuple[int, int]) -> None:
        # bluesky's annotations do not know ophyd's.
        self.shutter: Any = Signal(name="shutter", value=0)
        self.sample: Any = SynAxis(name="sample")
        self.rotation: Any = SynAxis(name="rotation")
        self._source, self._shape = source, shape
        self._random = np.random.default_rng(1)

    def expose(self) -> None:
        """Take one image. It is the software trigger."""
        height, width = self._shape
        beam = np.broadcast_to(np.cos(np.linspace(-0.8, 0.8, height))[:, None], self._shape) * self.BEAM
        light = beam * np.exp(-self._path(width)) if self.sample.position == 0 else beam
        expected = self.OFFSET + (light if self.shutter.get() else 0)
        image = np.broadcast_to(self._random.poisson(expected, self._shape), self._shape).astype("<u2")
        self._source.publish(self._source.n_published, image)

    def _path(self, width: int) -> np.ndarray:
        """Return the absorption along the ray through each column (width,)."""
        columns, angle = np.linspace(-1, 1, width), np.deg2rad(self.rotation.position)
        path = np.zeros(width)
        for radius, x, y, absorption in self.RODS:
            distance = columns - (x * np.cos(angle) + y * np.sin(angle))
            path += absorption * 2 * np.sqrt(np.maximum(radius**2 - distance**2, 0))
        return path


def reconstruct(sinogram: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Return a slice (width, width) by filtered back projection of (angles, width), angles in degrees."""
    n_angles, width = sinogram.shape
    ramp = np.abs(np.fft.fftfreq(2 * width))
    filtered = np.fft.ifft(np.fft.fft(sinogram, 2 * width, axis=1) * ramp, axis=1).real[:, :width]
    places = np.arange(width) - (width - 1) / 2
    x, y = np.meshgrid(places, places)
    result = np.zeros((width, width))
    for row, angle in zip(filtered, np.deg2rad(angles), strict=True):
        result += np.interp(x * np.cos(angle) + y * np.sin(angle), places, row)
    return result * np.pi / n_angles * width / 2


def plot(run: Any, path: Path) -> None:
    """Correct the projections of a run, reconstruct the middle slice, and plot."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    projections, angles = run["primary"]["det_image"], run["primary"]["rotation"].read()
    dark, flat = (run[stream]["det_image"].read().mean(axis=(0, 1)) for stream in ("darks", "flats"))
    middle = dark.shape[0] // 2
    # Tiled sends only the requested row of each projection.
    rows = projections[:, 0, middle, :]
    sinogram = -np.log(np.maximum(rows - dark[middle], 1) / (flat - dark)[middle])
    first = (projections[0, 0] - dark) / (flat - dark)
    figure, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    for axis, pixels, title in (
        (axes[0], first, "projection at 0 degrees"),
        (axes[1], sinogram, "sinogram of the middle row"),
        (axes[2], reconstruct(sinogram, angles), "slice"),
    ):
        axis.imshow(pixels, aspect="auto", cmap="gray")
        axis.set_title(title)
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="A tomography scan, read back from tiled, and plotted.")
    parser.add_argument("config", help="the configuration that the services run with")
    parser.add_argument("directory", type=Path, help="existing directory for the files")
    parser.add_argument("tiled", help="url of the tiled server")
    parser.add_argument("plot", type=Path, help="the plot to make")
    parser.add_argument("--api-key", default="secret", help="API key of the tiled server")
    parser.add_argument("--url", default=DEFAULT_URL, help="the driver")
    parser.add_argument("-n", type=int, default=90, help="projections")
    args = parser.parse_args()

    config = DetectorConfig.load(args.config)
    client = from_uri(args.tiled, api_key=args.api_key)
    with ImagePublisher(config) as source:
        beamline = Beamline(source, config.image_shape)
        source.wait_for_subscribers(1, timeout=10)
        det = StdDaqDetector(args.url, name="det", paths=args.directory, trigger=beamline.expose)
        RE = RunEngine()  # noqa: N806 (bluesky's own name for it)
        # If the server exits, the scan continues, and the documents are saved in the directory.
        RE.subscribe(TiledWriter(client, backup_directory=str(args.directory)))
        uids = RE(
            tomography(
                *([det], beamline.rotation, 0, 180, args.n),
                shutter=beamline.shutter,
                sample=beamline.sample,
                sample_in=0,
                sample_out=25,
                n_darks=5,
                n_flats=5,
            )
        )
    plot(client[uids[0]], args.plot)  # pyright: ignore[reportIndexIssue]
    print(f"{args.plot}: {args.n} projections")


if __name__ == "__main__":
    main()
