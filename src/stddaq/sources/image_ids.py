"""The ids of a source's images: counted, with or without gaps, or listed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class ImageIds:
    """Image ids by position within an epoch. After the last id they restart at the first.

    With `skip_every` = n, every n-th id is left out. `listed` replaces counted ids.
    """

    first: int = 0
    last: int = 2**64 - 1
    skip_every: int | None = None
    listed: np.ndarray | None = None

    def __getitem__(self, position: int) -> int:
        if self.listed is not None:
            return int(self.listed[position % len(self.listed)])
        position %= self.per_epoch
        return self.first + position + (position // (self.skip_every - 1) if self.skip_every else 0)

    @property
    def per_epoch(self) -> int:
        """Number of ids from one restart to the next."""
        if self.listed is not None:
            return len(self.listed)
        n = self.last - self.first + 1
        return n - n // self.skip_every if self.skip_every else n
