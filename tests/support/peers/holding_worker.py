"""A worker of dranspose, in its environment, that may hold an image until it is killed, and says which."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import live_flat_field  # pyright: ignore[reportMissingImports]

# One of the images from this row on is held.
FIRST_HELD_ROW = 10


class Worker(live_flat_field.Worker):
    """The worker of the example, until a late image comes that no other worker holds."""

    def process_event(self, event: Any, *args: Any) -> Any:
        result = super().process_event(event, *args)
        if result is not None and result[0] >= FIRST_HELD_ROW and _is_first(row=int(result[0])):
            threading.Event().wait()
        return result


def _is_first(row: int) -> bool:
    """Say that this process holds the image of `row`, unless another process does."""
    path = Path(os.environ["STDDAQ_TEST_HELD"])
    own = path.with_suffix(f".{os.getpid()}")
    own.write_text(json.dumps({"pid": os.getpid(), "row": row}))
    try:
        # Complete as soon as it is there, and only once.
        path.hardlink_to(own)
    except FileExistsError:
        return False
    return True
