"""The page about BEC works as described, with BEC's real servers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from support.processes.bec_servers import MOTOR, BecServers, is_complete
from support.processes.deployment import Deployment, wait_until
from support.processes.live_streams import start_live_stream

pytestmark = [pytest.mark.external, pytest.mark.timeout(600)]

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "use-it-from-bec.md"


def blocks(kind: str) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_a_detector_is_deployed_scanned_and_read_as_described(deployment: Deployment, tmp_path: Path):
    devices, scan, read = blocks("python")
    (yaml,) = blocks("yaml")
    _, url = deployment.start_driver()
    deployment.start_writers()
    stream = start_live_stream(deployment)
    simulate = (deployment.stddaq, "simulate", deployment.config_path, "--trigger", "--rate", 100)
    deployment.run(*simulate, "--wait-for-subscribers", 2, ready="ready")
    places = {
        "prefix: simulated ": f"prefix: {deployment.detector_name} ",
        "ws://127.0.0.1:8080": url,
        "tcp://127.0.0.1:20000": stream.address,
    }
    for old, new in places.items():
        assert old in yaml
        yaml = yaml.replace(old, new)
    beamline = BecServers(tmp_path, deployment.env, devices)
    beamline.assert_valid(yaml)
    with beamline as servers:
        servers.load(f"{MOTOR}{yaml}")
        servers.client.run(scan)
        wait_until(lambda: is_complete(servers.master(1)), 60, "BEC's file")
        assert '"/data/' in read
        names: dict[str, Any] = {}
        exec(read.replace('"/data/', f'"{servers.data}/'), names)
    assert names["images"].shape == (15, 32, 48)
