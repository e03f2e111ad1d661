"""Drivers of one machine, each with its writers and a source in the test: a detector of several parts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (registers the filters)
import numpy as np
from support.processes.deployment import Service
from support.processes.recording import MakeRig, Rig, images_of, pixels_of

# (height, width) of each part.
SHAPES = (32, 48), (16, 64), (24, 40)


class JoinedDrivers:
    """The rigs of the parts, whose images have different shapes."""

    def __init__(self, parts: list[Rig]) -> None:
        self.parts = parts

    @property
    def urls(self) -> list[str]:
        return [part.url for part in self.parts]

    @property
    def directory(self) -> Path:
        return self.parts[0].directory

    def publish(self, ids: Iterable[int], *parts: int, pause_s: float = 0.002) -> None:
        """Publish images of `parts` (1, 2, ...; default all), in turn."""
        for image_id in ids:
            for part in parts or range(1, len(self.parts) + 1):
                shape = SHAPES[part - 1]
                rig = self.parts[part - 1]
                rig.publish(images_of([image_id], shape=shape, salt=part), pause_s / 2)

    def record(self, *args: object) -> Service:
        """Start `stddaq record` for all."""
        deployment = self.parts[0].deployment
        first, *others = self.urls
        urls = ("--url", first, *(word for url in others for word in ("--with", url)))
        return deployment.run(deployment.stddaq, "record", self.directory, *args, *urls)


def assert_master_shows(drivers: JoinedDrivers, ids: Sequence[int], prefix: str = "file") -> None:
    """Check that the master file over the parts shows these images, pixel by pixel."""
    with h5py.File(drivers.directory / f"{prefix}Master.h5") as file:
        assert np.array_equal(file["/entry/image_id"], ids)  # pyright: ignore[reportArgumentType]
        for part, shape in enumerate(SHAPES[: len(drivers.parts)], 1):
            images = file[f"/entry/part{part}/data"]
            assert isinstance(images, h5py.Dataset)
            assert images.shape == (len(ids), *shape)
            for image, image_id in zip(images[()], ids, strict=True):
                assert np.array_equal(image, pixels_of(image_id, shape, salt=part))


MakeJoinedDrivers = Callable[..., JoinedDrivers]


@contextmanager
def joined_drivers(make_rig: MakeRig) -> Iterator[MakeJoinedDrivers]:
    """Yield a function that makes the drivers; `second` are further keys of the second configuration."""
    # All publish from the process of the test, which knows one ipc directory.
    with tempfile.TemporaryDirectory(prefix="sd-", dir="/tmp") as ipc_directory:

        def make(n_parts: int = 2, writers_of_second: bool = True, **second: Any) -> JoinedDrivers:
            keys = [
                {
                    "image_pixel_height": height,
                    "image_pixel_width": width,
                    "ipc_directory": Path(ipc_directory),
                }
                for height, width in SHAPES[:n_parts]
            ]
            first = make_rig(**keys[0])
            rigs = [first, make_rig(writers=writers_of_second, **keys[1], **second)]
            rigs += [make_rig(**more) for more in keys[2:]]
            for rig in rigs:
                rig.wait_for_subscription()
            return JoinedDrivers(rigs)

        yield make
