"""The metadata writer is killed or hangs."""

from __future__ import annotations

import signal
from typing import Any

import h5py
import pytest
from support.assertions.accounts import check_run, opens_plainly
from support.assertions.faults import (
    KILL_OR_STOP,
    SMALL,
    State,
    bring_to,
    first_sentence,
    record_under_load,
    wait_for_error,
)
from support.processes.deployment import wait_until
from support.processes.recording import MakeRig, Rig
from support.tools.fault_table import Seen

from stddaq.files.opening import open_file
from stddaq.files.repair import repair


def n_flushed(rig: Rig) -> int:
    """Return the number of rows that other processes can read in the metadata file."""
    with open_file(rig.path("fileMeta.h5"), allow_unclosed=True) as opened:
        rows = opened.file[f"{rig.deployment.detector_name}/metadata"]
        assert isinstance(rows, h5py.Dataset)
        return len(rows)


@pytest.mark.fault(
    fault="metadata writer: {how}",
    state="{state}",
    promise="error within 2 s that names it; the raw files are complete; it takes part in the next run",
)
@pytest.mark.parametrize("state", ["waiting_for_first_image", "recording"])
@pytest.mark.parametrize("how", KILL_OR_STOP)
def test_a_metadata_writer_that_dies_or_hangs_is_named_and_the_raw_files_are_complete(
    make_rig: MakeRig, how: signal.Signals, state: State, seen: Seen
):
    rig = make_rig(driver=["-m"], **SMALL)
    metadata_writer = rig.deployment.start("std_det_meta_writer_gf")
    published = bring_to(rig, state)
    # The driver counts images when their pixels are readable; their metadata rows may follow later.
    wait_until(lambda: n_flushed(rig) == len(published), what="the metadata rows of all images")
    metadata_writer.send(how)
    account, seconds = wait_for_error(rig)
    seen(f"error after {seconds:.2f} s: {first_sentence(account)}")
    assert "meta" in account["reason"]
    checked = check_run(account, published)
    assert (checked.n_good, checked.unclosed) == (len(published), ())
    path = rig.path("fileMeta.h5")
    if how == signal.SIGKILL:
        metadata_writer.wait()
        rig.deployment.start("std_det_meta_writer_gf")
        if published:
            assert repair(path).n_images == len(published)
    else:
        metadata_writer.send(signal.SIGCONT)
        wait_until(lambda: not path.exists() or opens_plainly(path), what="the file of the stopped writer")
    if published:
        assert ids_of(rig) == [image.image_id for image in published]
        seen(f"{checked}, all their metadata readable")
    assert rig.account() == account
    record_under_load(rig)
    seen("next run perfect")


def ids_of(rig: Rig) -> list[int]:
    with h5py.File(rig.path("fileMeta.h5")) as file:
        rows: Any = file[f"{rig.config.detector_name}/metadata"]
        return rows["image_id"].tolist()
