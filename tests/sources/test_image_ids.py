from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stddaq.sources.image_ids import ImageIds


@given(st.integers(0, 50), st.integers(1, 60), st.none() | st.integers(2, 12), st.integers(0, 200))
def test_ids_are_counted_with_gaps_and_restart_after_the_last(
    first: int, n_ids: int, skip_every: int | None, position: int
) -> None:
    ids = ImageIds(first, first + n_ids - 1, skip_every)
    epoch = [first + k for k in range(n_ids) if not skip_every or (k + 1) % skip_every]
    assert ids.per_epoch == len(epoch)
    assert ids[position] == epoch[position % len(epoch)]


def test_listed_ids_are_used_in_their_order() -> None:
    ids = ImageIds(listed=np.array([5, 9, 2**64 - 1], np.uint64))
    assert [ids[k] for k in range(4)] == [5, 9, 2**64 - 1, 5]
