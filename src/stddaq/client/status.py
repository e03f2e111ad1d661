"""One status message of a driver, and a bounded queue of them for each watcher.

Every implementation of the driver sends `status`, `count` and `reason`. Other fields that it does not send
are None or empty.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from stddaq.wire.driver_messages import RUN_STATES

BUSY_STATES = frozenset(RUN_STATES) - {"file_saved"}
END_STATES = frozenset({"file_saved", "error"})
# State changes that a watcher may leave unread; some hundred runs.
HISTORY_LIMIT = 1000


@dataclass(frozen=True, slots=True, repr=False)
class DriverStatus:
    """One status message of a driver. Counts are numbers of images of the run `run_id`."""

    status: str
    count: int | None = None
    """Images recorded so far: written, flushed and readable, if the driver is stddaq's."""
    reason: str | None = None
    """Why, with `error` and `rejected`."""
    run_id: str | None = None
    n_image: int | None = None
    """Images asked for."""
    n_received: int | None = None
    n_damaged: int | None = None
    n_overwritten: int | None = None
    n_failed: int | None = None
    n_skipped: int | None = None
    n_written: Mapping[int, int] = field(default_factory=dict)
    """Images in the file of each writer, by the writer's number."""
    files: Mapping[str, Any] = field(default_factory=dict)
    """Paths: `raw` (one per writer), `metadata`, `master`."""
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """The whole message."""

    def __repr__(self) -> str:
        # Only the fields that the driver sent, so that they fit into a line of IPython.
        sent = {item.name: getattr(self, item.name) for item in fields(self) if item.repr}
        shown = ", ".join(f"{name}={value!r}" for name, value in sent.items() if value not in (None, {}))
        return f"DriverStatus({shown})"

    @property
    def is_busy(self) -> bool:
        """Whether a run is in progress."""
        return self.status in BUSY_STATES

    @property
    def is_stddaq(self) -> bool:
        """Whether stddaq's driver sent it, which marks its replies."""
        return "run_id" in self.raw or "command" in self.raw

    @property
    def is_end(self) -> bool:
        """Whether this is the last state of a run: its files are closed."""
        return self.status in END_STATES

    @property
    def n_bad(self) -> int | None:
        """Images that are damaged, overwritten, failed or skipped; None when the driver sends no counts."""
        counts = (self.n_damaged, self.n_overwritten, self.n_failed, self.n_skipped)
        known = [count for count in counts if count is not None]
        return sum(known) if known else None

    def has_reached(self, state: str) -> bool:
        """Return whether the run is in `state` or past it, because a client may miss a state."""
        if self.status not in RUN_STATES:
            return False
        return RUN_STATES.index(self.status) >= RUN_STATES.index(state)


def parse_status(message: str | bytes) -> DriverStatus | None:
    """Return the status in a WebSocket frame of a driver; None when there is none."""
    try:
        content = json.loads(message)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("status"), str):
        return None
    writers = content.get("writers")
    files = content.get("files")
    return DriverStatus(
        status=content["status"],
        count=_count(content, "count"),
        reason=_text(content, "reason"),
        run_id=_text(content, "run_id"),
        n_image=_count(content, "n_image"),
        n_received=_count(content, "n_received"),
        n_damaged=_count(content, "n_damaged"),
        n_overwritten=_count(content, "n_overwritten"),
        n_failed=_count(content, "n_failed"),
        n_skipped=_count(content, "n_skipped"),
        n_written={
            writer["writer"]: writer["n_written"]
            for writer in (writers if isinstance(writers, list) else [])
            if isinstance(writer, dict)
            and isinstance(writer.get("writer"), int)
            and isinstance(writer.get("n_written"), int)
        },
        files=files if isinstance(files, dict) else {},
        raw=content,
    )


def _count(content: dict[str, Any], key: str) -> int | None:
    value = content.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(content: dict[str, Any], key: str) -> str | None:
    value = content.get(key)
    return value if isinstance(value, str) else None


class StatusQueue:
    """Statuses that a watcher has not read yet: every change of state, and only the newest counts.

    Ten statuses a second would otherwise accumulate for a slow reader. The oldest of more than
    `HISTORY_LIMIT` changes are dropped.
    """

    def __init__(self) -> None:
        self._statuses: deque[DriverStatus] = deque(maxlen=HISTORY_LIMIT)

    def put(self, status: DriverStatus) -> None:
        if self._statuses:
            newest = self._statuses[-1]
            if (newest.status, newest.run_id) == (status.status, status.run_id):
                self._statuses.pop()
        self._statuses.append(status)

    def get(self) -> DriverStatus:
        """Return the oldest status. Raise IndexError when there is none."""
        return self._statuses.popleft()

    def __len__(self) -> int:
        return len(self._statuses)
