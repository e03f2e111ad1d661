"""Compare the account of a run with the images that the source published: the check after every fault.

`check_run` compares an account and its files with the published images, pixel by pixel, and returns a
summary.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from support.processes.recording import (
    GOOD,
    OVERWRITTEN,
    Image,
    assert_consistent,
    assert_master_file_holds,
    divided,
    read_raw_file,
)

from stddaq.files.repair import repair
from stddaq.writing.driver.run import LIST_LIMIT


@dataclass(frozen=True, slots=True)
class Checked:
    """What the files of a run hold. Every number was compared with the published images.

    Attributes:
        n_received: images of the run.
        n_good: images that the account calls good; each is in a file, equal to the published one.
        n_readable: images with a good row in a file: more than `n_good` when the account errs on the safe
            side.
        unclosed: names of files that HDF5 opens only as SWMR, or after `stddaq repair`.
    """

    n_received: int
    n_good: int
    n_overwritten: int
    n_failed: int
    n_skipped: int
    n_readable: int
    unclosed: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{self.n_good} of {self.n_received} images good in the files"
        if self.n_received == self.n_good:
            text = f"all {self.n_received} images good in the files"
        named = {"overwritten": self.n_overwritten, "failed": self.n_failed, "skipped": self.n_skipped}
        text += "".join(f", {n} {what}" for what, n in named.items() if n)
        if self.n_readable > self.n_good:
            text += f" ({self.n_readable - self.n_good} of the failed ones readable)"
        if self.unclosed:
            text += f"; {', '.join(self.unclosed)} not closed"
        return text


def check_run(
    account: Mapping[str, Any],
    published: Sequence[Image],
    *,
    undelivered: Collection[int] = (),
    numbered: bool = True,
    by_arrival: bool = False,
    due: int | None = None,
) -> Checked:
    """Check the account of a run, and its files, against what the source published.

    Args:
        published: every image that the source published around the run, with rising ids.
        undelivered: ids of images in the ring whose messages were lost in transit.
        numbered: whether the source numbers its messages, so that `n_dropped` is known.
        due: id of the first image that was published after the run had started to record.
    """
    assert_consistent(account)
    first, last = account["first_id"], account["last_id"]
    during = [image for image in published if first is not None and first <= image.image_id <= last]
    received = [image for image in during if image.image_id not in undelivered]
    assert account["count"] == len(received), account
    if due is not None:
        assert first is not None, "nothing was recorded"
        assert first <= due, (
            f"image {due} was published while the run recorded, but its first image is {first}"
        )
    ids = [image.image_id for image in received]
    skipped = [[before + 1, after - 1] for before, after in pairwise(ids) if after > before + 1]
    # The last result names the first thousand ranges, the master file all of them.
    assert account["skipped"] == skipped[:LIST_LIMIT]
    assert account["lists_truncated"] == (len(skipped) > LIST_LIMIT)
    assert account["n_skipped"] == sum(end - begin + 1 for begin, end in skipped)
    assert account["n_dropped"] == (len(during) - len(received) if numbered and received else None)
    overwritten, failed = set(account["overwritten_ids"]), set(account["failed_ids"])
    assert not overwritten & failed
    assert overwritten | failed <= set(ids)
    damaged = [i.image_id for i in received if i.status != GOOD and i.image_id not in overwritten | failed]
    assert account["damaged_ids"] == damaged
    paths = [Path(path) for path in account["files"]["raw"]]
    readable, unclosed = 0, []
    for path, mine in zip(paths, divided(received, len(paths), by_arrival), strict=True):
        found, is_closed = check_file(path, mine, overwritten, failed)
        readable += found
        unclosed += [] if is_closed else [path.name]
    if account["outcome"] == "file_saved":
        assert not unclosed
        check_master_file(account, received, overwritten)
    return Checked(
        account["count"],
        account["n_good"],
        account["n_overwritten"],
        account["n_failed"],
        account["n_skipped"],
        readable,
        tuple(unclosed),
    )


def check_file(
    path: Path, images: Sequence[Image], overwritten: Collection[int], failed: Collection[int]
) -> tuple[int, bool]:
    """Check one raw file, which may be missing only if all of its images failed.

    Return the number of good rows with the right pixels, and whether HDF5 opens the file without SWMR.
    """
    due = [image for image in images if image.image_id not in failed]
    if not path.exists():
        assert due == [], f"{path}: does not exist"
        return 0, True
    is_closed = opens_plainly(path)
    rows, data = read_raw_file(path, swmr=not is_closed)
    truth = {image.image_id: image for image in images}
    ids = rows["image_id"].tolist()
    assert ids == sorted(set(ids)), (path, ids)
    assert set(ids) >= {image.image_id for image in due}, (
        f"{path}: images are missing that the account does not name"
    )
    n_readable = 0
    for row, pixels in zip(rows, data, strict=True):
        image_id, status = int(row["image_id"]), int(row["status"])
        assert image_id in truth, f"{path}: image {image_id} was not published in this run"
        if status == OVERWRITTEN:
            assert image_id in overwritten or image_id in failed
            assert not pixels.any(), f"{path}: image {image_id} has pixels of another image"
            continue
        assert image_id not in overwritten
        assert status == truth[image_id].status
        assert np.array_equal(pixels, truth[image_id].pixels), f"{path}: image {image_id}"
        n_readable += status == GOOD
    return n_readable, is_closed


def check_master_file(
    account: Mapping[str, Any], received: Sequence[Image], overwritten: Collection[int]
) -> None:
    """Check that the master file shows every image of the run, and holds the same account."""
    path = Path(account["files"]["master"])
    shown = [
        Image(i.image_id, np.zeros_like(i.pixels), OVERWRITTEN) if i.image_id in overwritten else i
        for i in received
    ]
    assert_master_file_holds(path, shown)
    with h5py.File(path) as file:
        dataset: Any = file["entry/stddaq/account"]
        in_file = json.loads(dataset[()])
    later = ("finished_at", "duration_s")
    in_file["skipped"] = in_file["skipped"][:LIST_LIMIT]
    in_file["lists_truncated"] = account["lists_truncated"]
    assert {k: v for k, v in in_file.items() if k not in later} == {
        k: v for k, v in account.items() if k not in later
    }


def check_perfect(account: Mapping[str, Any], published: Sequence[Image], **how: Any) -> Checked:
    """Check a run as `check_run` does, and that each of its images is good."""
    assert account["outcome"] == "file_saved", account
    checked = check_run(account, published, **how)
    assert account["count"] == account["n_good"] == checked.n_readable, account
    assert account["skipped"] == []
    return checked


def check_files_alone(paths: Sequence[Path], published: Sequence[Image]) -> int:
    """Check raw files of a run without an account: each row is an image that was published.

    No image between the first and the last of a file may be missing. Return the number of images.
    """
    n = 0
    for path, mine in zip(paths, divided(published, len(paths)), strict=True):
        rows, _ = read_raw_file(path, swmr=not opens_plainly(path))
        ids = set(rows["image_id"].tolist())
        between = [i for i in mine if ids and min(ids) <= i.image_id <= max(ids)]
        found, _ = check_file(path, between, (), ())
        n += found
    return n


def opens_plainly(path: Path) -> bool:
    """Return whether HDF5 opens the file without SWMR."""
    try:
        with h5py.File(path):
            return True
    except OSError:
        return False


def check_repair(account: Mapping[str, Any], checked: Checked) -> None:
    """Check that `stddaq repair` closes the files that were left open, and changes none of their images."""
    for path in map(Path, account["files"]["raw"]):
        if path.name in checked.unclosed:
            rows, data = read_raw_file(path, swmr=True)
            assert repair(path).n_images == len(rows)
            repaired_rows, repaired = read_raw_file(path)
            assert np.array_equal(repaired_rows, rows)
            assert np.array_equal(repaired, data)
