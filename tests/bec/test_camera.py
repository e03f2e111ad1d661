"""The BEC device, step by step as BEC's device server calls it, with real driver and writers."""

from __future__ import annotations

from support.processes.bec_device import BecCamera, wait_for
from support.processes.recording import assert_master_file_holds


def test_a_scan_records_the_images_of_its_triggers(camera: BecCamera):
    device = camera.device
    camera.start(frames=3, num_points=4)
    for n in (3, 6, 9, 12):
        wait_for(device.trigger())
        assert camera.read("n_images") == n
    wait_for(device.complete())
    assert_master_file_holds(camera.master(), camera.points.published)
    assert camera.rig.client.latest.status == "idle"
    wait_for(device.unstage())
    event = camera.wait_for_file_event(done=True)
    assert (event.file_path, event.successful) == (str(camera.master()), True)
