"""The account of a run in words, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stddaq.text import bytes_text, escaped
from stddaq.wire.run_defaults import DEFAULT_N_IMAGE

# Ids and ranges to show of each kind; the files and the driver hold all of them.
SHOWN = 5


def account_lines(account: Mapping[str, Any], image_bytes: int | None = None) -> list[str]:
    """Return lines of names and values, with the rate in GB/s if `image_bytes` is known."""
    lines = []
    if account.get("outcome") == "error":
        lines.append(f"outcome     error: {account.get('reason')}")
    else:
        lines.append("outcome     saved")
    if account.get("late"):
        lines.append(f"late        {account['late']}; all images are in the files")
    lines.append(f"images      {_images(account)}")
    if account.get("outcome") != "error" and _n_asked(account) > _n_recorded(account):
        lines.append(f"stopped     before all of the {account['n_image']} images that it was to record")
    for what, number, ids in (
        ("damaged", "n_damaged", "damaged_ids"),
        ("overwritten", "n_overwritten", "overwritten_ids"),
        ("failed", "n_failed", "failed_ids"),
        ("skipped", "n_skipped", "skipped"),
        ("incomplete", "n_incomplete", "incomplete"),
    ):
        if account.get(number):
            lines.append(f"{what:<11} {account[number]}: {_ids(account.get(ids) or [], account[number])}")
    lines += [line for part in account.get("parts") or () for line in _part_lines(part)]
    if account.get("n_restarts"):
        lines.append(f"ids         restarted {account['n_restarts']} times")
    lines.append(f"duration    {_duration(account, image_bytes)}")
    lines += file_lines(account.get("files") or {})
    return [escaped(line) for line in lines]


def file_lines(files: Mapping[str, Any]) -> list[str]:
    """Return the files of a run with their sizes, and last the master file, which shows all images."""
    paths = [*(files.get("raw") or []), files.get("metadata"), files.get("master")]
    return [f"file        {path} ({_size(path)})" for path in paths if path]


def _part_lines(part: Mapping[str, Any]) -> list[str]:
    """Return what one driver of several recorded, and which images of the others it lacks."""
    name = f"part {part['part']}"
    images = f"{part['count']} images" if part["ids_are_exact"] else f"at least {part['count']} images"
    lines = [f"{name:<11} {images}, driver {part['url']}"]
    if part["n_absent"]:
        lines.append(f"  absent    {part['n_absent']}: {_ids(part['absent'], part['n_absent'])}")
    if part["lost_from"] is not None:
        lines.append(f"  lost      from image id {part['lost_from']} on")
    return lines


def _n_recorded(account: Mapping[str, Any]) -> int:
    """Return how many images a run recorded; of several drivers, the one with most of them."""
    return max((part["count"] for part in account.get("parts") or ()), default=account.get("count", 0))


def _images(account: Mapping[str, Any]) -> str:
    count, good, damaged = account.get("count", 0), account.get("n_good", 0), account.get("n_damaged", 0)
    text = f"{count}, {good} of them good"
    if not damaged and good == count:
        text = f"{count}, all good"
    first, last = account.get("first_id"), account.get("last_id")
    if first is not None:
        text += f", ids {first} to {last}"
    dropped = account.get("n_dropped")
    if dropped is None:
        return text
    return f"{text}, {dropped or 'none'} dropped"


def _n_asked(account: Mapping[str, Any]) -> int:
    """Return the number of images after which the run was to end; 0 if none was given."""
    n_image = account.get("n_image")
    return n_image if isinstance(n_image, int) and n_image < DEFAULT_N_IMAGE else 0


def _ids(ids: Sequence[int | Sequence[int]], number: int) -> str:
    shown = [
        str(item)
        if isinstance(item, int)
        else (str(item[0]) if item[0] == item[1] else f"{item[0]}-{item[1]}")
        for item in ids[:SHOWN]
    ]
    return (
        "image ids " + ", ".join(shown) + (", ..." if len(ids) > SHOWN or number > len(ids) > SHOWN else "")
    )


def _duration(account: Mapping[str, Any], image_bytes: int | None) -> str:
    """Return the time from the first image to the last, and the rate; without images that of the run."""
    seconds, count = account.get("recording_s") or 0.0, account.get("count", 0)
    if not seconds or count < 2:
        return f"{account.get('duration_s') or 0.0:.2f} s"
    rate = (count - 1) / seconds
    text = f"{seconds:.2f} s from the first image to the last, {rate:.1f} images/s"
    if image_bytes:
        text += f", {rate * image_bytes / 1e9:.3f} GB/s"
    return text


def _size(path: str) -> str:
    try:
        return bytes_text(Path(path).stat().st_size)
    except OSError:
        return "not visible from here"
