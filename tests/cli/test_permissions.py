"""Commands of a user who may not search a directory."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes.real_driver import RealDriver

from stddaq.cli import main, record
from stddaq.client import DriverClient

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to act as another user")


@pytest.fixture
def closed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory that only root may search."""
    directory = tmp_path_factory.mktemp("closed")
    directory.chmod(0o700)
    return directory


# Modules are imported first, because other users may not have access to the installation.
PROGRAM = """
import contextvars, importlib, os, shlex, sys
import h5py, hdf5plugin, numpy, asyncio, concurrent.futures
for name in ("info", "validate", "repair", "aggregate", "demo", "record"):
    importlib.import_module(f"stddaq.cli.{name}")
for name in ("info", "validate_run", "repair", "aggregate", "reading", "opening"):
    importlib.import_module(f"stddaq.files.{name}")
import stddaq.client, stddaq.sources.replay, stddaq.sources.image_files
from stddaq.cli import main
os.setgroups([])
os.setgid(4242)
os.setuid(4242)
sys.exit(main(sys.argv[1:]))
"""


def as_other_user(*command: object) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-P", "-c", PROGRAM, *map(str, command)]
    return subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "command",
    [["info"], ["validate"], ["repair"], ["aggregate"], ["demo", "--directory"]],
    ids=lambda c: c[0],
)
def test_path_that_may_not_be_searched_is_one_line(closed: Path, command: list[str]) -> None:
    ended = as_other_user(*command, closed / "x" / "file0.h5")
    assert ended.returncode == 2
    lines = ended.stderr.splitlines()
    assert len(lines) == 1, ended.stderr
    assert "Permission denied" in lines[0] or "permission" in lines[0].lower()


def test_run_whose_starter_fails_is_stopped(
    real_driver: RealDriver, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/closed/file0.h5")

    monkeypatch.setattr(record, "follow", fail)
    with pytest.raises(SystemExit) as ended:
        main(["record", str(directory), "--url", real_driver.url])
    assert ended.value.code == 2
    with DriverClient(real_driver.url) as client:
        client.wait(["idle"], timeout=60)
        assert client.last_result() is not None
