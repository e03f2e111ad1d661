"""The owner of a driver run, and the run that a killed process leaves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stddaq_ophyd.core.run_owner import RunOwner, is_orphan

URL = "ws://127.0.0.1:8080"
KILLED = """
import os, signal, sys
from stddaq_ophyd.core.run_owner import RunOwner
owner = RunOwner(sys.argv[1], sys.argv[2])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory of the files."""
    monkeypatch.setenv("STDDAQ_IPC_DIR", str(tmp_path))
    return tmp_path


def leave_a_run(place: Path, run_id: str) -> None:
    subprocess.run([sys.executable, "-c", KILLED, URL, run_id], timeout=30, check=False)
    assert len(list(place.iterdir())) == 1


def test_a_run_is_an_orphan_only_after_the_death_of_its_process(place: Path) -> None:
    owner = RunOwner(URL, "a")
    assert not is_orphan(URL, "a")
    owner.release()
    owner.release()
    assert not is_orphan(URL, "a")
    leave_a_run(place, "b")
    assert is_orphan(URL, "b")
    assert not is_orphan(URL, "a")
    assert not is_orphan("ws://127.0.0.1:8081", "b")


def test_a_run_is_an_orphan_when_its_owner_is_garbage(place: Path) -> None:
    owner = RunOwner(URL, "a")
    assert not is_orphan(URL, "a")
    del owner
    assert is_orphan(URL, "a")
    # The next owner uses the file again, and removes it.
    RunOwner(URL, "b").release()
    assert list(place.iterdir()) == []


def test_files_of_killed_processes_do_not_accumulate(place: Path) -> None:
    leave_a_run(place, "a long id of a run")
    leave_a_run(place, "b")
    owner = RunOwner(URL, "c")
    assert not is_orphan(URL, "b")
    owner.release()
    assert list(place.iterdir()) == []


def test_a_link_that_another_user_planted_is_not_followed(place: Path) -> None:
    owner = RunOwner(URL, "a")
    (name,) = place.iterdir()
    owner.release()
    victim = place / "victim"
    victim.write_text("content")
    name.symlink_to(victim)
    RunOwner(URL, "a").release()
    assert victim.read_text() == "content"
    assert not is_orphan(URL, "content")
