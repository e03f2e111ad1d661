"""The values of a run whose `start` does not name them."""

from __future__ import annotations

DEFAULT_FILE_PREFIX = "file"
# Largest image id of a GigaFRoST, and the std_daq's default for "until stopped".
DEFAULT_N_IMAGE = 2**24 - 1
