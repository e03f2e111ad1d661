"""Sources as real processes."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Literal

import pytest
from support.processes.deployment import Deployment, Service

from stddaq.daemon.log import logger


def start_source(
    deployment: Deployment, command: Literal["simulate", "replay"], *args: object, ready: str | None = "ready"
) -> Service:
    """Start `stddaq simulate` or `stddaq replay` with the deployment's configuration."""
    return deployment.run(deployment.stddaq, command, deployment.config_path, *args, ready=ready)


def refusal(capsys: pytest.CaptureFixture[str], main: Callable[[list[str]], int], *argv: object) -> str:
    """Return the line with which `main`, called in this process, refuses to start."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    log_handlers, propagate, level = logger.handlers[:], logger.propagate, logger.level
    try:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in argv])
    finally:
        # Later tests of this process read the log.
        logger.handlers[:], logger.propagate = log_handlers, propagate
        logger.setLevel(level)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]
