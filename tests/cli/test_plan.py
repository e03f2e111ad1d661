"""`stddaq plan`: services, cores and memory for a rate, from measured costs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.processes.deployment import make_config

from stddaq.cli import main as stddaq
from stddaq.cli.costs import Costs, measure
from stddaq.cli.deployment_file import read_deployment_file
from stddaq.cli.planning import MAX_LOAD, SHARED_LOAD, Plan, make_plan
from stddaq.config import DetectorConfig
from stddaq.config.creation import new_configuration
from stddaq.errors import ConfigError

COSTS = Costs(
    write_s_per_gb=0.25,
    copy_s_per_gb=0.1,
    message_us=1.0,
    packet_us=2.0,
    network_s_per_gb=0.4,
    driver_us=10.0,
    writer_us=15.0,
    meta_us=5.0,
    sync_us=1.0,
)


def plan_of(detector: str, rate: float, size: tuple[int, int] = (2016, 2016), n_servers: int = 1) -> Plan:
    content = new_configuration("D1", detector, size, 16, 1, [])
    return make_plan(DetectorConfig.parse(content), rate, COSTS, 2, n_servers)


def n_instances(plan: Plan) -> dict[str, int]:
    return {service.program: service.n_instances for service in plan.services}


def test_writers_share_what_one_core_cannot_do() -> None:
    for rate in (1, 100, 1000, 5000):
        plan = plan_of("pco", rate)
        (writers,) = [service for service in plan.services if service.program == "std_det_writer"]
        assert writers.load <= MAX_LOAD
        # One writer fewer would have too much to do.
        n = writers.n_instances
        assert n == 1 or writers.load * n / (n - 1) > MAX_LOAD
    assert plan_of("pco", 1).keys["number_of_writers"] == 1
    assert plan_of("pco", 1000).keys["number_of_writers"] == 4


def test_a_udp_detector_has_a_receiver_and_a_converter_for_each_module() -> None:
    assert n_instances(plan_of("gigafrost", 100)) == {
        "std_udp_recv_gf": 8,
        "std_data_convert_gf": 8,
        "std_data_sync_module": 1,
        "std_det_driver": 1,
        "std_det_writer": 1,
        "std_det_meta_writer_gf": 1,
    }
    assert n_instances(plan_of("eiger", 100, (1028, 512)))["std_udp_recv_eg"] == 4


def test_the_ring_buffer_holds_the_images_of_two_seconds() -> None:
    plan = plan_of("pco", 2000)
    assert plan.keys["ram_buffer_gb"] * 2**30 >= 2 * plan.bytes_per_s
    assert plan.memory_bytes >= 2 * plan.bytes_per_s


def test_what_does_not_fit_is_named() -> None:
    assert plan_of("gigafrost", 1000).problems(64) == []
    (problem,) = plan_of("gigafrost", 1000).problems(10)
    assert problem == "server: 15 cores, the server has 10"
    problems = plan_of("gigafrost", 20_000).problems(10_000)
    assert any(problem.startswith("std_udp_recv_gf: ") for problem in problems)


def test_services_with_small_loads_share_cores() -> None:
    plan = plan_of("gigafrost", 10)
    (server,) = plan.servers
    # 20 services, all of them together with less than 70 % of a core.
    assert sum(service.n_instances for service in plan.services) == 20
    assert (server.n_shared, server.n_own, server.n_cores) == (1, 0, 2)
    for rate in (10, 100, 300, 1000):
        (server,) = plan_of("gigafrost", rate).servers
        shared = [service for service in server.services if service.shares_cores]
        assert sum(service.n_instances * service.load for service in shared) <= MAX_LOAD * server.n_shared
        assert server.n_own == sum(s.n_instances for s in server.services if s.load > SHARED_LOAD)


def test_two_servers_share_the_work_in_pairs() -> None:
    plan = plan_of("gigafrost", 250, n_servers=2)
    writing, receiving = plan.servers
    # 2 GB/s at 0.5 s/GB, and little for the messages.
    pairs = [service for service in plan.services if service.program.startswith("std_stream_")]
    assert [(pair.program, pair.n_instances) for pair in pairs] == [
        ("std_stream_receive", 2),
        ("std_stream_send", 2),
    ]
    assert all(pair.load <= MAX_LOAD for pair in pairs)
    assert plan.keys["max_number_of_forwarders_spawned"] == 2
    assert {service.program for service in receiving.services} == {
        *("std_udp_recv_gf", "std_data_convert_gf", "std_data_sync_module", "std_stream_send"),
    }
    assert "std_data_sync_stream" in {service.program for service in writing.services}
    assert plan.problems(20) == []


def test_small_images_at_high_rates_are_sent_whole() -> None:
    plan = plan_of("pco", 100_000, (128, 128), n_servers=2)
    assert plan.keys["sender_sends_full_images"] is True
    instances = n_instances(plan)
    assert instances["std_metadata_stream"] == instances["std_data_sync_metadata"] == 1
    # 3.3 GB/s at 0.5 s/GB, and 0.2 s of messages.
    assert instances["std_stream_send"] == instances["std_stream_receive"] == 3


@pytest.mark.slow
def test_costs_are_measured_and_kept(tmp_path: Path) -> None:
    measured = measure(tmp_path)
    assert list(tmp_path.iterdir()) == []
    measured.save(tmp_path / "costs.json")
    assert Costs.load(tmp_path / "costs.json") == measured


def test_bad_costs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(COSTS.model_dump() | {"packet_us": -1.0}))
    with pytest.raises(ConfigError, match="packet_us: expected"):
        Costs.load(path)


def test_the_deployment_file_is_one_that_can_be_deployed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = make_config(detector_name="GF1", detector_type="pco", allowed_roots=[str(tmp_path)])
    Path("gf1.json").write_text(json.dumps(config | {"number_of_writers": 2}))
    COSTS.save(Path("costs.json"))
    # One writer with a load of 58 %, and 16 % of the others.
    plan = ["plan", "gf1.json", "--rate", "15000", "--costs", "costs.json", "-o", "deployment.yml"]
    assert stddaq([*plan, "--cores", "4"]) == 0
    shown = capsys.readouterr().out
    assert "number_of_writers 1" in shown
    assert "3 of 4 (server): 1 for the system, 1 shared, 1 with one service" in shown
    ((deployment,),) = [play.deployments for play in read_deployment_file(Path("deployment.yml"))]
    assert [(i.program, i.cores, i.arguments) for i in deployment.instances] == [
        ("std_det_driver", "1", ("-m",)),
        ("std_det_writer", "2", ("0",)),
        ("std_det_meta_writer_pco", "1", ()),
    ]
    Path("units").mkdir()
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert stddaq(["deployment", "deployment.yml", "--configs", ".", "--directory", "units"]) == 0
    # Without enough cores nothing is pinned.
    assert stddaq([*plan, "--cores", "2", "--servers", "1"]) == 1
    assert "cpus" not in Path("deployment.yml").read_text()


def test_a_deployment_file_for_two_servers_is_one_that_can_be_deployed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = make_config(
        detector_name="GF1",
        n_modules=8,
        image_pixel_height=128,
        image_pixel_width=480,
        allowed_roots=["/data"],
    )
    Path("gf1.json").write_text(json.dumps(config))
    COSTS.save(Path("costs.json"))
    # One server would need 10 cores.
    plan = ["plan", "gf1.json", "--rate", "30000", "--costs", "costs.json", "--cores", "9"]
    assert stddaq([*plan, "--address", "192.168.1.5", "-o", "deployment.yml"]) == 0
    shown = capsys.readouterr().out
    assert "max_number_of_forwarders_spawned 3, use_all_forwarders true" in shown
    writing, receiving = read_deployment_file(Path("deployment.yml"))
    senders = [i for i in receiving.deployments[0].instances if i.program == "std_stream_send"]
    assert [i.arguments for i in senders] == [(f"tcp://192.168.1.5:{9100 + i}", f"{i}") for i in range(3)]
    # 8 converters with a load of 13 % are among those that share cores.
    converters = [i for i in receiving.deployments[0].instances if i.program == "std_data_convert_gf"]
    assert {i.cores for i in converters} == {"1-4"}
    Path("gf1.json").write_text(
        json.dumps(config | {"max_number_of_forwarders_spawned": 3, "number_of_writers": 3})
    )
    Path("units").mkdir()
    monkeypatch.setattr("os.cpu_count", lambda: 9)
    for play in (writing, receiving):
        check = ["deployment", "deployment.yml", "--play", play.name, "--configs", "."]
        assert stddaq([*check, "--directory", "units"]) == 0
