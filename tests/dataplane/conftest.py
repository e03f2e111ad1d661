"""Fixtures of the data plane's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.processes.deployment import SHM_DIRECTORY, make_config
from support.processes.rings import MakeConfig

from stddaq.config import DetectorConfig


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeConfig]:
    """Return a function that makes configurations of one detector, whose segments are removed at the end."""
    name = make_config()["detector_name"]

    def make(**overrides: Any) -> DetectorConfig:
        return DetectorConfig.parse(make_config(detector_name=name, **overrides))

    yield make
    left = sorted(SHM_DIRECTORY.glob(f"{name}*"))
    for path in left:
        path.unlink()
    assert left == []
