"""Rigs: a driver, its writers and a source."""

from __future__ import annotations

import pytest
from support.runs import MakeRig, Rig


@pytest.fixture
def rig(make_rig: MakeRig) -> Rig:
    """A rig of two writers and images of 32 x 48 pixels of uint16."""
    return make_rig()
