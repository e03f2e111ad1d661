"""Services that pass images on as bytes do not load NumPy, which takes 6 MB of memory."""

from __future__ import annotations

from pathlib import Path

from support.processes.live_streams import start_live_stream, subscribed
from support.processes.recording import MakeRig, assert_saved, images_of


def test_driver_and_live_stream_of_uncompressed_images_load_no_numpy(make_rig: MakeRig) -> None:
    rig = make_rig(number_of_writers=1, preloaded=False)
    stream = start_live_stream(rig.deployment)
    assert rig.source.wait_for_subscribers(2, 60)
    images = images_of(range(3))
    with subscribed(stream) as viewer:
        assert_saved(rig.record(images), images)
        for image in images:
            assert viewer.receive()[1] == image.pixels.tobytes()
    for service, is_loaded in ((rig.driver, False), (stream.process, False), (rig.writers[0], True)):
        assert ("/numpy/" in Path(f"/proc/{service.pid}/maps").read_text()) == is_loaded
