"""A worker of dranspose, in its environment, that holds an image until it is killed and names its row."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import live_flat_field  # pyright: ignore[reportMissingImports]

# The images from this row on are held.
FIRST_HELD_ROW = 10


class Worker(live_flat_field.Worker):
    """The worker of the example, until a late image comes."""

    def process_event(self, event: Any, *args: Any) -> Any:
        result = super().process_event(event, *args)
        if result is not None and result[0] >= FIRST_HELD_ROW:
            path = Path(os.environ["STDDAQ_TEST_HELD_ROW"])
            path.with_suffix(".new").write_text(str(result[0]))
            path.with_suffix(".new").rename(path)
            threading.Event().wait()
        return result
