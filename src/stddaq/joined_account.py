"""The account of a run that several drivers record together, one part of each image each.

It is computed from the accounts of the parts, which list what is not recorded, and matches images by their
ids. An image is good only if each part recorded it and none of them is bad. The keys are those of the account
of one driver; `parts` holds the accounts of the parts and the ids that each of them lacks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from stddaq.wire.run_defaults import DEFAULT_N_IMAGE

# As in the account of one driver: so many ids or ranges of each kind are listed.
LIST_LIMIT = 1000
# Of an image that is bad in several parts the first of these counts, so that each image counts once.
_KINDS = ("failed", "overwritten", "damaged")


def part_prefix(prefix: str, number: int) -> str:
    """Return the prefix of the files of a part (1, 2, ...) of the run of `prefix`."""
    return f"{prefix}Part{number}_"


@dataclass(frozen=True, slots=True)
class IdSet:
    """A set of image ids, as ranges (first, last) that are disjoint and ascend."""

    ranges: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, ranges: Iterable[Sequence[int]]) -> IdSet:
        """Return the ids of ranges (first, last) in any order, which may overlap."""
        found: list[tuple[int, int]] = []
        for first, last in sorted((int(first), int(last)) for first, last in ranges):
            if found and first <= found[-1][1] + 1:
                found[-1] = found[-1][0], max(found[-1][1], last)
            else:
                found.append((first, last))
        return cls(tuple(found))

    @classmethod
    def of_ids(cls, ids: Iterable[int]) -> IdSet:
        """Return the set of single ids."""
        return cls.of((one, one) for one in ids)

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self.ranges)

    def __or__(self, other: IdSet) -> IdSet:
        return IdSet.of((*self.ranges, *other.ranges))

    def __sub__(self, other: IdSet) -> IdSet:
        found: list[tuple[int, int]] = []
        holes = iter((*other.ranges, (1 << 64, 1 << 64)))
        hole = next(holes)
        for first, last in self.ranges:
            start = first
            while hole[1] < start:
                hole = next(holes)
            while hole[0] <= last:
                if hole[0] > start:
                    found.append((start, hole[0] - 1))
                start = hole[1] + 1
                if start > last:
                    break
                hole = next(holes)
            if start <= last:
                found.append((start, last))
        return IdSet(tuple(found))

    def __and__(self, other: IdSet) -> IdSet:
        return self - (self - other)

    def listed(self) -> list[list[int]]:
        """Return the first `LIST_LIMIT` ranges."""
        return [list(one) for one in self.ranges[:LIST_LIMIT]]

    def first_ids(self) -> list[int]:
        """Return the first `LIST_LIMIT` ids."""
        found: list[int] = []
        for first, last in self.ranges:
            found += range(first, min(last, first + LIST_LIMIT) + 1)
            if len(found) > LIST_LIMIT:
                break
        return found[:LIST_LIMIT]


@dataclass(frozen=True, slots=True)
class Part:
    """What one driver recorded of a joined run.

    Attributes:
        number: 1, 2, ... in the order of the drivers.
        url: of the driver.
        account: of the driver; None if it is not known.
        reason: why its run failed or its account is not known; empty if it was saved.
        recorded: ids of its images, as far as they are known.
        bad: ids of its images that are "damaged", "overwritten" or "failed".
        n_unlisted: bad images whose ids are not known.
        is_exact: whether `recorded` has all images.
        raw_files: paths as the driver sees them.
        run_id: of the driver's own run.
    """

    number: int
    url: str
    account: Mapping[str, Any] | None
    reason: str
    recorded: IdSet
    bad: Mapping[str, IdSet]
    n_unlisted: int
    is_exact: bool
    raw_files: tuple[str, ...]
    run_id: str | None

    @classmethod
    def of_account(cls, number: int, url: str, account: Mapping[str, Any]) -> Part:
        """Return the part of a driver that keeps its account."""
        recorded = _recorded(account)
        bad = {kind: IdSet.of_ids(account[f"{kind}_ids"]) for kind in _KINDS}
        n_listed = sum(len(account[f"{kind}_ids"]) for kind in _KINDS)
        return cls(
            number=number,
            url=url,
            account=account,
            reason=str(account.get("reason") or "") if account["outcome"] == "error" else "",
            recorded=recorded,
            bad=bad,
            n_unlisted=sum(account[f"n_{kind}"] for kind in _KINDS) - n_listed,
            is_exact=len(recorded) == account["count"],
            raw_files=tuple(account["files"]["raw"]),
            run_id=account["run_id"],
        )

    @classmethod
    def lost(cls, number: int, url: str, reason: str, raw_files: Sequence[str], run_id: str | None) -> Part:
        """Return the part of a driver whose account is not known: no image of it is known either."""
        return cls(number, url, None, reason, IdSet(), {}, 0, False, tuple(raw_files), run_id)

    @classmethod
    def of_json(cls, part: Mapping[str, Any]) -> Part:
        """Return a part as an account has it."""
        number, url, account = part["part"], part["url"], part["account"]
        if account is not None:
            return cls.of_account(number, url, account)
        return cls.lost(number, url, part["reason"], part["raw_files"], part["run_id"])


def _recorded(account: Mapping[str, Any]) -> IdSet:
    """Return the ids of an account. A few are left out if ids were late, all after the listed if cut."""
    first, last, skipped = account["first_id"], account["last_id"], account["skipped"]
    if first is None or last < first or account["n_restarts"]:
        return IdSet()
    if len(missing := IdSet.of(skipped)) < account["n_skipped"]:
        last = skipped[-1][1] if skipped else first - 1
    return IdSet.of([(first, last)]) - missing


def joined_account(
    run_id: str, parts: Sequence[Part], fields: Mapping[str, Any], started_at: datetime, finished_at: datetime
) -> dict[str, Any]:
    """Return the account of a run of `parts` as JSON values. `fields` are those of `start`.

    `count` are the images that each part has. `n_incomplete` are those that some parts have and others have
    not, of which `parts` lists the `absent` ids by part; `skipped` are the ids that no part has.
    """
    complete, some = parts[0].recorded, parts[0].recorded
    for part in parts[1:]:
        complete, some = complete & part.recorded, some | part.recorded
    bad, counted = {}, IdSet()
    for kind in _KINDS:
        found = IdSet()
        for part in parts:
            found |= part.bad.get(kind, IdSet())
        bad[kind] = (found & complete) - counted
        counted |= bad[kind]
    between = [(one[1] + 1, other[0] - 1) for one, other in itertools.pairwise(some.ranges)]
    skipped = IdSet(tuple(between))
    incomplete = some - complete
    reasons = [f"part {part.number} ({part.url}): {part.reason}" for part in parts if part.reason]
    accounts = [part.account for part in parts if part.account is not None]
    lists = (*(bad[kind].ranges for kind in _KINDS), skipped.ranges, incomplete.ranges)
    is_exact = all(part.is_exact and not part.n_unlisted for part in parts)
    return {
        "run_id": run_id,
        "outcome": "error" if reasons else "file_saved",
        **({"reason": "; ".join(reasons)} if reasons else {}),
        "n_image": fields.get("n_image", DEFAULT_N_IMAGE),
        "start_id": fields.get("start_id", 0),
        "count": len(complete),
        "n_good": max(0, len(complete) - len(counted) - sum(part.n_unlisted for part in parts)),
        **{f"n_{kind}": len(bad[kind]) for kind in reversed(_KINDS)},
        "n_skipped": len(skipped),
        "n_incomplete": len(incomplete),
        "n_dropped": _sum(accounts, "n_dropped"),
        "n_malformed": _sum(accounts, "n_malformed"),
        "n_before_start_id": max((account["n_before_start_id"] for account in accounts), default=0),
        "n_restarts": max((account["n_restarts"] for account in accounts), default=0),
        "first_id": complete.ranges[0][0] if complete.ranges else None,
        "last_id": complete.ranges[-1][1] if complete.ranges else None,
        "recording_s": max((account["recording_s"] for account in accounts), default=0.0),
        **{f"{kind}_ids": bad[kind].first_ids() for kind in reversed(_KINDS)},
        "skipped": skipped.listed(),
        "incomplete": incomplete.listed(),
        "lists_truncated": not is_exact or any(len(ranges) > LIST_LIMIT for ranges in lists),
        "parts": [_part(part, some) for part in parts],
        "files": joined_files([part.raw_files for part in parts]),
        "started_at": started_at.isoformat(),
        "finished_at": finished_at.isoformat(),
        "duration_s": round((finished_at - started_at).total_seconds(), 6),
    }


def joined_files(raw_of_parts: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return the files of a joined run as its account and its status have them, given the raw ones by part.

    `raw` are those of all parts. The metadata and master files of the parts are in their accounts.
    """
    return {
        "raw": [path for paths in raw_of_parts for path in paths],
        "raw_of_parts": [list(paths) for paths in raw_of_parts],
        "metadata": None,
        "master": None,
    }


def _part(part: Part, some: IdSet) -> dict[str, Any]:
    absent = some - part.recorded
    last = part.recorded.ranges[-1][1] if part.recorded.ranges else None
    # Only then images that it should have recorded come to nothing.
    is_lost = bool(part.reason and absent.ranges and (last is None or absent.ranges[-1][1] > last))
    return {
        "part": part.number,
        "url": part.url,
        "run_id": part.run_id,
        "outcome": "error" if part.reason else "file_saved",
        **({"reason": part.reason} if part.reason else {}),
        "count": len(part.recorded),
        "n_absent": len(absent),
        "absent": absent.listed(),
        "lost_from": (some.ranges[0][0] if last is None else last + 1) if is_lost else None,
        "ids_are_exact": part.is_exact,
        "raw_files": list(part.raw_files),
        "account": None if part.account is None else dict(part.account),
    }


def _sum(accounts: Sequence[Mapping[str, Any]], key: str) -> int | None:
    values = [account[key] for account in accounts]
    return None if not values or None in values else sum(values)
