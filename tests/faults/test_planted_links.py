"""A user plants links in a directory to which a service writes as root."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py
import pytest
from support.processes.recording import MakeRig, images_of

from stddaq.client import CommandRefusedError, RunFailedError

NOBODY = 65534
N_RUNS = 10
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to have more rights than a user")

# Replaces every new file, or the directory itself, by a link.
PLANT_FILES = """
while True:
    for name in os.listdir("."):
        if name.endswith(".spare") or os.path.islink(name):
            continue
        os.symlink(victim, f"{name}.spare")
        os.rename(f"{name}.spare", name)
"""
PLANT_DIRECTORY = """
os.chdir("..")
os.symlink(os.path.dirname(victim), "link")
while True:
    os.rename("user", "away")
    os.rename("link", "user")
    os.rename("user", "link")
    os.rename("away", "user")
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a directory with `user`, which belongs to a user, and `victim`, which belongs to root."""
    with tempfile.TemporaryDirectory(prefix="stddaq-", dir="/tmp") as path:
        place = Path(path)
        os.chown(place, NOBODY, NOBODY)
        (place / "user").mkdir()
        os.chown(place / "user", NOBODY, NOBODY)
        (place / "victim").mkdir(mode=0o755)
        yield place


@contextmanager
def planting(program: str, directory: Path, victim: Path) -> Iterator[None]:
    """Run a program of the user in the directory during the block."""
    header = (
        f"import os\nos.setgid({NOBODY})\nos.setuid({NOBODY})\nvictim = {str(victim)!r}\nprint(flush=True)\n"
    )
    command = [sys.executable, "-c", header + program]
    with subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        try:
            yield
            assert process.poll() is None
        finally:
            process.kill()


def precious_file(path: Path) -> Callable[[], bytes]:
    """Create an HDF5 file, which HDF5 would open and truncate. Return a function that reads it."""
    with h5py.File(path, "w") as file:
        file["precious"] = range(1000)
    return path.read_bytes


@pytest.mark.fault(
    fault="user who replaces each new file by a link to a file of root",
    state="creating_file, saving_file",
    promise="the run may fail; the file of root is unchanged",
)
def test_links_in_place_of_files_are_not_followed(make_rig: MakeRig, place: Path) -> None:
    rig = make_rig(number_of_writers=1)
    victim = place / "victim/file0.h5"
    content = precious_file(victim)
    before = content()
    with planting(PLANT_FILES, place / "user", victim):
        for run in range(N_RUNS):
            images = images_of(range(3))
            with suppress(CommandRefusedError, RunFailedError):
                rig.wait_for_subscription()
                rig.client.start(place / "user", n_image=3, file_prefix=f"r{run}_", overwrite=True)
                rig.client.wait_until_ready(60)
                rig.publish(images)
                rig.client.wait_until_saved(60)
            rig.client.wait(["idle"], 60)
            assert content() == before
    assert sorted(path.name for path in victim.parent.iterdir()) == ["file0.h5"]


@pytest.mark.fault(
    fault="user who replaces the directory of a run by a link to a directory outside the allowed root",
    state="idle to saving_file",
    promise="nothing is made, replaced or removed outside the root",
)
def test_directory_that_becomes_a_link_leads_nowhere(make_rig: MakeRig, place: Path) -> None:
    elsewhere = place.parent / f"{place.name}-elsewhere"
    elsewhere.mkdir()
    try:
        precious = [elsewhere / name for name in ("file0.h5", "fileMaster.h5")]
        contents = [precious_file(path) for path in precious]
        before = [content() for content in contents]
        rig = make_rig(number_of_writers=1, driver=["--allowed-root", place], allowed_roots=[str(place)])
        with planting(PLANT_DIRECTORY, place / "user", precious[0]):
            for _ in range(N_RUNS):
                with suppress(CommandRefusedError, RunFailedError):
                    rig.wait_for_subscription()
                    rig.client.start(place / "user", n_image=3, overwrite=True)
                    rig.client.wait_until_ready(60)
                    rig.publish(images_of(range(3)))
                    rig.client.wait_until_saved(60)
                rig.client.wait(["idle"], 60)
                assert [content() for content in contents] == before
        assert sorted(elsewhere.iterdir()) == precious
    finally:
        for path in elsewhere.iterdir():
            path.unlink()
        elsewhere.rmdir()
