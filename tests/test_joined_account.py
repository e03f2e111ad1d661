"""The account of a run of several drivers, compared with sets."""

from __future__ import annotations

from collections.abc import Set
from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from stddaq.joined_account import LIST_LIMIT, IdSet, Part, joined_account

ids = st.sets(st.integers(0, 30))
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def ranges_of(found: Set[int]) -> list[list[int]]:
    return IdSet.of_ids(found).listed()


def account_of(recorded: Set[int], *, damaged: Set[int] = frozenset(), **keys: Any) -> dict[str, Any]:
    """Return the account of a driver."""
    missing = set(range(min(recorded, default=0), max(recorded, default=0))) - recorded
    bad = sorted(recorded & damaged)
    return {
        "run_id": "run",
        "outcome": "file_saved",
        "count": len(recorded),
        "n_good": len(recorded) - len(bad),
        "n_damaged": len(bad),
        "n_overwritten": 0,
        "n_failed": 0,
        "n_skipped": len(missing),
        "n_dropped": 0,
        "n_malformed": 0,
        "n_before_start_id": 0,
        "n_restarts": 0,
        "first_id": min(recorded, default=None),
        "last_id": max(recorded, default=None),
        "recording_s": 1.0,
        "damaged_ids": bad,
        "overwritten_ids": [],
        "failed_ids": [],
        "skipped": ranges_of(missing),
        "files": {"raw": ["/data/0.h5"]},
        **keys,
    }


def joined(*accounts: dict[str, Any] | None) -> dict[str, Any]:
    parts = [
        Part.lost(number, f"url{number}", "killed", ["/data/0.h5"], "run")
        if account is None
        else Part.of_account(number, f"url{number}", account)
        for number, account in enumerate(accounts, 1)
    ]
    return joined_account("all", parts, {"n_image": 50}, NOW, NOW)


@given(a=ids, b=ids)
def test_id_sets_are_sets(a: set[int], b: set[int]):
    one, other = IdSet.of_ids(a), IdSet.of_ids(b)
    for found, expected in ((one - other, a - b), (one & other, a & b), (one | other, a | b)):
        assert found == IdSet.of_ids(expected)
        assert len(found) == len(expected)
        assert found.first_ids() == sorted(expected)


@given(a=ids, b=ids, bad_a=ids, bad_b=ids)
def test_an_image_is_good_if_each_part_has_it_and_none_is_bad(
    a: set[int], b: set[int], bad_a: set[int], bad_b: set[int]
):
    account = joined(account_of(a, damaged=bad_a), account_of(b, damaged=bad_b))
    bad = (a & b) & (bad_a | bad_b)
    assert account["outcome"] == "file_saved"
    assert account["count"] == len(a & b)
    assert account["n_good"] == len((a & b) - bad)
    assert account["damaged_ids"] == sorted(bad)
    assert account["incomplete"] == ranges_of(a ^ b)
    assert account["n_incomplete"] == len(a ^ b)
    assert [part["absent"] for part in account["parts"]] == [
        ranges_of(other - own) for own, other in ((a, b), (b, a))
    ]
    seen = a | b
    assert account["n_skipped"] == len(set(range(min(seen, default=0), max(seen, default=0))) - seen)
    assert not account["lists_truncated"]


def test_nothing_is_good_of_a_run_with_a_part_that_is_not_known():
    account = joined(account_of({1, 2, 3}), None)
    assert (account["outcome"], account["count"], account["n_good"]) == ("error", 0, 0)
    assert account["reason"] == "part 2 (url2): killed"
    assert account["incomplete"] == [[1, 3]]
    assert account["parts"][1]["lost_from"] == 1
    assert account["lists_truncated"]


def test_a_part_that_failed_says_from_which_id_on_it_is_lost():
    failed = account_of({1, 2}, outcome="error", reason="writer 0 died")
    account = joined(account_of(set(range(1, 10))), failed)
    assert account["reason"] == "part 2 (url2): writer 0 died"
    assert account["parts"][1]["lost_from"] == 3
    assert account["parts"][0]["lost_from"] is None


def test_ids_after_a_cut_list_do_not_count_as_recorded():
    recorded = set(range(0, 4 * LIST_LIMIT, 2))
    account = account_of(recorded)
    del account["skipped"][LIST_LIMIT:]
    found = joined(account, account_of(set(range(4 * LIST_LIMIT))))
    assert found["count"] == LIST_LIMIT
    assert found["lists_truncated"]
    assert not found["parts"][0]["ids_are_exact"]


def test_bad_images_after_a_cut_list_do_not_count_as_good():
    recorded = set(range(3 * LIST_LIMIT))
    account = account_of(recorded, damaged=set(range(2 * LIST_LIMIT)))
    del account["damaged_ids"][LIST_LIMIT:]
    found = joined(account, account_of(recorded))
    assert (found["count"], found["n_good"]) == (3 * LIST_LIMIT, LIST_LIMIT)
    assert found["lists_truncated"]


def test_the_parts_of_an_account_can_be_read_again():
    failed = account_of({1, 2}, outcome="error", reason="writer 0 died")
    for account in (joined(account_of({1, 2, 3}), None), joined(account_of({1, 2, 3}), failed)):
        again = [Part.of_json(part) for part in account["parts"]]
        assert joined_account("all", again, account, NOW, NOW) == account
