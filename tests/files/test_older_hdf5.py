"""An HDF5 library that is years older reads rows and pixels of every file that stddaq writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.data.raw_files import RunSpec, pixels, stream, write_run
from support.peers.debian_hdf5 import DebianHdf5
from support.processes.deployment import wait_until
from support.processes.recording import MakeRig, Rig, assert_saved, images_of

from stddaq.client import RunFailedError
from stddaq.files.master_file import create_master_file
from stddaq.files.repair import repair
from stddaq.files.virtual import MAX_SINGLE_STRETCHES


@pytest.fixture
def debian() -> DebianHdf5:
    return DebianHdf5()


@pytest.mark.external
def test_raw_metadata_and_master_files_are_read_by_an_older_hdf5(make_rig: MakeRig, debian: DebianHdf5):
    rig = make_rig(driver=["-m"])
    rig.deployment.start("std_det_meta_writer_gf")
    images = images_of([*range(7), *range(10, 25)])
    assert_saved(rig.record(images), images)
    raw, meta, master = debian.read(rig.path("file0.h5"), rig.path("fileMeta.h5"), rig.path("fileMaster.h5"))
    group = rig.deployment.detector_name
    even = [image for image in images if image.image_id % 2 == 0]
    assert raw[f"{group}/metadata"]["image_id"] == [image.image_id for image in even]
    assert raw[f"{group}/metadata"]["status"] == [1] * len(even)
    np.testing.assert_array_equal(raw[f"{group}/data"], [image.pixels for image in even])
    assert meta[f"{group}/metadata"]["image_id"] == [image.image_id for image in images]
    np.testing.assert_array_equal(master["entry/data/data"], [image.pixels for image in images])
    assert master["entry/data/image_id"] == [image.image_id for image in images]
    assert '"image_id"' in debian.dump(rig.path("file0.h5"), "-d", f"/{group}/metadata")


@pytest.mark.external
def test_a_repaired_file_is_read_by_an_older_hdf5(rig: Rig, debian: DebianHdf5):
    images = images_of(range(20))
    rig.begin()
    rig.publish(images)
    rig.wait_for_count(20)
    rig.writers[0].kill()
    with pytest.raises(RunFailedError):
        rig.client.wait_until_saved(60)
    path = rig.path("file0.h5")
    wait_until(lambda: repair(path).n_images == 10, 60.0, "repaired file")
    (raw,) = debian.read(path)
    group = rig.deployment.detector_name
    np.testing.assert_array_equal(raw[f"{group}/data"], [image.pixels for image in images[::2]])


@pytest.mark.external
@pytest.mark.parametrize("n_writers", [1, 2])
def test_a_master_file_with_many_gaps_is_read_by_an_older_hdf5(
    tmp_path: Path, debian: DebianHdf5, n_writers: int
):
    """More gaps than it maps one by one: HDF5 stores unions of hyperslabs."""
    images = stream([i for i in range(4 * MAX_SINGLE_STRETCHES * 7) if i % 7 < 3 or i % 11 < 2])
    spec = RunSpec(n_writers=n_writers, metadata_file=True)
    raw, meta = write_run(tmp_path, images, spec), tmp_path / "fileMeta.h5"
    made = create_master_file(tmp_path / "fileMaster.h5", raw, metadata_file=meta)
    assert made.n_gaps > 2 * MAX_SINGLE_STRETCHES
    assert made.n_mappings < made.n_gaps / 10
    (master,) = debian.read(made.path)
    ids = [image.image_id for image in images]
    np.testing.assert_array_equal(master["entry/data/data"], pixels(images))
    assert master["entry/data/metadata"]["image_id"] == ids
    assert master["entry/instrument/detector/metadata"]["image_id"] == ids


def test_every_file_is_written_in_the_stated_format(rig: Rig):
    images = images_of(range(8))
    assert_saved(rig.record(images), images)
    for name in ("file0.h5", "fileMaster.h5"):
        assert (
            superblock_version(rig.path(name)) == 3
        )  # Version 3 is that of HDF5 1.10; HDF5 2.0 would write 4 or more.


def superblock_version(path: Path) -> int:
    with path.open("rb") as file:
        return file.read(9)[8]
