"""The driver runs of a tomography scan, with key and angle of each image as its documents say.

Images in no document, such as those of a point that a pause broke off, are shown as invalid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stddaq.files.names import RunFiles, find_run, nxtomo_file_name
from stddaq.files.nxtomo import ImageKey, TomographyRun
from stddaq.files.run import RecordedRun, read_run
from stddaq.files.scan_documents import ScannedImages
from stddaq.files.virtual_images import stored_rows


@dataclass(frozen=True, slots=True)
class ScannedRun:
    """A driver run, with key and angle of each of its images in order."""

    files: RunFiles
    recorded: RecordedRun
    keys: np.ndarray
    angles: np.ndarray

    @classmethod
    def of(cls, files: RunFiles) -> ScannedRun:
        """Return the run of `files`, whose images are all invalid. Raise `FileLayoutError`."""
        recorded = read_run(files.raw)
        n = recorded.order.n_images
        return cls(files, recorded, np.full(n, ImageKey.invalid), np.zeros(n))

    @property
    def part(self) -> TomographyRun:
        """Return the images as a part of an NXtomo file."""
        return TomographyRun(self.recorded, self.keys, self.angles)


def runs_of_scan(scanned: Sequence[ScannedImages], directory: Path | None = None) -> list[ScannedRun]:
    """Return the runs in the order of their images: one, unless files can be read only when closed.

    The files are where the documents say, or in `directory`. Raise `FileLayoutError`.
    """
    runs: list[ScannedRun] = []
    for images in scanned:
        published = images.path if directory is None else directory / images.path.name
        for path, rows, places in stored_rows(published):
            run = next((run for run in runs if path in run.files.raw), None)
            if run is None:
                run = ScannedRun.of(find_run(path))
                runs.append(run)
            order = run.recorded.order.positions[run.files.raw.index(path)]
            for row, place in zip(rows.tolist(), places.tolist(), strict=True):
                if place in images.keys:
                    run.keys[order[row]] = images.keys[place]
                    run.angles[order[row]] = images.angles[place]
    return runs


def run_with_projections(runs: Sequence[ScannedRun]) -> ScannedRun:
    """Return the run whose metadata are those of the scan."""
    return next((run for run in runs if ImageKey.projection in run.keys), runs[0])


def path_of_scan(runs: Sequence[ScannedRun]) -> Path:
    """Return where the NXtomo file of a scan is, beside its first run."""
    first = runs[0].files
    return first.directory / nxtomo_file_name(first.prefix)
