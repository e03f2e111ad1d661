"""The services that `stddaq up` starts for a configuration."""

from __future__ import annotations

import pytest
from support.processes.deployment import Deployment

from stddaq.cli.supervisor.commands import Commands
from stddaq.config import DetectorConfig

PREVIEW, OF_FILTER = ("preview", ""), ("preview filter", "filter")


@pytest.mark.parametrize(
    ("services", "previews"),
    [
        (["std_gf_filter"], []),
        (["stddaq-rest"], [PREVIEW]),
        (["stddaq-rest", "std_gf_filter"], [PREVIEW, OF_FILTER]),
        (["stddaq-rest", "std_gf_filter", "std_preview --source_suffix=filter --hz 5"], [OF_FILTER, PREVIEW]),
        (["stddaq-rest", "std_preview -s blosc2"], [("preview blosc2", "blosc2"), PREVIEW]),
    ],
)
def test_the_page_has_a_preview_service_for_each_stream(
    deployment: Deployment, services: list[str], previews: list[tuple[str, str]]
) -> None:
    config = DetectorConfig.parse(deployment.config | {"services": services})
    requested = Commands(config, str(deployment.config_path), "tcp://127.0.0.1:1").requested()
    found = [service for service in requested if service.program == "std_preview"]
    assert [(service.name, service.instance_id) for service in found] == previews
    addresses = {service.name: service.address for service in found}
    for name, instance in previews:
        assert addresses[name].endswith(f"{deployment.detector_name}-preview{instance and '-'}{instance}")
