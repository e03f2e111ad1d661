"""Receivers as real processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from support.peers.assembly_bench import Bench, Way
from support.peers.udp_detectors import free_udp_ports
from support.processes.deployment import Deployment
from support.processes.udp_receivers import MakeModule, Module


@pytest.fixture(scope="module", params=[Way.COPIED, Way.IN_PLACE, Way.COMPILED], ids=lambda way: way.value)
def all_ways(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run the tests of a module in each way that packets go into memory."""
    Bench.way = request.param
    yield
    Bench.way = Way.COMPILED


@pytest.fixture
def make_module(make_deployment: Callable[..., Deployment]) -> Iterator[MakeModule]:
    """Return a function that starts the receiver of a module: `make_module("eiger", 3, bit_depth=32)`."""
    with ExitStack() as made:

        def make(
            detector_type: str, module: int, *options: object, n_modules: int = 8, **keys: Any
        ) -> Module:
            deployment = make_deployment(
                detector_type=detector_type, n_modules=n_modules, start_udp_port=free_udp_ports(16), **keys
            )
            started = Module(deployment, module, *options)
            made.callback(started.close)
            return started

        yield make
