"""Locks that others hold on new files, and file systems that have none."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py
import pytest
from support.processes.deployment import Deployment
from support.processes.recording import MakeRig, Rig, assert_saved, images_of
from support.tools.fault_table import Seen

from stddaq.files.reading import open_run

N_RUNS = 15
ENOTSUPP = 524
# flock() fails below a directory, as on a file system without locks.
FLOCK = r"""
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>
int flock(int fd, int operation) {
    const char *below = getenv("FLOCK_FAILS_BELOW");
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (below && n > 0) {
        path[n] = 0;
        if (!strncmp(path, below, strlen(below))) {
            int fd_of_number = open(getenv("FLOCK_ERRNO_FILE"), O_RDONLY);
            char number[8] = "";
            read(fd_of_number, number, sizeof number - 1);
            close(fd_of_number);
            errno = atoi(number);
            return -1;
        }
    }
    return ((int (*)(int, int))dlsym(RTLD_NEXT, "flock"))(fd, operation);
}
"""


@contextmanager
def viewer(directory: Path) -> Iterator[list[str]]:
    """Open each new file of `directory` at once, and keep its lock for a moment."""
    held: list[str] = []
    ended = threading.Event()

    def watch() -> None:
        known: set[str] = set()
        while not ended.is_set():
            for path in directory.iterdir():
                if path.name in known:
                    continue
                known.add(path.name)
                with suppress(OSError):
                    # The lock that h5py takes, also on a file that is still empty.
                    fd = os.open(path, os.O_RDONLY)
                    fcntl.flock(fd, fcntl.LOCK_SH)
                    held.append(path.name)
                    threading.Timer(0.05, os.close, (fd,)).start()
                with suppress(OSError), h5py.File(path, "r"):
                    pass

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield held
    finally:
        ended.set()
        thread.join()


@pytest.mark.fault(
    fault="HDF5 viewer that opens each new file at once and locks it",
    state="creating_file, saving_file",
    promise="every run is perfect",
)
def test_a_viewer_that_locks_new_files_disturbs_no_run(make_rig: MakeRig, seen: Seen):
    rig = make_rig()
    with viewer(rig.directory) as held:
        for number in range(N_RUNS):
            # A restart of the ids, which the file records, and few images, so that it is rewritten.
            images = [*images_of(range(500, 506)), *images_of(range(6))]
            assert_saved(rig.record(images, file_prefix=f"run{number}_"), images)
    assert len(held) > N_RUNS
    seen(f"{N_RUNS} runs perfect")


@pytest.fixture(scope="module")
def failing_flock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("needs a C compiler")
    directory = tmp_path_factory.mktemp("flock")
    (directory / "flock.c").write_text(FLOCK)
    library = directory / "flock.so"
    command = [compiler, "-shared", "-fPIC", "-D_GNU_SOURCE", "-o", library, directory / "flock.c", "-ldl"]
    subprocess.run(command, check=True)
    return library


@pytest.mark.fault(
    fault="file system without locks: flock fails with ENOLCK, EOPNOTSUPP or ENOTSUPP",
    state="every",
    promise="every run is perfect, and its files are read",
)
def test_a_file_system_without_locks_disturbs_no_run(
    make_deployment: Callable[..., Deployment], tmp_path: Path, failing_flock: Path, seen: Seen
):
    deployment = make_deployment(preloaded=False)
    directory = tmp_path / "without-locks"
    directory.mkdir()
    number = tmp_path / "number"
    number.write_text(str(errno.ENOLCK))
    deployment.env |= {
        "LD_PRELOAD": str(failing_flock),
        "FLOCK_FAILS_BELOW": str(directory),
        "FLOCK_ERRNO_FILE": str(number),
    }
    with Rig(deployment, directory) as rig:
        rig.start_driver("-m").start_writers()
        deployment.start("std_det_meta_writer_gf")
        images = [*images_of(range(500, 520)), *images_of(range(10))]
        for code in (errno.ENOLCK, errno.EOPNOTSUPP, ENOTSUPP):
            number.write_text(str(code))
            prefix = f"run{code}_"
            account = rig.record(images, file_prefix=prefix)
            assert_saved(account, images)
            master = Path(account["files"]["master"])
            for command in (
                ("info", rig.path(f"{prefix}0.h5")),
                ("aggregate", directory, "--prefix", prefix, "--overwrite"),
            ):
                done = deployment.run(deployment.stddaq, *command)
                assert done.wait(timeout=60) == 0, done.output
            with open_run(master) as run:
                assert run.n_images == 30
    seen("run perfect; info and aggregate read the files")
