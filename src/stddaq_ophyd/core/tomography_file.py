"""Make the NXtomo files of a tomography scan from its documents, when its device is unstaged.

Images in no document, such as those of a point that a pause broke off, are shown as invalid.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from stddaq.files.application_metadata import Layer, layers_of_run, merge
from stddaq.files.names import RunFiles, find_run, nxtomo_file_name
from stddaq.files.nxtomo import ImageKey, NXtomoFile, TomographyRun, create_nxtomo_file
from stddaq.files.reading import open_run
from stddaq.files.run import RecordedRun, read_run
from stddaq.files.virtual_images import stored_rows
from stddaq.text import command_line
from stddaq_ophyd.core.scan_documents import ScanDocuments, ScannedImages

_log = logging.getLogger(__name__)


def write_nxtomo_files(
    documents: ScanDocuments, nexus: Mapping[str, Any], origin: str = "plan"
) -> list[NXtomoFile]:
    """Make `<prefix>_tomo.h5` of each detector of a scan. Does not raise: log why a file is not made.

    `nexus` has the keys of `stddaq.run_metadata.RunMetadata`; its values replace those that the run has. A
    file that lacks values which NXtomo requires has no `definition`, and the log says which.
    """
    try:
        of_detectors = documents.images()
    except Exception as error:  # noqa: BLE001  (the images are recorded; nothing here may fail the plan)
        _log.warning("no NXtomo file was made: %s", error)
        return []
    made = []
    for scanned in of_detectors.values():
        runs: list[_Run] = []
        try:
            runs += _runs_of(scanned)
            made.append(_create(runs, Layer(origin, nexus)))
        except Exception as error:  # noqa: BLE001  (as above)
            _log.warning("no NXtomo file was made: %s; %s makes it", error, _command(runs, documents.start))
        else:
            if missing := made[-1].missing:
                values = [word for key in missing for word in ("--set", f"{key}=VALUE")]
                _log.warning(
                    "%s: expected values that NXtomo requires, got none for %s: it has no definition; "
                    "%s adds them",
                    *(made[-1].path, ", ".join(missing)),
                    _command(runs, documents.start, *values, "--overwrite"),
                )
    return made


@dataclass(frozen=True, slots=True)
class _Run:
    """A driver run, with key and angle of each of its images in order."""

    files: RunFiles
    recorded: RecordedRun
    keys: np.ndarray
    angles: np.ndarray

    @classmethod
    def of(cls, files: RunFiles) -> _Run:
        recorded = read_run(files.raw)
        n = recorded.order.n_images
        return cls(files, recorded, np.full(n, ImageKey.invalid), np.zeros(n))


def _runs_of(scanned: Sequence[ScannedImages]) -> list[_Run]:
    """Return the runs in the order of their images: one, unless files can be read only when closed."""
    runs: list[_Run] = []
    for images in scanned:
        for path, rows, places in stored_rows(images.path):
            run = next((run for run in runs if path in run.files.raw), None)
            if run is None:
                run = _Run.of(find_run(path))
                runs.append(run)
            order = run.recorded.order.positions[run.files.raw.index(path)]
            for row, place in zip(rows.tolist(), places.tolist(), strict=True):
                if place in images.keys:
                    run.keys[order[row]] = images.keys[place]
                    run.angles[order[row]] = images.angles[place]
    return runs


def _create(runs: Sequence[_Run], layer: Layer) -> NXtomoFile:
    first = runs[0].files
    main = next((run for run in runs if ImageKey.projection in run.keys), runs[0])
    opened = open_run(main.files.raw[0])
    return create_nxtomo_file(
        first.directory / nxtomo_file_name(first.prefix),
        [TomographyRun(run.recorded, run.keys, run.angles) for run in runs],
        merge([*layers_of_run(opened.account, opened.nexus), layer]),
        incomplete=True,
    )


def _command(runs: Sequence[_Run], start: Mapping[str, Any], *options: str) -> str:
    """Return the command that makes the file of equal steps between the angles of the plan."""
    if len(runs) == 1:
        kinds = [(ImageKey(key).name, len(list(same))) for key, same in groupby(runs[0].keys.tolist())]
        arguments = [str(runs[0].files.raw[0]), "--keys", ",".join(f"{kind}:{n}" for kind, n in kinds)]
    else:
        arguments = [f"{ImageKey(int(run.keys[0])).name}={run.files.raw[0]}" for run in runs] or ["RUN"]
    plan = start.get("plan_args", {})
    angles = f"{plan.get('start', 'START')}:{plan.get('stop', 'STOP')}"
    return command_line("stddaq", "nexus", *arguments, "--definition", "NXtomo", "--angles", angles, *options)
