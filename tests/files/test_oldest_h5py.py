"""stddaq works with the oldest h5py that it allows, whose HDF5 is older than that of this environment."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import pytest
from support.data.raw_files import stream, write_run
from support.peers.oldest_h5py import oldest_h5py, run_python
from support.processes.recording import REPOSITORY, MakeRig, assert_saved, images_of

from stddaq.files.growing_run import GrowingFiles, in_order
from stddaq.files.nexus import IMAGE_METADATA
from stddaq.files.published_images import CAN_PREPARE, PublishedImagesFile

pytestmark = pytest.mark.external


def test_it_is_the_lower_bound_of_the_dependency():
    bound = re.search(r'"h5py>=([0-9.]+)"', (REPOSITORY / "pyproject.toml").read_text())
    assert bound
    version = run_python("-c", "import h5py; print(h5py.__version__)", timeout=30.0).strip()
    assert (version + ".").startswith(bound[1] + ".")
    assert version != h5py.__version__


# Of what writes files by h5py, and reads them.
TESTS = {
    "tests/files": (
        "export",
        "growing_run",
        "master_file",
        "nexus",
        "nxmx",
        "published_images",
        "raw_rows",
        "reading",
        "repair",
        "run_files",
        "swmr",
        "virtual_images",
    ),
    "tests/faults": ("repair",),
    "tests/writing": ("compressed_sources", "reading_while_writing"),
}


@pytest.mark.parametrize("directory", TESTS)
@pytest.mark.timeout(400)
def test_it_passes_the_tests_that_write_read_and_repair(directory: str, tmp_path: Path):
    report = run_python(
        *(
            "-m",
            "pytest",
            "-q",
            "-n",
            0,
            "-m",
            "not external",
            f"--basetemp={tmp_path / 'inner'}",
        ),
        *("-p", "no:cacheprovider"),
        *(REPOSITORY / directory / f"test_{name}.py" for name in TESTS[directory]),
        timeout=380.0,
    )
    assert re.search(r"\d+ passed", report)
    assert "failed" not in report


def test_what_it_writes_is_read_by_the_h5py_of_this_environment(make_rig: MakeRig):
    rig = make_rig(driver=["-m"], preloaded=False, env=oldest_h5py())
    rig.deployment.start("std_det_meta_writer_gf")
    for writer in rig.writers:
        assert "oldest-h5py" in libraries(writer.pid)
    # More gaps than a master file maps one by one.
    images = images_of(i for i in range(1000) if i % 7 < 3 or i % 11 < 2)
    assert_saved(rig.record(images), images)


def test_what_the_h5py_of_this_environment_writes_is_read_by_it(make_rig: MakeRig):
    rig = make_rig()
    images = images_of(i for i in range(1000) if i % 7 < 3 or i % 11 < 2)
    assert_saved(rig.record(images), images)
    read = """
import sys
from support.processes.recording import assert_master_file_holds, assert_raw_files_hold, images_of
from pathlib import Path
images = images_of(i for i in range(1000) if i % 7 < 3 or i % 11 < 2)
directory = Path(sys.argv[1])
assert_raw_files_hold([directory / "file0.h5", directory / "file1.h5"], images)
assert_master_file_holds(directory / "fileMaster.h5", images)
"""
    program = f"import sys; sys.path.insert(0, {str(REPOSITORY / 'tests')!r})\n{read}"
    run_python("-c", program, rig.directory, timeout=60.0)


@pytest.mark.skipif(not CAN_PREPARE, reason="HDF5 1.14 cannot prepare files")
@pytest.mark.parametrize("swmr", [False, True])
def test_a_prepared_published_images_file_is_read_by_it(tmp_path: Path, swmr: bool):
    write_run(tmp_path, stream(range(12)))
    files = GrowingFiles([tmp_path / "file0.h5", tmp_path / "file1.h5"])
    images = in_order(files.files, (0, 0), files.ids((0, 0), (6, 6)))
    assert images is not None
    published = PublishedImagesFile(tmp_path / "Published.h5")
    for i in range(12):
        published.prepare(1)
        published.extend(images[i : i + 1])
        published.write(live=True)
    opened = f"h5py.File({str(published.path)!r}, swmr={swmr})"
    read = f"import h5py; print({opened}[{IMAGE_METADATA!r}]['image_id'].tolist())"
    shown = run_python("-c", read, timeout=30.0)
    assert shown.strip() == str(list(range(12)))


def libraries(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()
