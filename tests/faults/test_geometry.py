"""During a run a service starts whose configuration gives the ring another geometry."""

from __future__ import annotations

import pytest
from support.assertions.accounts import check_perfect
from support.processes.recording import MakeRig, Publishing
from support.tools.fault_table import Seen


@pytest.mark.fault(
    fault="start of a service with another ring geometry",
    state="recording, under load",
    promise="it refuses to start and names both sizes; the ring keeps its size; the run is perfect",
)
@pytest.mark.parametrize("height", [16, 64])
def test_a_service_with_another_geometry_is_refused_and_does_not_disturb_the_run(
    make_rig: MakeRig, height: int, seen: Seen
):
    rig = make_rig()
    with Publishing(rig) as source:
        rig.client.start(rig.directory, n_image=300)
        rig.client.wait_until_ready(60)
        with source.spared():
            due = source.next_id + 1
            rig.wait_for_count(50)
            rig.deployment.write_config(image_pixel_height=height, number_of_writers=3)
            refused = rig.deployment.start("std_det_writer", 2, ready=None)
            assert refused.wait() == 2
            (line,) = refused.stderr
            # The size of a ring is rounded up to pages of 2 MiB.
            assert f"got a ring of 1000 slots of 3072 bytes (32x48, dtype 2), {4 * 2**20} bytes" in line
            assert f"expected 1000 slots of {height * 96} bytes ({height}x48" in line
            rig.client.wait_until_saved(60)
        checked = check_perfect(rig.account(), source.images[:], due=due)
    said = line.split(": ", 3)[-1].split(";")[0]
    seen(f"exit code 2: {said}; file_saved: {checked}")
