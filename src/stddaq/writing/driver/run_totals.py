"""The images of all runs since the start of the driver, for its metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stddaq.daemon import metrics
from stddaq.daemon.metrics import Registry
from stddaq.writing.driver.account import RunAccount

_COUNTS: dict[metrics.Metric, Callable[[RunAccount], int]] = {
    metrics.IMAGES_DAMAGED: lambda account: len(account.damaged_ids),
    metrics.IDS_RESTARTED: lambda account: account.n_restarts,
    metrics.MESSAGES_LOST: lambda account: account.n_dropped,
    # A late id was skipped until it came, and counters never decrease.
    metrics.IDS_SKIPPED: lambda account: account.n_skipped + account.n_late,
    metrics.MESSAGES_REJECTED: lambda account: account.n_malformed,
}


class RunTotals:
    """Sums of the accounts of runs, the current one included."""

    def __init__(self, n_writers: int) -> None:
        self._past = dict.fromkeys(_COUNTS, 0)
        self._past_forwarded = [0] * n_writers
        self._account: RunAccount | None = None
        self._read_forwarded: Callable[[], Sequence[int]] = list

    def begin(self, account: RunAccount, forwarded: Callable[[], Sequence[int]]) -> None:
        """Count a new run. `forwarded` returns its images by writer."""
        self._account, self._read_forwarded = account, forwarded

    def end(self) -> None:
        """Add the run to the past."""
        self._past = {metric: self._count(metric) for metric in _COUNTS}
        self._past_forwarded = self._forwarded()
        self._account = None

    def register(self, registry: Registry, source: str) -> None:
        """Add the counts to those of the driver. `source`: suffix of its stream."""
        labels = {
            metrics.MESSAGES_LOST: {"source": source},
            metrics.IDS_SKIPPED: {"source": source},
            metrics.MESSAGES_REJECTED: {"reason": "malformed"},
        }
        for metric in _COUNTS:
            registry.add(metric, lambda metric=metric: self._count(metric), **labels.get(metric, {}))
        for writer in range(len(self._past_forwarded)):
            registry.add(
                metrics.IMAGES_FORWARDED, lambda writer=writer: self._forwarded()[writer], writer=str(writer)
            )

    def _count(self, metric: metrics.Metric) -> int:
        return self._past[metric] + (_COUNTS[metric](self._account) if self._account else 0)

    def _forwarded(self) -> list[int]:
        if not self._account:
            return self._past_forwarded
        now = self._read_forwarded()
        return [past + n for past, n in zip(self._past_forwarded, now, strict=True)]
