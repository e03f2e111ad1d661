"""Compare what files, account and live stream call good with what the source published."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (registers the filters)
import numpy as np
from support.chaos.harm import HarmedRun
from support.chaos.services import ChaosServices
from support.chaos.truth import Findings, Viewer
from support.peers.chaos_source import GOOD, publication_of
from support.processes.deployment import Service
from support.processes.recording import assert_consistent

from stddaq.files.reading import open_run

OVERWRITTEN = 3


class RunChecks:
    """Checks each run of an episode. `n_good`: images that were compared, and are right."""

    def __init__(self, services: ChaosServices, viewer: Viewer, findings: Findings) -> None:
        self._services, self._truth = services, services.truth
        self._viewer, self._findings = viewer, findings
        self._checked_lines: dict[Service, int] = {}
        self.n_good = 0

    def check(self, run: HarmedRun, account: Mapping[str, Any] | None) -> list[int]:
        """Check files, account, live stream and logs. Return the serial numbers of the good images."""
        seen = self._viewer.take()
        self._truth.read()  # Read after the stream, because a publication is logged before it is made.
        directory = run.directory
        if not directory.exists():
            directory = directory.with_name(f"{directory.name}-renamed")
        if account is not None and not _is_of(account, run.directory):
            account = None  # It is the account of an earlier run.
        serials: list[int] = []
        ids: Counter[int] = Counter()
        for path in sorted(directory.glob("*.h5")):
            if path.name.endswith(("Master.h5", "Meta.h5")):
                continue
            found = self._check_raw_file(path)
            serials += [serial for serial, _ in found]
            ids.update(image_id for _, image_id in found)
        if account is not None:
            self._check_account(run, account, directory, sum(ids.values()))
        repeated = [serial for serial, n in Counter(serials).items() if n > 1]
        if repeated and self._services.chain != "third-party":
            self._findings.note("wrong", f"publications {repeated[:5]} are recorded twice")
        self._findings.note_wrong("live stream", [self._truth.fault(*image) for image in seen])
        self._check_logs()
        self.n_good += len(serials)
        shutil.rmtree(directory, ignore_errors=True)
        return serials

    def _check_raw_file(self, path: Path) -> list[tuple[int, int]]:
        """Return (serial number, image id) of each good image of a raw file."""
        found: list[tuple[int, int]] = []
        try:
            rows, images = _read(path)
        except (OSError, KeyError, StopIteration):
            # A writer was killed before its first flush; the account shows whether that matters.
            return found
        faults: list[str | None] = []
        for row, pixels in zip(rows, images, strict=False):
            image_id, status = int(row["image_id"]), int(row["status"])
            if status == GOOD:
                publication = publication_of(pixels)
                fault = self._truth.fault(image_id, publication)
                if fault is None and publication is not None:
                    found.append((publication[0], image_id))
                faults.append(fault)
            elif status == OVERWRITTEN and pixels.any():
                faults.append(f"image {image_id}: overwritten, with pixels of another image")
        self._findings.note_wrong(path.name, faults)
        return found

    def _check_account(
        self, run: HarmedRun, account: Mapping[str, Any], directory: Path, n_readable: int
    ) -> None:
        parts = [account[f"n_{part}"] for part in ("good", "damaged", "overwritten", "failed")]
        if sum(parts) != account["count"]:
            self._findings.note("account", f"count is not the sum of its parts: {account}")
        if not account["n_restarts"] and "disorder" not in self._findings.where:
            try:
                assert_consistent(account)
            except AssertionError as error:
                self._findings.note("account", str(error))
        if account["n_good"] > n_readable and not run.has_harmed_files:
            numbers = {key: value for key, value in account.items() if key.startswith("n_")}
            self._findings.note("wrong", f"{n_readable} good images in the files of the account {numbers}")
        if account["outcome"] != "file_saved":
            return
        if run.has_harmed_files and any(not Path(path).exists() for path in account["files"]["raw"]):
            return  # Services cannot notice that a closed file is removed.
        n_good = account["n_good"]
        # The driver does not know which image of a repeated id was damaged, and which was overwritten.
        without_pixels = {*account["overwritten_ids"], *account["failed_ids"]}
        n_unknown = sum(image_id in without_pixels for image_id in account["damaged_ids"])
        if not n_good <= n_readable <= n_good + n_unknown:
            self._findings.note("account", f"{n_readable} good images in the files of the account {account}")
        self._check_master(directory / "fileMaster.h5", n_readable)

    def _check_master(self, path: Path, n_readable: int) -> None:
        try:
            with open_run(path) as run:
                n_good, faults = 0, list[str | None]()
                for position, (image_id, status) in enumerate(
                    zip(run.image_ids.tolist(), run.status.tolist(), strict=True)
                ):
                    if status == GOOD:
                        n_good += 1
                        publication = publication_of(run.images[position])
                        faults.append(self._truth.fault(image_id, publication))
            self._findings.note_wrong(path.name, faults)
        except Exception as error:  # noqa: BLE001  (a user would meet the same error)
            self._findings.note("account", f"{path.name} of a saved run: {type(error).__name__}: {error}")
            return
        if n_good != n_readable:
            self._findings.note(
                "account", f"{path.name}: {n_good} good images, {n_readable} in the raw files"
            )

    def _check_logs(self) -> None:
        for name, service in self._services.running.items():
            lines = [*service.stdout, *service.stderr]
            first = self._checked_lines.get(service, 0)
            self._checked_lines[service] = len(lines)
            if any(re.search(r"^Traceback|Fatal Python error", line) for line in lines[first:]):
                self._findings.note("traceback", f"{name}\n{self._services.tail(name, 25)}")


def _is_of(account: Mapping[str, Any], directory: Path) -> bool:
    return any(Path(path).parent == directory for path in account["files"]["raw"])


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows, images) of a raw file, closed or not."""
    try:
        file = h5py.File(path, "r")
    except OSError:
        file = h5py.File(path, "r", swmr=True)
    with file:
        group: Any = next(iter(file.values()))
        rows = group["metadata"][:]
        return rows, group["data"][: len(rows)]
