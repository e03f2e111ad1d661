"""The page about BEC works as described, with BEC's real servers."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.processes.bec_servers import MOTOR, BecServers, is_complete
from support.processes.deployment import Deployment, free_port, wait_until
from support.processes.page_session import PageSession

pytestmark = [pytest.mark.external, pytest.mark.timeout(600)]


def test_a_detector_is_deployed_scanned_and_read_as_described(deployment: Deployment, tmp_path: Path):
    port, stream = free_port(), f"tcp://127.0.0.1:{free_port()}"
    deployment.write_config(live_stream_configs={stream: {"type": "forward", "config": []}})
    with PageSession("docs/how-to/use-it-from-bec.md", deployment, tmp_path / "here") as page:
        page.places = {
            "-m --allowed-root /data": f"--port {port} -m --allowed-root {tmp_path}",
            "prefix: simulated ": f"prefix: {deployment.detector_name} ",
            "ws://127.0.0.1:8080": f"ws://127.0.0.1:{port}",
            "tcp://127.0.0.1:20000": stream,
            '"/data/': f'"{tmp_path / "data"}/',
        }
        devices = page.take("stddaq_bec.camera")
        page.start("stddaq up", "all services ready")
        yaml = page.take("deviceConfig")
        beamline = BecServers(tmp_path, deployment.env, devices)
        beamline.assert_valid(yaml)
        with beamline as servers:
            servers.load(f"{MOTOR}{yaml}")
            servers.client.run(page.take("line_scan"))
            wait_until(lambda: is_complete(servers.master(1)), 60, "BEC's file")
            names = page.python("h5py.File", {})
    assert names["images"].shape == (15, 32, 48)
