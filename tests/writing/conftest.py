"""Rigs: a driver, its writers and a source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.processes import Deployment
from support.runs import MakeRig, Rig


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An empty directory for the files of runs."""
    path = tmp_path / "files"
    path.mkdir()
    return path


@pytest.fixture
def make_rig(make_deployment: Callable[..., Deployment], directory: Path) -> Iterator[MakeRig]:
    """Makes rigs of a configuration: `make_rig(number_of_writers=8, driver=["-m"])`.

    Driver and writers run then, unless `writers=False`; the source is made when it is used first.
    """
    with ExitStack() as made:

        def make(driver: Sequence[object] = (), writers: bool = True, **overrides: Any) -> Rig:
            rig = made.enter_context(Rig(make_deployment(**overrides), directory))
            rig.start_driver(*driver)
            return rig.start_writers() if writers else rig

        yield make


@pytest.fixture
def rig(make_rig: MakeRig) -> Rig:
    """A rig of two writers and images of 32 x 48 pixels of uint16."""
    return make_rig()
