"""The driver repairs files that a killed writer did not close."""

from __future__ import annotations

import signal

import pytest
from support.assertions.accounts import check_run
from support.assertions.faults import SMALL, bring_to, record_under_load, wait_for_error
from support.processes.deployment import console_script
from support.processes.recording import MakeRig, read_raw_file
from support.tools.fault_table import Seen

from stddaq.client import DriverBusyError


@pytest.mark.slow
@pytest.mark.fault(
    fault="writers: one SIGKILL, one SIGSTOP; the driver is asked to repair the files",
    state="idle",
    promise="files without a writer become readable; a reason is given for the other; refused during a run",
)
def test_the_driver_repairs_the_files_of_its_last_run(make_rig: MakeRig, seen: Seen):
    rig = make_rig(**SMALL)
    assert rig.client.repair() == []
    published = bring_to(rig, "recording")
    rig.writers[0].send(signal.SIGSTOP)
    rig.writers[1].send(signal.SIGKILL)
    account, _ = wait_for_error(rig)
    hung, killed = account["files"]["raw"]
    assert account["reason"].endswith(f"`stddaq repair {hung} {killed}` makes its file readable")
    refused, repaired = rig.client.repair()
    assert f"got one written by process {rig.writers[0].pid}" in refused["reason"]
    assert repaired == {"path": killed, "n_images": 100, "n_cut": 0, "repaired": True, "reason": None}
    checked = check_run(account, published)
    assert checked.unclosed == ("file0.h5",)
    seen(f"file1.h5: {repaired['n_images']} images; file0.h5: written by process ...")

    rig.writers[0].kill()
    command = rig.deployment.run(console_script("stddaq"), "repair", "--run", "--url", rig.url)
    assert command.wait() == 0
    *results, limits = command.stdout
    assert results == [f"{hung}: repaired: 100 images", f"{killed}: nothing to repair: 100 images"]
    assert "not open for writing in a process that the driver can see; a writer that is stopped in" in limits
    assert check_run(account, published).unclosed == ()
    assert len(read_raw_file(rig.path("file0.h5"))[0]) == 100
    for i in range(2):
        rig.writers[i].wait()
        rig.restart_writer(i)
    rig.client.start(rig.directory, file_prefix="another")
    with pytest.raises(DriverBusyError, match="busy"):
        rig.client.repair()
    rig.end(stop=True)
    assert rig.client.repair() == []
    record_under_load(rig)
    seen("after its writer exited, file0.h5 too; next run perfect")
