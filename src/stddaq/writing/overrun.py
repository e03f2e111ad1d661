"""Which images of a ring buffer without cursor (a C++ source) may have been overwritten.

Nothing in such a ring says what a slot holds, so the newest announced id decides: a slot is suspect as soon
as a later image of it was announced, or may be in the making. The error is on the safe side.
"""

from __future__ import annotations

from collections.abc import Sequence

# Share of the slots that a source may be writing ahead of its announcements, or that are announced but
# still under way to us.
MARGIN_FRACTION = 0.05
MIN_MARGIN = 16


def safety_margin(n_slots: int, number_of_writers: int) -> int:
    """Ids beyond the newest known one that may be in the making or under way.

    A writer sees every `number_of_writers`-th id only.
    """
    return max(MIN_MARGIN, int(n_slots * MARGIN_FRACTION)) + number_of_writers


def suspects(ids: Sequence[int], later_ids: Sequence[int], n_slots: int, margin: int) -> list[bool]:
    """For each of `ids`, in order of arrival, whether its slot may hold another image.

    `later_ids` are those announced after them. An id that is not larger than the one before it means that
    the source began anew; from then on all slots from the lowest id seen anew are being filled.
    """
    result = [False] * len(ids)
    # Walking backwards, [lowest, newest] are the ids announced since, in the same pass or in later ones.
    newest: int | None = None
    later_pass: tuple[int, int] | None = None
    following: int | None = None
    for position in range(len(ids) + len(later_ids) - 1, -1, -1):
        image_id = ids[position] if position < len(ids) else later_ids[position - len(ids)]
        if following is not None and following <= image_id:
            lowest, highest = following - margin, newest if newest is not None else following
            if later_pass is not None:
                lowest, highest = min(lowest, later_pass[0]), max(highest, later_pass[1])
            later_pass, newest = (max(0, lowest), highest), None
        if newest is None:
            newest = image_id
        if position < len(ids):
            result[position] = newest + margin >= image_id + n_slots or (
                later_pass is not None
                and (image_id - later_pass[0]) % n_slots <= later_pass[1] + margin - later_pass[0]
            )
        following = image_id
    return result
