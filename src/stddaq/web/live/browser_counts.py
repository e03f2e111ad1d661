"""What the browsers of one detector receive, for the metrics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from stddaq.daemon import metrics
from stddaq.daemon.metrics import Registry


@dataclass
class BrowserCounts:
    """Browsers that show a detector; images that went to them, and newer ones that replaced others."""

    n_connected: int = 0
    n_sent: int = 0
    n_skipped: int = 0

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Count a browser while it is connected."""
        self.n_connected += 1
        try:
            yield
        finally:
            self.n_connected -= 1

    def register(self, registry: Registry) -> None:
        """Add the counts to those of `stddaq-rest`."""
        registry.add(metrics.BROWSERS_CONNECTED, lambda: self.n_connected)
        registry.add(metrics.BROWSER_IMAGES_SENT, lambda: self.n_sent)
        registry.add(metrics.BROWSER_IMAGES_SKIPPED, lambda: self.n_skipped)
