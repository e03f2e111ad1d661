"""The BEC device, step by step as BEC's device server calls it, with real driver and writers."""

from __future__ import annotations

import inspect
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.peers.cpp_driver import start_cpp_driver
from support.processes.bec_device import BecCamera, wait_for
from support.processes.deployment import Deployment, free_port, wait_until
from support.processes.live_streams import start_live_stream
from support.processes.recording import REPOSITORY, Rig, assert_master_file_holds, images_of

from stddaq.client import DriverUnreachableError
from stddaq_ophyd.core.errors import AcquisitionError, AcquisitionStoppedError

MakeCamera = Callable[..., BecCamera]


def fails(status: Any, match: str, kind: type[Exception] = AcquisitionError) -> None:
    """Wait for a Status, which must fail."""
    with pytest.raises(kind, match=match):
        wait_for(status)


def assert_next_scan_is_right(camera: BecCamera, number: int = 2) -> None:
    """Do a scan as BEC does after any other, and compare its images."""
    if camera.device.staged:
        wait_for(camera.device.unstage())
    n = len(camera.points.published)
    camera.start(number, frames=2, num_points=2)
    for _ in range(2):
        wait_for(camera.device.trigger())
    wait_for(camera.device.complete())
    assert_master_file_holds(camera.master(number), camera.points.published[n:])
    assert len(camera.points.published[n:]) == 4


@pytest.mark.slow
def test_a_scan_records_the_images_of_its_triggers(camera: BecCamera):
    device = camera.device
    camera.start(frames=3, num_points=4)
    assert camera.wait_for_file_event(done=False).file_path == str(camera.link())
    for n in (3, 6, 9, 12):
        wait_for(device.trigger())
        assert camera.read("n_images") == n
    wait_for(device.complete())
    assert_master_file_holds(camera.master(), camera.points.published)
    assert camera.rig.client.latest.status == "idle"
    wait_for(device.unstage())

    event = camera.wait_for_file_event(done=True)
    assert (event.file_path, event.successful) == (str(camera.link()), True)
    assert_master_file_holds(camera.link(), camera.points.published)
    assert event.hinted_h5_entries == {"data": "/entry/data/data"}
    last = camera.received("progress")[-1]
    assert (last.value, last.max_value, last.done) == (12, 12, True)
    assert_next_scan_is_right(camera)


def test_the_reference_lists_all_settings():
    from stddaq_bec.camera import StdDaqCamera

    page = (REPOSITORY / "docs" / "reference" / "bec.md").read_text()
    table = page.partition("## Signals")[0]
    listed = re.findall(
        r"`(\w+)`", " ".join(line.split("|")[1] for line in table.splitlines() if "|" in line)
    )
    given_by_bec = {"prefix", "name", "scan_info", "device_manager", "kwargs"}
    assert set(listed) == set(inspect.signature(StdDaqCamera).parameters) - given_by_bec


def test_steps_of_a_device_that_is_not_staged_do_nothing(camera: BecCamera):
    device = camera.device
    assert device.pre_scan() is None
    wait_for(device.complete())
    wait_for(device.unstage())
    device.stop()
    with pytest.raises(
        AcquisitionError, match="gf: trigger: expected a run, which pre_scan starts, got none"
    ):
        device.trigger()


def test_kickoff_starts_the_run_only_if_pre_scan_did_not(camera: BecCamera):
    camera.prepare()
    wait_for(camera.device.kickoff())
    run = camera.rig.client.status().run_id
    assert run is not None
    wait_for(camera.device.kickoff())
    assert camera.rig.client.status().run_id == run


def test_a_device_loads_without_its_driver_unless_that_is_required(make_camera: MakeCamera):
    url = f"ws://127.0.0.1:{free_port()}"
    camera = make_camera(driver_url=url)
    assert camera.device.driver_state()["status"] == "unreachable"
    camera.prepare()
    fails(camera.device.pre_scan(), f"gf: cannot start a run: {url}: no driver accepts connections there")
    with pytest.raises(DriverUnreachableError):
        make_camera(driver_url=url, require_driver=True)


def test_the_state_of_the_driver_is_plain_data(camera: BecCamera):
    assert camera.device.driver_state() == {"status": "idle", "count": None, "reason": None}
    camera.start()
    assert camera.device.driver_state()["status"] == "waiting_for_first_image"


def test_a_token_of_the_url_is_not_shown(make_camera: MakeCamera):
    camera = make_camera(driver_url=f"ws://any:secret@127.0.0.1:{free_port()}")
    camera.prepare()
    with pytest.raises(AcquisitionError) as failed:
        wait_for(camera.device.pre_scan())
    assert "secret" not in f"{failed.value} {camera.device.driver_state()} {vars(failed.value)}"


@pytest.mark.slow
def test_a_trigger_without_its_images_fails_and_ends_the_run(make_camera: MakeCamera):
    camera = make_camera(image_timeout=3)
    camera.start(frames=3, num_points=2)
    wait_for(camera.device.trigger())
    camera.points.n_held_back = 1
    fails(camera.device.trigger(), r"gf: .*trigger: expected 3 images within \S+ s, got 2")
    camera.rig.client.wait(("idle",), 20)
    assert not camera.wait_for_file_event(done=True).successful
    camera.points.n_held_back = 0
    assert_next_scan_is_right(camera)


def test_stop_returns_while_the_driver_hangs_and_ends_the_run(camera: BecCamera):
    camera.start(num_points=2)
    camera.points.n_held_back = 1
    status = camera.device.trigger()
    camera.rig.driver.send(signal.SIGSTOP)
    elapsed = []
    for _ in range(5):
        begin = time.monotonic()
        camera.device.stop()
        elapsed.append(time.monotonic() - begin)
    assert not status.done
    camera.rig.driver.send(signal.SIGCONT)
    # A client waits at least 5 s for a driver that hangs. BEC delivers no message meanwhile; a busy machine
    # delays some calls.
    assert max(elapsed) < 4
    assert min(elapsed) < 0.05
    fails(status, "stopped after 0 images", AcquisitionStoppedError)
    camera.rig.client.wait(("idle",), 20)
    assert not camera.wait_for_file_event(done=True).successful


def test_after_stop_the_next_scan_has_only_its_own_images(camera: BecCamera):
    camera.start(frames=2, num_points=2)
    wait_for(camera.device.trigger())
    camera.device.stop()
    assert_next_scan_is_right(camera)
    assert_master_file_holds(camera.master(), camera.points.published[:2])


def test_stop_may_come_from_several_threads_at_once(camera: BecCamera):
    camera.start()
    camera.points.n_held_back = 1
    status = camera.device.trigger()
    threads = [threading.Thread(target=camera.device.stop) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fails(status, "stopped", AcquisitionStoppedError)
    camera.points.n_held_back = 0
    assert_next_scan_is_right(camera)


@pytest.mark.slow
def test_stop_ends_a_run_that_is_being_started(make_camera: MakeCamera):
    camera = make_camera(rig={"writers": False})
    camera.prepare()
    status = camera.device.pre_scan()
    camera.rig.client.wait_for(lambda latest: latest.is_busy, 20)
    camera.device.stop()
    fails(status, "gf: cannot start a run: stopped after 0 images", AcquisitionStoppedError)
    camera.rig.client.wait(("idle",), 20)
    wait_for(camera.device.unstage())
    camera.rig.start_writers()
    assert_next_scan_is_right(camera)


def test_a_stopped_scan_is_referenced_by_a_file_that_exists_already(camera: BecCamera):
    camera.start()
    wait_for(camera.device.trigger())
    # BEC looks for the file when it aborts the scan, maybe before the driver has ended the run.
    assert Path(camera.wait_for_file_event(done=False).file_path).exists()
    camera.device.stop()
    camera.wait_for_file_event(done=True)
    assert_master_file_holds(camera.link(), camera.points.published)


def test_staging_again_ends_the_run_of_a_scan_that_was_not_completed(camera: BecCamera):
    camera.start()
    wait_for(camera.device.trigger())
    wait_for(camera.device.unstage())
    assert camera.rig.client.status().status == "idle"
    assert_next_scan_is_right(camera)


def test_a_camera_that_fails_is_named_and_stopped(camera: BecCamera):
    calls: list[str] = []

    class Camera:
        def fire(self, n_images: int) -> None:
            calls.append("fire")
            raise OSError("no power")

        def stop(self) -> None:
            calls.append("stop")

    camera.device.camera = Camera()  # pyright: ignore[reportAttributeAccessIssue]
    camera.start()
    # It may still take images of an earlier scan.
    assert calls == ["stop"]
    fails(camera.device.trigger(), "gf: the images of a trigger are not recorded: the camera .*: no power")
    camera.rig.client.wait(("idle",), 20)
    camera.device.camera = camera.points  # pyright: ignore[reportAttributeAccessIssue]
    assert_next_scan_is_right(camera)
    assert calls == ["stop", "fire"]


@pytest.mark.parametrize("method", ["fire", "stop"])
def test_stop_does_not_wait_for_a_camera_that_hangs(
    camera: BecCamera, monkeypatch: pytest.MonkeyPatch, method: str
):
    monkeypatch.setattr("stddaq_ophyd.core.camera.STOP_TIMEOUT_S", 0.2)
    entered, hung = threading.Event(), threading.Event()

    class Camera:
        def fire(self, n_images: int) -> None:
            self._hang("fire")

        def stop(self) -> None:
            self._hang("stop")

        def _hang(self, what: str) -> None:
            if what == method:
                entered.set()
                hung.wait(60)

    camera.device.camera = Camera()  # pyright: ignore[reportAttributeAccessIssue]
    camera.prepare(num_points=2)
    # A camera is stopped before the first image.
    status = camera.device.pre_scan()
    if method == "fire":
        wait_for(status)
        status = camera.device.trigger()
    assert entered.wait(20)
    camera.device.stop()
    fails(status, "stopped", AcquisitionStoppedError)
    camera.rig.client.wait(("idle",), 20)
    camera.device.camera = camera.points  # pyright: ignore[reportAttributeAccessIssue]
    assert_next_scan_is_right(camera)
    hung.set()


def test_a_killed_driver_fails_the_trigger_by_name(camera: BecCamera):
    camera.start(num_points=2)
    wait_for(camera.device.trigger())
    camera.points.skip_calls = {2}
    camera.points.on_skip = camera.rig.driver.kill
    fails(camera.device.trigger(), f"gf: .*driver closed the connection.*driver {camera.rig.url}")
    fails(camera.device.complete(), "gf: ")
    wait_for(camera.device.unstage())


class Alarms:
    """Stands in for BEC's device manager, and receives alarms."""

    def __init__(self) -> None:
        self.connector = self
        self.texts: list[str] = []

    def raise_alarm(self, severity: Any, info: Any) -> None:
        assert severity.name == "WARNING"
        self.texts.append(info.compact_error_message)

    def wait_for(self, text: str) -> None:
        wait_until(lambda: any(text in alarm for alarm in self.texts), 20, f"{text} in {self.texts}")


def test_a_run_that_fails_between_two_steps_raises_an_alarm(make_camera: MakeCamera):
    alarms = Alarms()
    camera = make_camera(device_manager=alarms)
    camera.start(num_points=2)
    wait_for(camera.device.trigger())
    camera.rig.driver.kill()
    alarms.wait_for("gf: the run ended: ")
    assert not camera.wait_for_file_event(done=True).successful
    fails(camera.device.trigger(), "gf: the run ended: ")


def test_bad_images_raise_an_alarm_at_the_end(make_camera: MakeCamera):
    alarms = Alarms()
    camera = make_camera(device_manager=alarms)
    camera.points.damaged = {2}
    camera.start(frames=4)
    wait_for(camera.device.trigger())
    wait_for(camera.device.complete())
    alarms.wait_for("gf: 1 of 4 images are bad")


def test_a_driver_in_cpp_records_scans_and_the_device_makes_their_master_file(
    deployment: Deployment, directory: Path
):
    _, url = start_cpp_driver(deployment)
    with Rig(deployment, directory) as rig:
        rig.url = url
        rig.wait_for_subscription()
        camera = BecCamera(rig)
        try:
            camera.start(frames=3, num_points=2)
            for _ in range(2):
                wait_for(camera.device.trigger())
            wait_for(camera.device.complete())
        finally:
            camera.device.destroy()
        assert_master_file_holds(camera.master(), camera.points.published)
        assert camera.wait_for_file_event(done=True).successful


def test_the_run_of_another_client_is_not_ended(camera: BecCamera):
    camera.rig.begin()
    camera.prepare()
    fails(camera.device.pre_scan(), "gf: cannot start a run: .*`stddaq stop --url .*` ends the run")
    assert camera.rig.client.status().is_busy
    camera.rig.client.stop()
    camera.rig.client.wait(("idle",), 20)
    assert_next_scan_is_right(camera)


def test_a_run_that_another_client_ends_fails(camera: BecCamera):
    camera.start(num_points=2)
    wait_for(camera.device.trigger())
    camera.rig.client.stop()
    camera.rig.client.wait(("idle",), 20)
    fails(camera.device.trigger(), "gf: .*another client ended the run")
    fails(camera.device.complete(), "gf: .*another client ended the run")
    assert_next_scan_is_right(camera)


def test_a_scan_number_that_exists_is_refused_with_the_reason(camera: BecCamera):
    camera.start()
    wait_for(camera.device.complete())
    wait_for(camera.device.unstage())
    camera.prepare()
    fails(camera.device.pre_scan(), r"S00001_gf_.*BEC's scan numbers restart")


def test_images_of_a_hardware_trigger_are_waited_for(camera: BecCamera):
    camera.start(scan_type="hardware_triggered", num_points=20)
    images = images_of(range(20))
    source = threading.Thread(target=camera.rig.publish, args=(images, 0.01))
    source.start()
    wait_for(camera.device.complete())
    source.join()
    assert_master_file_holds(camera.master(), images)


def test_a_hardware_trigger_may_give_fewer_images_than_bec_expects(camera: BecCamera):
    camera.start(scan_type="hardware_triggered", num_points=20)
    images = images_of(range(15))
    camera.rig.publish(images)
    wait_for(camera.device.complete())
    assert_master_file_holds(camera.master(), images)


@pytest.mark.slow
def test_exact_images_end_the_run_or_fail(make_camera: MakeCamera):
    camera = make_camera(exact_images=True, image_timeout=3)
    camera.start(scan_type="hardware_triggered", num_points=20)
    camera.rig.publish(images_of(range(25)))
    camera.rig.client.wait(("idle",), 20)
    wait_for(camera.device.complete())
    wait_for(camera.device.unstage())
    assert_master_file_holds(camera.master(), images_of(range(20)))

    camera.start(2, scan_type="hardware_triggered", num_points=20)
    camera.rig.publish(images_of(range(100, 119)))
    fails(camera.device.complete(), "gf: complete: expected 20 images, got 19")


def test_bad_images_are_counted_and_the_file_is_not_called_successful(camera: BecCamera):
    camera.start(frames=4)
    camera.points.damaged = {2}
    wait_for(camera.device.trigger())
    assert (camera.read("n_images"), camera.read("n_bad")) == (4, 1)
    wait_for(camera.device.complete())
    assert not camera.wait_for_file_event(done=True).successful


def test_progress_comes_ten_times_a_second_at_most(camera: BecCamera):
    camera.start(scan_type="hardware_triggered", num_points=400)
    begin = time.monotonic()
    camera.rig.publish(images_of(range(400)), 0.001)
    wait_for(camera.device.complete())
    wait_until(lambda: camera.received("progress") and camera.received("progress")[-1].done)
    elapsed = time.monotonic() - begin
    # The first and the last one come at any time.
    assert len(camera.received("progress")) <= 10 * elapsed + 2


def test_the_driver_sees_the_directory_of_bec_under_another_name(make_camera: MakeCamera, tmp_path: Any):
    # The rig's directory is `files`.
    (tmp_path / "other").symlink_to(tmp_path / "files")
    camera = make_camera(read_root=str(tmp_path / "files"), write_root=str(tmp_path / "other"))
    assert_next_scan_is_right(camera)
    raw = camera.rig.account()["files"]["raw"]
    assert raw[0].startswith(str(tmp_path / "other"))


def test_previews_come_without_a_scan_until_they_are_switched_off(make_camera: MakeCamera):
    camera = make_camera(preview_period=0.01, preview_pixels=400)
    stream = start_live_stream(camera.rig.deployment)
    camera.device.set_live_stream(stream.address)
    stream.process.wait_for_line(" subscribed")
    assert camera.rig.source.wait_for_subscribers(2, 10)
    camera.rig.publish(images_of(range(1)))
    wait_until(lambda: camera.received("preview"), what="a preview")
    preview = camera.received("preview")[0]
    assert (preview.data.shape, preview.metadata["image_id"]) == ((16, 24), 0)
    pixels = images_of(range(1))[0].pixels.reshape(16, 2, 24, 2).mean(axis=(1, 3)).astype("<u2")
    assert np.array_equal(preview.data, pixels)
    camera.device.set_live_stream(None)
    assert not [t for t in threading.enumerate() if stream.address in t.name]


def test_a_device_that_is_removed_during_a_run_leaves_the_driver_idle(make_camera: MakeCamera):
    camera = make_camera()
    camera.start()
    camera.points.n_held_back = 1
    status = camera.device.trigger()
    camera.device.destroy()
    fails(status, "stopped", AcquisitionStoppedError)
    camera.rig.client.wait(("idle",), 20)
    wait_until(lambda: "recording of gf" not in [thread.name for thread in threading.enumerate()])
