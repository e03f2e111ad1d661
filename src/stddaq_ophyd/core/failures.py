"""The failures of one staging: all are raised as an `AcquisitionError`, and the first is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stddaq.errors import FileLayoutError
from stddaq_ophyd.core.errors import AcquisitionError


class Failures:
    """Keeps the first failure.

    Attributes:
        first: the first failure, or None.
    """

    def __init__(self, device: str) -> None:
        """`device` begins every message."""
        self._device = device
        self.first: AcquisitionError | None = None

    def keep(self, error: AcquisitionError) -> None:
        """Keep `error` if it is the first."""
        self.first = self.first or error

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Raise every failure within as an `AcquisitionError`, and keep it."""
        try:
            yield
        except AcquisitionError as error:
            self.keep(error)
            raise
        except FileLayoutError as error:
            wrapped = AcquisitionError(f"{self._device}: {error}")
            self.keep(wrapped)
            raise wrapped from error
