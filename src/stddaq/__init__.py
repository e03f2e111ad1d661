"""std_daq, the data acquisition of the Paul Scherrer Institute, in Python.

Detectors and cameras put images into a shared-memory ring buffer; this package simulates such
sources, distributes their images over parallel writers, and writes them to HDF5.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stddaq.files.reading import open_run

__all__ = ["open_run"]


def __getattr__(name: str) -> Any:
    """Import `open_run`, or look up `__version__`, on first use: both cost more than this import."""
    if name == "open_run":
        from stddaq.files.reading import open_run

        return open_run
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Kept, because a look-up takes milliseconds, and every file that is made has the version.
    found = globals()["__version__"] = _version()
    return found


def _version() -> str:
    """Return the version of the installed package, which is in the name of a directory."""
    for place in sys.path:
        with suppress(OSError):
            for name in os.listdir(place):  # noqa: PTH208  (pathlib takes longer to import)
                if name.startswith("stddaq-") and name.endswith(".dist-info"):
                    return name[len("stddaq-") : -len(".dist-info")]
    # It finds packages in other places, too, but takes 3 MB of memory in each service.
    from importlib.metadata import version

    return version("stddaq")
