"""Statistics in InfluxDB's line protocol: a real InfluxDB accepts the lines of every service."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.peers.redis_server import RedisServer
from support.processes.deployment import Deployment, Service, free_port, wait_until
from support.processes.other_services import start_other_services

from stddaq.daemon.line_protocol import line_protocol

pytestmark = pytest.mark.external

CONFIGURATION = """\
reporting-disabled = true
bind-address = "127.0.0.1:{backup_port}"
[meta]
dir = "{directory}/meta"
[data]
dir = "{directory}/data"
wal-dir = "{directory}/wal"
[http]
bind-address = "127.0.0.1:{port}"
log-enabled = false
[monitor]
store-enabled = false
"""


class InfluxDB:
    """A real InfluxDB server with the database `stddaq`."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def _request(self, path: str, body: str | None = None, **parameters: str) -> bytes:
        url = f"{self._url}/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, None if body is None else body.encode(), timeout=10) as answer:
            return answer.read()

    def is_up(self) -> bool:
        try:
            self._request("ping")
        except OSError:
            return False
        return True

    def create(self) -> None:
        self._request("query", "", q="CREATE DATABASE stddaq")

    def write(self, lines: list[str]) -> None:
        """Write lines. Raise `HTTPError` when one of them is not line protocol."""
        self._request("write", "\n".join(lines), db="stddaq", precision="ns")

    def last(self, measurement: str) -> dict[str, Any]:
        """Return the tags and fields of the newest point."""
        query = f'SELECT * FROM "{measurement}" ORDER BY time DESC LIMIT 1'
        answer = json.loads(self._request("query", db="stddaq", q=query, epoch="ns"))
        (series,) = answer["results"][0]["series"]
        return dict(zip(series["columns"], series["values"][0], strict=True))


@pytest.fixture
def influxdb(deployment: Deployment, tmp_path: Path) -> Iterator[InfluxDB]:
    unpacked = Path(sys.prefix) / "influxdb" / "usr" / "bin"
    program = shutil.which("influxd", path=f"{unpacked}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("needs the package influxdb of Debian or Ubuntu, see .ci/make-debian-program")
    port = free_port()
    configuration = tmp_path / "influxdb.conf"
    configuration.write_text(CONFIGURATION.format(backup_port=free_port(), port=port, directory=tmp_path))
    service = deployment.run(program, "-config", configuration)
    server = InfluxDB(port)
    wait_until(server.is_up, 30, f"InfluxDB; {service.output}")
    server.create()
    yield server
    service.end()


def statistics_of(service: Service, measurement: str) -> list[str]:
    """Return the first statistics lines of a service, and check that its other lines are log lines."""
    start = f"{measurement},"
    wait_until(lambda: any(line.startswith(start) for line in service.stdout), 20, f"statistics: {start}")
    lines = service.stdout[:]
    assert all(line.startswith(("[", start)) for line in lines), service.output
    return [line for line in lines if line.startswith(start)]


@pytest.mark.parametrize("detector_type", ["gigafrost", "pco"])
def test_a_real_influxdb_takes_the_statistics_of_every_service(
    influxdb: InfluxDB, make_deployment: Callable[..., Deployment], detector_type: str
) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    deployment = make_deployment(
        statistics_format="influxdb",
        detector_type=detector_type,
        live_stream_configs={address: {"type": "forward", "config": []}},
    )
    driver, _ = deployment.start_driver("-s", "filter")
    services = {"std_det_driver": driver, "std_det_writer": deployment.start("std_det_writer", 1)}
    if detector_type == "gigafrost":
        for name, *arguments in (
            ("std_det_meta_writer_gf",),
            ("std_gf_filter",),
            ("std_data_compress_blosc2", "-t", 1),
            ("std_live_stream", address),
        ):
            services[name] = deployment.start(name, *arguments)
        services[r"stddaq\ simulate"] = deployment.run(
            deployment.stddaq, "simulate", deployment.config_path, "--rate", 0.1, ready="ready"
        )
    else:
        services["std_det_meta_writer_pco"] = deployment.start("std_det_meta_writer_pco")
        services["std_bsread_recv"] = deployment.start("std_bsread_recv", address)

    for measurement, service in services.items():
        assert point_of(influxdb, service, measurement)["detector"] == deployment.detector_name
    assert influxdb.last("std_det_driver")["source"] == "filter"
    assert influxdb.last("std_det_writer")["id"] == "1"


def test_a_real_influxdb_takes_the_statistics_of_other_services(
    influxdb: InfluxDB, make_deployment: Callable[..., Deployment], directory: Path
) -> None:
    with RedisServer() as redis:
        keys = {"statistics_format": "influxdb", "stats_collection_period": 1}
        services = start_other_services(make_deployment, directory, redis.address, **keys)
        for measurement, service in services.items():
            if measurement != "stddaq-rest":  # It has no statistics.
                point_of(influxdb, service, measurement)


def point_of(influxdb: InfluxDB, service: Service, measurement: str) -> dict[str, Any]:
    """Write the statistics of a service. Return the last point, which has the values of the line."""
    lines = statistics_of(service, measurement)
    influxdb.write(lines)
    point = influxdb.last(measurement.replace("\\", ""))
    # Each pair of the line is a tag or a field of the same name and value.
    for key, value in re.findall(r"[, ](\w+)=([^, ]+)", lines[-1]):
        found = point[key]
        assert found == (value if isinstance(found, str) else float(value.removesuffix("i"))), key
    return point


def test_special_characters_are_escaped_and_numbers_unknown_to_influxdb_are_left_out(
    influxdb: InfluxDB,
) -> None:
    pairs = {"detector": "a b,c=d", "source": "image", "n": 5, "ratio": float("nan"), "rate": 1 / 3}
    influxdb.write([line_protocol("a, b", pairs, 17)])
    assert influxdb.last("a, b") == {
        "time": 17,
        "detector": "a b,c=d",
        "source": "image",
        "n": 5,
        "rate": 0.33,
    }
