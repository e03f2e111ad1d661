"""Fixtures of two servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from support.processes.deployment import Deployment
from support.processes.namespaces import Network
from support.processes.servers import MakeServers, Servers


@pytest.fixture
def make_servers(make_deployment: Callable[..., Deployment]) -> Iterator[MakeServers]:
    """Return a function that makes two servers of a configuration, without running services."""
    with ExitStack() as made:

        def make(network: Network | None = None, **overrides: Any) -> Servers:
            first = make_deployment(**overrides)
            second = make_deployment(ipc_directory=first.ipc_directory, **overrides)
            return made.enter_context(Servers(first, second, network))

        yield make
