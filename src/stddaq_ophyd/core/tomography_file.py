"""Make the NXtomo files of a tomography scan from its documents, when its device is unstaged."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from stddaq.files.application_metadata import Layer, layers_of_run, merge
from stddaq.files.nxtomo import ImageKey, NXtomoFile, create_nxtomo_file
from stddaq.files.reading import open_run
from stddaq.files.scan_documents import ScanDocuments
from stddaq.files.scanned_runs import ScannedRun, path_of_scan, run_with_projections, runs_of_scan
from stddaq.text import command_line

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
        runs: list[ScannedRun] = []
        try:
            runs += runs_of_scan(scanned)
            made.append(_create(runs, Layer(origin, nexus)))
        except Exception as error:  # noqa: BLE001  (as above)
            _log.warning("no NXtomo file was made: %s; %s makes it", error, _command(runs, documents.start))
        else:
            for doubt in made[-1].doubts:
                _log.warning("%s", doubt)
            if missing := made[-1].missing:
                values = [word for key in missing for word in ("--set", f"{key}=VALUE")]
                _log.warning(
                    "%s: expected values that NXtomo requires, got none for %s: it has no definition; "
                    "%s adds them",
                    *(made[-1].path, ", ".join(missing)),
                    _command(runs, documents.start, *values, "--overwrite"),
                )
    return made


def _create(runs: Sequence[ScannedRun], layer: Layer) -> NXtomoFile:
    opened = open_run(run_with_projections(runs).files.raw[0])
    return create_nxtomo_file(
        path_of_scan(runs),
        [run.part for run in runs],
        merge([*layers_of_run(opened.account, opened.nexus), layer]),
        incomplete=True,
    )


def _command(runs: Sequence[ScannedRun], start: Mapping[str, Any], *options: str) -> str:
    """Return the command that makes the file of equal steps between the angles of the plan."""
    if len(runs) == 1:
        kinds = [(ImageKey(key).name, len(list(same))) for key, same in groupby(runs[0].keys.tolist())]
        arguments = [str(runs[0].files.raw[0]), "--keys", ",".join(f"{kind}:{n}" for kind, n in kinds)]
    else:
        arguments = [f"{ImageKey(int(run.keys[0])).name}={run.files.raw[0]}" for run in runs] or ["RUN"]
    plan = start.get("plan_args", {})
    angles = f"{plan.get('start', 'START')}:{plan.get('stop', 'STOP')}"
    return command_line("stddaq", "nexus", *arguments, "--definition", "NXtomo", "--angles", angles, *options)
