"""The detector device from staging to unstaging: a driver run is started, its files are closed.

What takes time runs in an event loop of the device, one step after the other, so that the RunEngine and the
prompt wait only for the Status that they receive.
"""

from __future__ import annotations

import atexit
import contextlib
import sys
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ophyd.utils import RedundantStaging

from stddaq.client import DriverClient
from stddaq.client.address import split_token
from stddaq.client.errors import DriverError
from stddaq.text import mismatch
from stddaq_ophyd.core.account import UNREAD
from stddaq_ophyd.core.acquisition import Acquisition
from stddaq_ophyd.core.camera import Camera
from stddaq_ophyd.core.documents import Documents
from stddaq_ophyd.core.driver_group import Drivers
from stddaq_ophyd.core.driver_run import DriverRun
from stddaq_ophyd.core.errors import AcquisitionError
from stddaq_ophyd.core.paths import Engine, PathProvider, provider_of
from stddaq_ophyd.core.publication import Publication
from stddaq_ophyd.core.run_values import RunValues, with_nexus
from stddaq_ophyd.core.worker import Worker
from stddaq_ophyd.detector_signals import DetectorSignals
from stddaq_ophyd.run_engine import in_run_engine
from stddaq_ophyd.steps import Steps, StepStatus

# An exiting program waits this long for the files of a run that is still open.
EXIT_TIMEOUT_S = 10.0


class StagedDetector(DetectorSignals):
    """The base of `StdDaqDetector`, which takes points and flights between `stage` and `unstage`."""

    def __init__(
        self,
        prefix: str,
        *,
        name: str,
        paths: PathProvider | str | Path,
        camera: Camera | None,
        documents: Documents,
        start_options: Mapping[str, Any] | None,
        other_drivers: Sequence[str],
        nexus: Mapping[str, Any] | None,
        engine: Engine | None,
        **kwargs: Any,
    ) -> None:
        # Documents and messages show the URL, but never the token.
        prefix, self._token = split_token(prefix, None)
        super().__init__(prefix, name=name, **kwargs)
        self._paths = provider_of(paths)
        component: Camera | None = getattr(self, "camera", None) if "camera" in self.component_names else None
        self._camera = camera or component
        self._documents = documents
        self._start_options = dict(start_options or {})
        self._drivers = Drivers(prefix, other_drivers, self._token)
        self._values = RunValues(name, nexus, engine)
        self._steps = Steps(f"steps of {name}")
        # For signals and functions of the user, which block.
        self._blocking = Worker(f"signals of {name}")
        self._acquisition: Acquisition | None = None
        self._is_staged = False
        # The point or flight that `read` waits for outside a RunEngine.
        self._pending: StepStatus | None = None
        _devices.add(self)

    @property
    def error(self) -> Exception | None:
        """Return the first failure since the device was staged."""
        return self._steps.error

    @property
    def orphans(self) -> dict[str, int]:
        """Return the numbers of recorded images that are in no document, by reason, after unstaging."""
        return dict(self._acquisition.orphans) if self._acquisition else {}

    @property
    def paths(self) -> PathProvider:
        """Return where the files of the next staging go. A directory may be assigned."""
        return self._paths

    @paths.setter
    def paths(self, paths: PathProvider | str | Path) -> None:
        self._paths = provider_of(paths)

    @property
    def image_key(self) -> str:
        """Return the name of the images in documents."""
        return f"{self.name}_image"

    def stage(self) -> StepStatus:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Start a driver run. The Status is done when no image that is published from then on can be missed.

        It fails with the driver's reason, and the device is not staged then. Raises `RedundantStaging`.
        """
        if self._is_staged:
            raise RedundantStaging(f"{self.name} is staged already; {self.name}.unstage() comes first")
        self._is_staged, self._steps.error = True, None
        return self._steps.submit(self._stage, StepStatus(self))

    async def _stage(self, status: StepStatus) -> None:
        self._acquisition = None
        self._documents.reset()
        try:
            await self._blocking.run(super().stage)
            self._acquisition = await self._new_acquisition()
            self._reset_counts()
            self._note_run(await self._acquisition.start_run())
        except BaseException:
            self._is_staged = False
            if self._acquisition is not None:
                await self._acquisition.close()
            with contextlib.suppress(Exception):
                await self._blocking.run(super().unstage)
            raise

    def _note_run(self, run: DriverRun) -> None:
        if run.image_shape and run.dtype:
            self._note_layout(run.image_shape, run.dtype, len(run.raw_files))

    async def _follow_paths(self) -> None:
        """Put the files where they belong by now, before the first images."""
        acquisition = self._staged_acquisition()
        if acquisition.is_misplaced:
            paths = await self._blocking.run(self._paths, self.name)
            self._note_files(paths)
            self._note_run(await acquisition.move_to(paths))

    async def _new_acquisition(self) -> Acquisition:
        if "bluesky_tiled_plugins.writing.consolidators" in sys.modules:
            from stddaq_ophyd import tiled_export

            tiled_export.register()
        paths = await self._blocking.run(self._paths, self.name)
        self._note_files(paths)
        publication = Publication(self.name, paths, self.image_key, self._documents)
        nexus = await self._values.read(self._blocking.run, await self._exposure_time())
        options = with_nexus(self._start_options, nexus)
        late = self._values.late
        return Acquisition(self._drivers, self.name, options, publication, self._camera, late)

    async def _exposure_time(self) -> float | None:
        """Return the exposure time in seconds, if it is known."""
        exposure: Any = self.exposure_time.get()
        return float(exposure) or None

    def unstage(self) -> StepStatus:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Stop waiting for images and end the run. The Status is done when the driver is idle, files closed.

        It may be called at any time, any number of times. The Status fails only when closing the files does;
        the first failure since staging is in `error`.
        """
        self._is_staged = False
        if in_run_engine():
            # The RunEngine would count a failure of the aborted plan as one of its cleanup, and stop that.
            self._steps.abandon()
            self._pending = None
        if self._acquisition is not None:
            self._acquisition.stop()
        return self._steps.submit(self._unstage, StepStatus(self), can_be_abandoned=False)

    async def _unstage(self, status: StepStatus) -> None:
        acquisition = self._acquisition
        known = acquisition.error if acquisition else None
        try:
            if acquisition is not None:
                await acquisition.close()
        finally:
            await self._blocking.run(super().unstage)
        if acquisition is not None:
            self._check_documents(acquisition)
            if acquisition.error is not None and acquisition.error is not known:
                raise acquisition.error

    def _check_documents(self, acquisition: Acquisition) -> None:
        """Raise when points were taken through a parent that passed no documents on."""
        n, advice = acquisition.orphans[UNREAD], self._parent_of_plan()
        if n and advice and not acquisition.n_announced and acquisition.error is None:
            raise AcquisitionError(mismatch(self.name, f"documents of {n} images", "none", advice))

    def stop(self, *, success: bool = False) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Stop waiting for images, and end the run. Return at once.

        Points that are triggered later are recorded in a new run.
        """
        acquisition = self._acquisition
        if acquisition is None:
            return
        acquisition.stop()

        async def close(_: StepStatus) -> None:
            await acquisition.close()
            acquisition.allow_restart()

        self._steps.submit(close, StepStatus(self))

    # At the prompt.

    def driver_state(self) -> str:
        """Return what the driver is doing, in words."""
        try:
            with DriverClient(self.prefix, token=self._token) as client:
                latest = client.latest
        except DriverError as error:
            return f"not reachable: {error}"
        count = f", {latest.count} images" if latest.count is not None else ""
        return latest.status + count

    def __repr__(self) -> str:
        state = "staged" if self._is_staged else "not staged"
        return f"{type(self).__name__}({self.prefix!r}, name={self.name!r}: {state}, paths={self._paths})"

    def _summary(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        files = f"{self.directory.get()}/{self.file_prefix.get()}*.h5" if self.directory.get() else "none yet"
        head = [
            f"{self.name}: {'staged' if self._is_staged else 'not staged'}",
            f"driver           {self.prefix}: {self.driver_state()}",
            f"files            {files}",
            f"next files       {self._paths}",
            f"trigger          {self._camera or 'none, the next images that arrive'}",
            f"orphans          {self._orphans_in_words()}",
            f"last error       {self.error or 'none'}",
            "",
        ]
        return "\n".join([*head, super()._summary()])

    def _orphans_in_words(self) -> str:
        return "; ".join(f"{n} images of {reason}" for reason, n in self.orphans.items()) or "none"

    # Within.

    def _parent_of_plan(self) -> str:
        """Return what to use in a plan instead of a parent that does not trigger or collect."""
        parent = self.parent
        if parent is None or hasattr(parent, "collect_asset_docs"):
            return ""
        return f"{parent.name} does not pass it on: use {parent.name}.{self.attr_name} in the plan"

    def _check_staged(self, method: str) -> None:
        if not self._is_staged:
            why = f": {self.error}" if self.error else f"; {self.name}.stage() comes first"
            raise AcquisitionError(f"{self.name}: {method}: not staged{why}")

    def _staged_acquisition(self) -> Acquisition:
        if self._acquisition is None:
            raise AcquisitionError(f"{self.name}: not staged: {self.error or 'it was unstaged meanwhile'}")
        return self._acquisition

    def _finish(self) -> None:
        """End a run that is still open when the program exits."""
        if self._is_staged:
            self.unstage()
        self._steps.wait_until_done(EXIT_TIMEOUT_S)


_devices: weakref.WeakSet[StagedDetector] = weakref.WeakSet()


@atexit.register
def _finish_all() -> None:
    for device in tuple(_devices):
        device._finish()
