"""Fill a queue of images from the files of a driver run, while they grow or after they are closed."""

from __future__ import annotations

import asyncio

from stddaq.files.growing_run import GrowingFiles, in_order, of_closed_run
from stddaq.files.run import read_run
from stddaq.text import mismatch
from stddaq_ophyd.core.driver_run import DriverRun
from stddaq_ophyd.core.errors import AcquisitionError
from stddaq_ophyd.core.ready_images import ReadyImages
from stddaq_ophyd.core.run_counts import RunCounts
from stddaq_ophyd.core.scalars import Scalars, WantedScalars, scalars_of
from stddaq_ophyd.core.worker import Worker

# Between two looks at growing files; a writer flushes within a few milliseconds.
SETTLE_PERIOD_S = 0.01


async def feed_from_growing(run: DriverRun, images: ReadyImages, counts: RunCounts, files: Worker) -> None:
    """Feed the queue with what is readable; the driver had sent `counts` before.

    Afterwards the queue is not ordered when only closed files can show the order. The thread of `files`
    reads.
    """
    growing = run.growing_files
    if growing is not None:
        rows = images.next_rows
        ids = await files.run(growing.ids, rows, counts.rows)
        images.feed(in_order(growing.files, rows, ids), counts)


def feed_point(
    growing: GrowingFiles, images: ReadyImages, counts: RunCounts, wanted: WantedScalars
) -> Scalars | None:
    """Do the same for a queue that only the caller uses. Return what is `wanted` of a complete one.

    The files are opened once for both.
    """
    rows = images.next_rows
    with growing.opened(rows, counts.rows) as opened:
        images.feed(in_order(growing.files, rows, growing.ids(rows, counts.rows, opened)), counts)
        return scalars_of(images.queue, wanted, opened) if wanted and images.is_complete else None


async def feed_from_closed(
    run: DriverRun, images: ReadyImages, n_images: int, device: str, files: Worker, guard: asyncio.Lock
) -> None:
    """Close the run, and complete the queue, which `guard` guards, with `n_images` from its files.

    Raises `AcquisitionError` when the run failed or has fewer, `FileLayoutError` when a file cannot be read.
    """
    await run.close()
    if run.error is not None:
        raise run.error
    async with guard:
        images.feed_closed(of_closed_run(await files.run(read_run, run.raw_files), images.next_rows))
    if images.n_ready < n_images:
        early = f" after {images.n_early} of an earlier trigger" if images.n_early else ""
        raise AcquisitionError(
            mismatch(device, f"{n_images} images in {run.where}", f"{images.n_ready}{early}")
        )


def check_bad(run: DriverRun, images: ReadyImages, after: RunCounts, device: str, *, allow_bad: bool) -> None:
    """Raise `AcquisitionError` when there are bad ones among the `images`, unless they are allowed.

    The driver had sent `after` when all images were recorded.
    """
    bad = images.bad_until(after)
    if bad and not allow_bad:
        found = ", ".join(f"{n} {kind}" for kind, n in bad.items())
        raise AcquisitionError(
            mismatch(
                device,
                f"{images.n_wanted} good images",
                f"{found} among them",
                f"files {run.where}, driver {run.url} is {run.state}; allow_bad = 1 accepts them",
            )
        )
