"""Compare every pixel that `stddaq demo` has recorded with what was simulated, and draw some images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stddaq.cli.demo_services import PREFIX, DemoError
from stddaq.text import mismatch

if TYPE_CHECKING:
    import h5py
    import numpy as np

    from stddaq.config import DetectorConfig

N_SHOWN = 7


@dataclass(frozen=True, slots=True)
class Checked:
    """What was read back and compared."""

    n_images: int
    n_pixels: int
    shown: list[tuple[str, np.ndarray]]


def check_pixels(
    master: Path, config: DetectorConfig, account: dict[str, Any], asked: int, max_value: int | None
) -> Checked:
    """Compare every pixel of the master file with the simulator's scene. Raise `DemoError`.

    `max_value`: of the detector, if it is less than that of the pixel type.
    """
    import h5py
    import numpy as np

    from stddaq.sources.simulated.scenes import Scene

    scene = Scene.of(config, "rings")
    with h5py.File(master) as file:
        images = _dataset(file, "/entry/data/data")
        rows = _dataset(file, "/entry/data/metadata")[()]
        detector_ids = _dataset(file, "/entry/instrument/detector/metadata")[()]["image_id"]
        _expect("images in the master file", len(images), account["count"])
        _expect("rows of the metadata file", len(detector_ids), account["count"])
        if account["count"] < asked:
            print(f"stopped early: {account['count']} of {asked} images")
        _expect("images that are good", int((rows["status"] == 1).sum()), account["count"])
        ids = rows["image_id"].astype(int)
        _expect("skipped image ids", int((np.diff(ids) != 1).sum()), 0)
        if not np.array_equal(detector_ids, ids):
            raise DemoError("check failed: the rows of the metadata file are not those of the images")
        expected = np.empty(config.image_shape, config.dtype)
        for position, image_id in enumerate(ids):
            scene.write(int(image_id), expected)
            np.minimum(expected, max_value or np.iinfo(config.dtype).max, out=expected)
            if not np.array_equal(images[position], expected):
                raise DemoError(f"check failed: image {image_id} of {master} differs from what was simulated")
        places = np.linspace(0, len(ids) - 1, min(N_SHOWN, len(ids))).astype(int)
        shown = [(f"image {ids[place]}", images[place]) for place in places]
    return Checked(len(ids), len(ids) * scene.shape[0] * scene.shape[1], shown)


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    import h5py

    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        raise DemoError(f"check failed: {file.filename} has no dataset {name}")
    return found


def _expect(what: str, found: int, expected: int) -> None:
    if found != expected:
        raise DemoError(f"check failed: {mismatch(what, str(expected), str(found))}")


def draw(path: Path, checked: Checked, config: DetectorConfig, account: dict[str, Any]) -> None:
    from stddaq.cli.pictures.sheet import write_sheet

    side = config.image_shape[0]
    caption = (
        f"{checked.n_images} images of {side}x{side} {config.dtype.name}, "
        f"{account['number_of_writers']} writers, read back from {PREFIX}Master.h5, every pixel checked; "
        "logarithmic scale"
    )
    write_sheet(path, checked.shown, "stddaq demo: simulated powder diffraction", caption)
