"""Positions of modules that no image can have: every service that needs them names the module."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.processes.deployment import Deployment
from support.processes.sources import refusal
from support.processes.udp_modules import EIGER

from stddaq.cli import main as stddaq
from stddaq.sources.udp.service import main as simulate_udp
from stddaq.udp.converter import main_eg
from stddaq.udp.module_sync_service import main as module_sync

Main = Callable[[list[str]], int]


def up(arguments: list[str]) -> int:
    return stddaq(["up", *arguments, "--source", "udp"])


@pytest.mark.parametrize(
    ("main", "arguments"),
    [(main_eg, (0,)), (module_sync, ()), (simulate_udp, ()), (up, ())],
    ids=["converter", "synchroniser", "simulator", "up"],
)
@pytest.mark.parametrize(
    ("position", "expected"),
    [
        ([500, 0, 1013, 255], "a place of its own, got [500, 0, 1013, 255], which overlaps that of module 0"),
        ([517, 0, 1030, 255], "a place inside the image, x from 0 to 1029, y from 0 to 255, got"),
        ([1029, 0, 516, 255], "x1 = x0 + 513 and y1 = y0 + 255 or y0 - 255 for eiger, got"),
        ([516, 0, 1029, 254], "x1 = x0 + 513 and y1 = y0 + 255 or y0 - 255 for eiger, got"),
    ],
    ids=["overlaps", "leaves the image", "mirrored", "too low"],
)
def test_a_position_that_cannot_be_is_refused_with_the_module(
    make_deployment: Callable[..., Deployment],
    capsys: pytest.CaptureFixture[str],
    main: Main,
    arguments: tuple[object, ...],
    position: list[int],
    expected: str,
) -> None:
    positions = {"0": [0, 255, 513, 0], "1": position}
    deployment = make_deployment(**EIGER | {"module_positions": positions, "number_of_writers": 1})
    line = refusal(capsys, main, deployment.config_path, *arguments)
    assert "module_positions[" in line
    assert f"1]: expected {expected}" in line.replace('"', "")
