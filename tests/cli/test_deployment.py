"""`stddaq deployment`: deployment files are checked, and become units."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes.deployment import make_config

from stddaq.cli import main as stddaq
from stddaq.cli.deployment_file import read_deployment_file
from stddaq.cli.unit_update import Systemd, UnitUpdate, UpdateError
from stddaq.errors import ConfigError

FORM_1 = """\
- name: receiving
  hosts: xbl-daq-28
  become: true
  roles: [psi.std_daq_deploy]
  vars:
    - ansible_remote_tmp: /tmp
    - std_daq_sw_version: "0.5.1"
    - config_file: gf1.json
    - microservices:
        - prog_name: std_udp_recv_gf
          env: "PATH=/opt/bin:/usr/bin LD_LIBRARY_PATH=/opt/lib"
          skip_watcher: true
          instances:
            - {cpus: [0], params: [0], id: x02da.xbl-daq-28.gf1.00.0}
            - {cpus: [0, "43-47"], params: [1], id: x02da.xbl-daq-28.gf1.01.0}
        - prog_name: std_live_stream
          instances:
            - {cpus: [22], params: ["'tcp://127.0.0.1:9000'", "-s image"]}
"""
FORM_2 = """\
- name: writing
  hosts: all
  vars:
    std_daq_sw_version: 0.13.34
    deployments:
      - config_file: gf1.json
        microservices:
          - prog_name: std_det_driver
            instances:
              - {cpus: [0], params: ["-m"]}
          - prog_name: std_det_writer
            instances:
              - {cpus: [0], params: [0]}
              - {cpus: [0], params: [1]}
          - prog_name: stddaq simulate
            instances:
              - {params: [--rate 5]}
"""
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a deployment file beside the configuration `gf1.json`."""
    config = make_config(
        detector_name="GF1",
        allowed_roots=[str(tmp_path)],
        live_stream_configs={"tcp://127.0.0.1:9000": {"type": "forward", "config": []}},
    )
    (tmp_path / "gf1.json").write_text(json.dumps(config))
    (tmp_path / "units").mkdir()

    def write(text: str) -> Path:
        (tmp_path / "deployment.yml").write_text(text)
        return tmp_path / "deployment.yml"

    return write


def make_units(path: Path, *options: str) -> dict[str, str]:
    """Return the units of a deployment file by name."""
    units = path.parent / "units"
    where = ["--configs", str(path.parent), "--directory", str(units)]
    assert stddaq(["deployment", str(path), *where, *options]) == 0
    return {unit.name: unit.read_text() for unit in sorted(units.iterdir())}


def mistakes(path: Path) -> list[str]:
    """Return the mistakes of a deployment file, without its directory."""
    with pytest.raises(ConfigError) as refused:
        read_deployment_file(path)
    return [mistake.removeprefix(f"{path.parent}/") for mistake in refused.value.mistakes]


def test_the_older_form_is_read(write: Write) -> None:
    (play,) = read_deployment_file(write(FORM_1))
    (deployment,) = play.deployments
    assert (play.name, play.version, deployment.config_file) == ("receiving", "0.5.1", "gf1.json")
    receiver, second, stream = deployment.instances
    assert (receiver.cores, receiver.arguments, receiver.number) == ("0", ("0",), "x02da.xbl-daq-28.gf1.00.0")
    assert receiver.environment == {"PATH": "/opt/bin:/usr/bin", "LD_LIBRARY_PATH": "/opt/lib"}
    assert second.cores == "0,43-47"
    assert stream.arguments == ("tcp://127.0.0.1:9000", "-s", "image")


def test_each_instance_becomes_a_unit(write: Write) -> None:
    units = make_units(write(FORM_2))
    names = ["std_det_driver-0", "std_det_writer-0", "std_det_writer-1", "simulate-0"]
    assert sorted(units) == sorted([*(f"std_daq-GF1-{name}.service" for name in names), "std_daq-GF1.target"])
    writer = units["std_daq-GF1-std_det_writer-1.service"]
    assert re.search(r"(?m)^ExecStart=\S+/std_det_writer \S+/gf1.json 1$", writer)
    assert "\nCPUAffinity=0\n" in writer
    # Sources start last.
    assert "After=std_daq-GF1-std_det_driver-0.service\n" in units["std_daq-GF1-simulate-0.service"]
    assert "After=std_daq-GF1-std_det_writer-0.service\n" in units["std_daq-GF1-std_det_driver-0.service"]


def test_variables_alone_are_a_deployment_file(write: Write) -> None:
    from_playbook = make_units(write(FORM_2))
    variables = {
        "std_daq_sw_version": "1",
        "stddaq_user": "daq",
        "deployments": [
            {
                "config_file": "gf1.json",
                "microservices": [
                    {"prog_name": "std_det_driver", "instances": [{"cpus": [0], "params": ["-m"]}]},
                    {
                        "prog_name": "std_det_writer",
                        "instances": [{"cpus": [0], "params": [0]}, {"cpus": [0], "params": [1]}],
                    },
                    {"prog_name": "stddaq simulate", "instances": [{"params": ["--rate 5"]}]},
                ],
            }
        ],
    }
    assert make_units(write(json.dumps(variables))) == from_playbook


def test_a_unit_changes_only_with_the_keys_that_its_service_reads_at_its_start(write: Write) -> None:
    path = write(FORM_2)
    before = make_units(path)
    config = json.loads((path.parent / "gf1.json").read_text())

    def changed(**keys: object) -> list[str]:
        (path.parent / "gf1.json").write_text(json.dumps(config | keys))
        after = make_units(path)
        return [name for name in after if after[name] != before[name]]

    assert changed(live_stream_configs={"tcp://127.0.0.1:9001": {"type": "forward", "config": []}}) == []
    recorders = ["std_det_driver-0", "std_det_writer-0", "std_det_writer-1"]
    assert changed(gpfs_block_size=4096) == [f"std_daq-GF1-{name}.service" for name in recorders]


@pytest.mark.parametrize(
    ("old", "new", "mistake"),
    [
        ("deployments:", "deployment:", "5: 0.vars.deployment: expected one of the keys"),
        ("prog_name: std_det_writer", "prog_name: std_det_writr", "11: 0.vars.deployments.0.microservices.1"),
        ("params: [1]", "param: [1]", "14: 0.vars.deployments.0.microservices.1.instances.1.param:"),
        ("{cpus: [0], params: [1]}", "{cpus: [47-43], params: [1]}", "14: "),
        ('"-m"', '"\'-m"', "10: 0.vars.deployments.0.microservices.0.instances.0.params.0: expected words"),
        ("config_file: gf1.json", "config_file: /etc/gf1.json", "6: 0.vars.deployments.0.config_file"),
        ("std_daq_sw_version: 0.13.34", "std_daq_sw_version: [1]", "4: 0.vars.std_daq_sw_version"),
        ("{cpus: [0], params: [1]}", "{cpus: [0], params: [1], id: 0}", "14: expected std_det_writer 0 once"),
        ("hosts: all", "hosts: all\n  host: b", "3: 0.host: expected one of the keys"),
    ],
)
def test_mistakes_are_found_with_their_line(old: str, new: str, mistake: str, write: Write) -> None:
    found = mistakes(write(FORM_2.replace(old, new, 1)))
    assert any(line.startswith(f"deployment.yml:{mistake}") for line in found), found


def test_what_is_no_yaml_is_refused_with_its_line(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"deployment.yml:2: expected YAML"):
        read_deployment_file(write("a: [1\nb: 2]: x"))


@pytest.mark.parametrize(
    ("old", "new", "mistake"),
    [
        ("cpus: [0], params: [1]", "cpus: [9999], params: [1]", ":14: std_det_writer 1: expected a core"),
        ("params: [1]", "params: [7]", "expected a writer below number_of_writers, 2, got 7"),
        ("params: [1]", "params: []", "expected the number of the writer in params"),
        ("std_det_driver", "std_det_meta_writer_jf", "expected std_det_meta_writer_gf for gigafrost"),
        ("stddaq simulate", "std_live_stream", "expected an address of live_stream_configs"),
        ("gf1.json", "gf2.json", "cannot be read"),
    ],
)
def test_what_does_not_fit_the_server_is_found(
    old: str, new: str, mistake: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(FORM_2.replace(old, new, 1))
    with pytest.raises(SystemExit):
        make_units(path)
    assert mistake in capsys.readouterr().err
    assert list((path.parent / "units").iterdir()) == []


def test_former_options_of_live_streams_are_named(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    former = FORM_2.replace("stddaq simulate", "std_live_stream").replace("--rate 5", "-b 2:555")
    with pytest.raises(SystemExit):
        make_units(write(former))
    assert "-b of former versions; it belongs to live_stream_configs" in capsys.readouterr().err


def test_a_file_is_shown_where_it_is_not_deployed(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert stddaq(["deployment", str(write(FORM_1 + FORM_2)), "--configs", "/absent"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1] == ["receiving", "gf1.json", "std_udp_recv_gf", "2", "0", "0,43-47"]
    assert ["writing", "gf1.json", "std_det_writer", "2", "0", "0"] in rows


TWO_SERVERS = """\
- name: receiving
  hosts: first
  vars:
    std_daq_sw_version: 0.2.0
    deployments:
      - config_file: gf1.json
        microservices:
          - prog_name: std_stream_send
            instances:
              - {params: ["'tcp://0.0.0.0:9100'", 0]}
              - {params: ["'tcp://0.0.0.0:9101'", 1]}
- name: writing
  hosts: second
  vars:
    std_daq_sw_version: 0.2.0
    deployments:
      - config_file: gf1.json
        microservices:
          - prog_name: std_stream_receive
            instances:
              - {params: [tcp://10.0.0.1:9100, 0]}
              - {params: [tcp://10.0.0.1:9101, 1]}
          - prog_name: std_data_sync_stream
            instances: [{}]
"""


def test_each_of_two_servers_has_its_units(write: Write) -> None:
    path = write(TWO_SERVERS)
    assert sorted(make_units(path, "--play", "receiving")) == [
        "std_daq-GF1-std_stream_send-0.service",
        "std_daq-GF1-std_stream_send-1.service",
        "std_daq-GF1.target",
    ]
    receiver = make_units(path, "--play", "writing")["std_daq-GF1-std_stream_receive-1.service"]
    assert "std_stream_receive" in receiver
    assert "\nAfter=std_daq-GF1-std_data_sync_stream-0.service\n" in receiver


def test_the_servers_of_a_metadata_stream_must_fit_each_other(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = TWO_SERVERS.replace(
        "            instances: [{}]", "            instances: [{params: [tcp://10.0.0.1:9111]}]"
    )
    whole = whole.replace("std_data_sync_stream", "std_data_sync_metadata")
    metadata = "          - prog_name: std_metadata_stream\n            instances: [{params: [tcp://10.0.0.1:9110]}]\n"
    whole = whole.replace("- name: writing", f"{metadata}- name: writing")
    assert "std_data_sync_metadata" in whole
    with pytest.raises(SystemExit):
        make_units(write(whole), "--play", "writing")
    assert "expected std_metadata_stream with the same port, got none at port 9111" in capsys.readouterr().err
    assert make_units(write(whole.replace("9111", "9110")), "--play", "writing")


@pytest.mark.parametrize(
    ("old", "new", "mistake"),
    [
        ("10.0.0.1:9101, 1", "10.0.0.1:9102, 1", ":22: std_stream_receive 1 (gf1.json): expected"),
        ("10.0.0.1:9101, 1", "10.0.0.1:9101, 0", ":11: std_stream_send 1 (gf1.json): expected"),
        ("hosts: second\n  vars:\n    std_daq_sw_version: 0.2.0", "", ""),
        ("tcp://10.0.0.1:9100, 0", "0", "expected std_stream_send of part 0 with the same port, got none"),
    ],
)
def test_servers_that_do_not_fit_each_other_are_found(
    old: str, new: str, mistake: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    if not new:
        new, mistake = old.replace("0.2.0", "0.2.1"), "writing: std_daq_sw_version: expected 0.2.0 as of"
    assert old in TWO_SERVERS
    with pytest.raises(SystemExit):
        make_units(write(TWO_SERVERS.replace(old, new, 1)), "--play", "writing")
    assert mistake in capsys.readouterr().err


class Bench(Systemd):
    """A systemd that records what it is asked; its drivers end `ends_after` looks after SIGUSR1."""

    def __init__(self, directory: Path, ends_after: int = 2) -> None:
        super().__init__(directory / "units", directory / "runtime")
        self.commands: list[str] = []
        self.active: set[str] = set()
        self.ending: dict[str, int] = {}
        self.ends_after = ends_after

    def control(self, *words: str) -> None:
        self.commands.append(" ".join(words))
        if words[0] in ("start", "stop"):
            change = self.active.update if words[0] == "start" else self.active.difference_update
            change(words[1:])
        if words[0] == "kill":
            assert (self.runtime / f"{words[-1]}.d" / "90-update.conf").exists()
            self.ending[words[-1]] = self.ends_after

    def state(self, unit: str) -> str:
        if unit in self.ending:
            self.ending[unit] -= 1
            if self.ending[unit] < 0:
                self.active.discard(unit)
        return "active" if unit in self.active else "inactive"


@pytest.fixture
def bench(tmp_path: Path, write: Write) -> Bench:
    return Bench(tmp_path)


def units_of(*names: str, text: str = "") -> dict[str, str]:
    return {f"std_daq-GF1-{name}.service": f"PartOf=std_daq-GF1.target\n{text}" for name in names} | {
        "std_daq-GF1.target": "Wants=..."
    }


def test_a_second_application_changes_nothing(bench: Bench) -> None:
    units = units_of("std_det_driver-0", "std_det_writer-0")
    first = list(UnitUpdate(bench, units, 20).apply())
    assert [line for line in first if line.startswith("changed")] == [f"changed: {name}" for name in units]
    assert bench.active == set(units)
    bench.commands.clear()
    assert list(UnitUpdate(bench, units, 20).apply()) == []
    assert bench.commands == []


def test_only_what_changed_is_restarted_after_the_run(bench: Bench) -> None:
    units = units_of("std_det_driver-0", "std_det_writer-0", "std_live_stream-9000")
    list(UnitUpdate(bench, units, 20).apply())
    bench.commands.clear()
    changed = units | {"std_daq-GF1-std_det_writer-0.service": "PartOf=std_daq-GF1.target\nother"}
    lines = list(UnitUpdate(bench, changed, 20).apply())
    driver, writer = "std_daq-GF1-std_det_driver-0.service", "std_daq-GF1-std_det_writer-0.service"
    assert lines == [
        f"waiting: {driver} ends after the run in progress",
        f"changed: {writer}",
        f"started: {driver}",
        f"started: {writer}",
    ]
    order = [command for command in bench.commands if command.split()[0] in ("kill", "stop", "start")]
    assert order == [
        f"kill --kill-who=main --signal=USR1 {driver}",
        f"stop {writer}",
        f"start {driver} {writer}",
    ]
    assert not list(bench.runtime.iterdir())


def test_services_that_are_not_in_the_file_any_more_are_removed_and_ended(bench: Bench) -> None:
    list(UnitUpdate(bench, units_of("std_det_writer-0", "std_det_writer-1"), 20).apply())
    lines = list(UnitUpdate(bench, units_of("std_det_writer-0"), 20).apply())
    assert lines == ["removed: std_daq-GF1-std_det_writer-1.service"]
    assert bench.active == {"std_daq-GF1-std_det_writer-0.service", "std_daq-GF1.target"}


def test_a_configuration_whose_change_concerns_no_unit_disturbs_nothing(bench: Bench, tmp_path: Path) -> None:
    units, path = units_of("std_det_driver-0"), tmp_path / "gf1.json"
    list(UnitUpdate(bench, units, 20, {path: "{}"}).apply())
    bench.commands.clear()
    path.chmod(0o640)
    assert list(UnitUpdate(bench, units, 20, {path: '{"a": 1}'}).apply()) == [f"changed: {path}"]
    assert path.stat().st_mode & 0o777 == 0o640
    assert path.read_text() == '{"a": 1}'
    assert not [command for command in bench.commands if command.startswith(("stop", "kill", "start"))]
    assert list(UnitUpdate(bench, units, 20, {path: '{"a": 1}'}).apply()) == []


def test_a_run_that_does_not_end_keeps_everything_as_it_is(bench: Bench) -> None:
    units = units_of("std_det_driver-0", "std_det_writer-0")
    list(UnitUpdate(bench, units, 20).apply())
    bench.ends_after = 10**9
    with pytest.raises(UpdateError, match="expected the end of the run within"):
        list(UnitUpdate(bench, units_of("std_det_driver-0", "std_det_writer-0", text="new"), 0.1).apply())
    assert {path.name: path.read_text() for path in bench.units.iterdir()} == units
    assert bench.active == set(units)
    assert not list(bench.runtime.rglob("*.conf"))
