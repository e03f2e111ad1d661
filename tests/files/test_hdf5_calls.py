"""What a failed HDF5 call leaves in its process."""

from __future__ import annotations

import subprocess
import sys

FAILED_RELEASE = """
import sys
from stddaq.files.hdf5_calls import hdf5_calls

class Left:
    def __init__(self, error):
        self.error = error

    def __del__(self):
        raise self.error

try:
    with hdf5_calls:
        raise RuntimeError("Unable to flush dataset (file write failed)")
except OSError:
    assert hdf5_calls.failed
for error in (RuntimeError("Can't decrement id ref count (file write failed)"), RuntimeError("another")):
    sys.excepthook(RuntimeError, error, None)
    Left(error)
"""


def test_errors_of_h5py_after_a_failed_write_are_not_printed_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAILED_RELEASE], capture_output=True, text=True, check=True, timeout=30
    )
    assert "decrement" not in done.stderr
    assert done.stderr.count("RuntimeError: another") == 2
