"""The page about dranspose. `streaming/test_dranspose.py` executes its commands, with dranspose."""

from __future__ import annotations

import json

from support.processes.deployment import free_port
from support.processes.live_streams import LiveStreamService
from support.processes.page_session import PageSession
from support.processes.recording import Rig, images_of
from support.processes.run_streams import Consumer


def test_a_run_is_sent_as_described(rig: Rig) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    with PageSession("docs/how-to/process-runs-live.md") as page:
        page.places = {"tcp://127.0.0.1:20002": address}
        settings = json.loads(f"{{{page.take('live_stream_configs')}}}")
        # They are executed with dranspose.
        page.take("dranspose.controller")
        page.take("--n-images")
    (service,) = settings["services"]
    rig.deployment.write_config(live_stream_configs=settings["live_stream_configs"])
    program, *arguments = service.split()
    stream = LiveStreamService(rig.deployment.start(program, *arguments, "--url", rig.url), address)
    assert rig.source.wait_for_subscribers(2, 20)
    with Consumer(stream) as consumer:
        rig.record(images_of(range(10)))
        assert len(consumer.receive_series()) == 12
