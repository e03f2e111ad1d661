"""Services load neither NumPy, if they pass images on as bytes, nor pydantic: 6 and 11 MB of memory.

OpenSSL takes another half.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.processes.live_streams import start_live_stream, subscribed
from support.processes.recording import MakeRig, assert_saved, images_of


@pytest.mark.slow
def test_services_of_uncompressed_images_load_few_libraries(make_rig: MakeRig) -> None:
    rig = make_rig(number_of_writers=1, preloaded=False)
    stream = start_live_stream(rig.deployment)
    assert rig.source.wait_for_subscribers(2, 60)
    images = images_of(range(3))
    with subscribed(stream) as viewer:
        assert_saved(rig.record(images), images)
        for image in images:
            assert viewer.receive()[1] == image.pixels.tobytes()
    for service, expected in ((rig.driver, []), (stream.process, []), (rig.writers[0], ["numpy"])):
        mapped = Path(f"/proc/{service.pid}/maps").read_text()
        assert [name for name in ("numpy", "pydantic_core") if f"/{name}/" in mapped] == expected
    assert "/libcrypto" not in Path(f"/proc/{stream.process.pid}/maps").read_text()
