"""`stddaq units`: systemd units of the services that `stddaq up` starts."""

from __future__ import annotations

import json
import os
import pwd
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes.deployment import make_config

from stddaq.cli import main as stddaq
from stddaq.cli.unit_files import WATCHDOG_S

UNITS_OF_UP = ("-m", "--source", "simulate", "--rate", "5")
Units = dict[str, str]


@pytest.fixture
def make_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Units]:
    """Return a function that makes a configuration `config.json`, and returns its units by name."""
    monkeypatch.setenv("STDDAQ_IPC_DIR", str(tmp_path / "ipc"))

    def make(*arguments: str, **overrides: object) -> Units:
        keys = {"detector_name": "GF1", "allowed_roots": [str(tmp_path / "files")]}
        (tmp_path / "config.json").write_text(json.dumps(make_config(**keys | overrides)))
        units = tmp_path / "units"
        units.mkdir(exist_ok=True)
        assert stddaq(["units", str(tmp_path / "config.json"), "--directory", str(units), *arguments]) == 0
        return {path.name: path.read_text() for path in sorted(units.iterdir())}

    return make


def settings(text: str, key: str) -> list[str]:
    """Return the values of a setting of a unit."""
    return re.findall(rf"(?m)^{key}=(.*)$", text)


def test_there_is_a_unit_for_each_service_and_a_target(make_units: Callable[..., Units]) -> None:
    units = make_units(
        *UNITS_OF_UP, live_stream_configs={"tcp://127.0.0.1:9000": {"type": "forward", "config": []}}
    )
    services = [
        "std_det_driver-0",
        "std_det_meta_writer_gf-0",
        "std_det_writer-0",
        "std_det_writer-1",
        "std_live_stream-127.0.0.1:9000",
        "simulate-0",
    ]
    names = [f"std_daq-GF1-{service}.service" for service in services]
    assert sorted(units) == sorted([*names, "std_daq-GF1.target"])
    assert sorted(settings(units["std_daq-GF1.target"], "Wants")) == sorted(names)
    for name in names:
        assert settings(units[name], "PartOf") == ["std_daq-GF1.target"]
        assert settings(units[name], "Type") == ["notify"]


def test_commands_are_those_of_up(make_units: Callable[..., Units], tmp_path: Path) -> None:
    from stddaq.cli import up
    from stddaq.config import DetectorConfig
    from stddaq.daemon.arguments import ArgumentParser

    units = make_units(*UNITS_OF_UP)
    config = str(tmp_path / "config.json")
    parser = ArgumentParser("up")
    up.add_arguments(parser)
    specs = up.services(DetectorConfig.load(Path(config)), parser.parse_args([config, *UNITS_OF_UP]))
    commands = [shlex.split(start) for text in units.values() for start in settings(text, "ExecStart")]
    assert sorted(commands) == sorted(list(spec.command) for spec in specs)


def test_services_start_in_order_and_are_restarted(make_units: Callable[..., Units]) -> None:
    units = make_units(*UNITS_OF_UP)

    def starts_after(service: str) -> set[str]:
        after = settings(units[f"std_daq-GF1-{service}.service"], "After")
        return {name.removeprefix("std_daq-GF1-").removesuffix(".service") for name in after} - {
            "network-online.target"
        }

    recorders = {"std_det_writer-0", "std_det_writer-1", "std_det_meta_writer_gf-0"}
    assert starts_after("std_det_driver-0") == recorders
    assert starts_after("simulate-0") == recorders | {"std_det_driver-0"}
    assert settings(units["std_daq-GF1-std_det_driver-0.service"], "Restart") == ["always"]
    # It has finished when it exits with 0.
    assert settings(units["std_daq-GF1-simulate-0.service"], "Restart") == ["on-failure"]
    assert settings(units["std_daq-GF1-simulate-0.service"], "WatchdogSec") == [str(WATCHDOG_S)]


def test_further_services_have_units_in_their_place(make_units: Callable[..., Units], tmp_path: Path) -> None:
    forwarding = [
        *("std_stream_send tcp://127.0.0.1:9100 0", "std_stream_send tcp://127.0.0.1:9101 1"),
        f"std_buffer_writer --root_dir {tmp_path}/buffer --db_address tcp://127.0.0.1:6379",
    ]
    arguments = [word for line in forwarding for word in ("--service", line)]
    units = make_units(*arguments, *UNITS_OF_UP)
    sender = units["std_daq-GF1-std_stream_send-1.service"]
    assert settings(sender, "ExecStart")[0].endswith(f"{tmp_path}/config.json tcp://127.0.0.1:9101 1")
    # It ends at once if the image has no such part, and is not started again then.
    assert (settings(sender, "Restart"), settings(sender, "RemainAfterExit")) == (["on-failure"], ["yes"])
    assert "std_daq-GF1-std_det_driver-0.service" in settings(sender, "After")
    # Without it, libzmq aborts when it binds the address.
    assert "AF_NETLINK" in settings(sender, "RestrictAddressFamilies")[0]
    assert "std_daq-GF1-std_stream_send-1.service" in settings(
        units["std_daq-GF1-simulate-0.service"], "After"
    )
    buffer = units["std_daq-GF1-std_buffer_writer-0.service"]
    assert settings(buffer, "ReadWritePaths") == [f"{tmp_path}/ipc", f"{tmp_path}/buffer"]


def test_a_server_may_have_further_services_alone(make_units: Callable[..., Units]) -> None:
    units = make_units("--service", "std_data_sync_stream", "--only-services")
    assert sorted(units) == ["std_daq-GF1-std_data_sync_stream-0.service", "std_daq-GF1.target"]


def test_only_recorders_write_below_the_allowed_roots(
    make_units: Callable[..., Units], tmp_path: Path
) -> None:
    units = make_units(*UNITS_OF_UP, services=[f"stddaq-rest --root {tmp_path}/read"])
    writable = {
        name.removeprefix("std_daq-GF1-").removesuffix("-0.service"): settings(text, "ReadWritePaths")
        for name, text in units.items()
    }
    sockets, files = str(tmp_path / "ipc"), str(tmp_path / "files")
    for recorder in ("std_det_driver", "std_det_writer", "std_det_meta_writer_gf"):
        assert writable[recorder] == [sockets, files]
    assert writable["simulate"] == [sockets]
    assert writable["stddaq-rest"] == [sockets, str(tmp_path), f"{tmp_path}/read"]


def test_only_services_that_act_as_other_users_have_capabilities(make_units: Callable[..., Units]) -> None:
    units = make_units("--user", "daemon", *UNITS_OF_UP)
    services = [text for name, text in units.items() if name.endswith(".service")]
    assert {tuple(settings(text, "CapabilityBoundingSet")) for text in services} == {("",)}
    assert {tuple(settings(text, "User")) for text in services} == {("daemon",)}

    units = make_units(*UNITS_OF_UP, switch_user_active=True)
    assert settings(units["std_daq-GF1-std_det_writer-0.service"], "User") == ["root"]
    assert "CAP_SETUID" in units["std_daq-GF1-std_det_writer-0.service"]
    assert "CAP_SETUID" not in units["std_daq-GF1-simulate-0.service"]


def test_services_have_the_variables_that_they_need(
    make_units: Callable[..., Units], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STDDAQ_SHM_GROUP", "detectors")
    # Everybody may read units.
    monkeypatch.setenv("STDDAQ_TOKEN", "0123456789abcdef")
    text = make_units("--user", "daemon", *UNITS_OF_UP)["std_daq-GF1-simulate-0.service"]
    assert settings(text, "Environment") == [f"STDDAQ_IPC_DIR={tmp_path}/ipc", "STDDAQ_SHM_GROUP=detectors"]
    assert settings(text, "SystemCallFilter")[-1] == "@chown"


def test_what_numba_compiles_for_receivers_and_converters_is_kept(make_units: Callable[..., Units]) -> None:
    units = make_units("--source", "udp", n_modules=8)
    kept = {name: settings(text, "CacheDirectory") for name, text in units.items()}
    for service in ("std_udp_recv_gf-0", "std_data_convert_gf-0"):
        name = f"std_daq-GF1-{service}.service"
        assert kept[name] == ["std_daq-GF1"]
        assert "NUMBA_CACHE_DIR=%C/std_daq-GF1" in settings(units[name], "Environment")
    assert kept["std_daq-GF1-std_det_driver-0.service"] == []


def test_cores_of_a_service_and_of_a_kind(make_units: Callable[..., Units]) -> None:
    units = make_units("--cpus", "writer=4-7,12", "--cpus", "writer 1=3", "--cpus", "driver=2")
    cores = {name: settings(text, "CPUAffinity") for name, text in units.items()}
    assert cores["std_daq-GF1-std_det_writer-0.service"] == ["4-7,12"]
    assert cores["std_daq-GF1-std_det_writer-1.service"] == ["3"]
    assert cores["std_daq-GF1-std_det_driver-0.service"] == ["2"]


def test_values_are_quoted(
    make_units: Callable[..., Units], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / 'a "b" $HOME 100%n'
    root.mkdir()
    units = make_units("--allowed-root", str(root), allowed_roots=None)
    text = units["std_daq-GF1-std_det_writer-0.service"]
    shown = str(root).replace('"', '\\"').replace("%", "%%")
    assert settings(text, "ReadWritePaths")[1] == f'"{shown}"'
    assert f'"{shown.replace("$", "$$")}"' in settings(text, "ExecStart")[0]


def test_units_that_are_not_needed_any_more_are_named(
    make_units: Callable[..., Units], capsys: pytest.CaptureFixture[str]
) -> None:
    make_units(number_of_writers=3)
    make_units(number_of_writers=1, detector_name="GF1-std_det_writer")
    capsys.readouterr()
    make_units(number_of_writers=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("std_daq-GF1-std_det_writer-2.service: not needed any more")


def test_units_are_printed_without_a_directory(
    make_units: Callable[..., Units], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    units = make_units()
    capsys.readouterr()
    assert stddaq(["units", str(tmp_path / "config.json")]) == 0
    printed = capsys.readouterr().out
    for name, text in units.items():
        assert f"# {name}\n{text}" in printed


@pytest.mark.parametrize(
    ("arguments", "overrides", "refusal"),
    [
        ((), {"allowed_roots": None}, "--allowed-root: expected the directories"),
        (("--cpus", "writers=1"), {}, "--cpus: expected one of the services driver, writer"),
        (("--cpus", "writer=1-"), {}, "expected SERVICE=CORES"),
        (("--user", "a b"), {}, "expected the name of a user"),
        ((), {"number_of_writers": 0}, "number_of_writers: expected 1 or more"),
    ],
)
def test_refusals(
    arguments: tuple[str, ...],
    overrides: dict[str, object],
    refusal: str,
    make_units: Callable[..., Units],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        make_units(*arguments, **overrides)
    assert refusal in capsys.readouterr().err


needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze of systemd 250 or newer is needed"
)


@pytest.mark.external
@needs_systemd
@pytest.mark.parametrize("switch_user_active", [False, True])
def test_systemd_accepts_the_units(
    make_units: Callable[..., Units], tmp_path: Path, switch_user_active: bool
) -> None:
    make_units(*UNITS_OF_UP, "--cpus", "writer=0", "--user", _name(), switch_user_active=switch_user_active)
    paths = sorted((tmp_path / "units").iterdir())
    command = ["systemd-analyze", "verify", "--man=no", *paths]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)
    # It also loads the units of the machine, and may complain about these.
    complaints = [line for line in done.stderr.splitlines() if "std_daq-" in line]
    assert (complaints, done.returncode) == ([], 0)


# One of each kind, beside those of `stddaq up --source udp`.
FURTHER = (
    *("std_stream_send tcp://127.0.0.1:9100 0", "std_stream_receive tcp://127.0.0.1:9100 0"),
    *("std_data_sync_stream", "std_bsread_recv tcp://127.0.0.1:9"),
    "std_buffer_writer --root_dir /buffer --db_address tcp://127.0.0.1:6379",
    "std_buffer_driver --stream_address tcp://127.0.0.1:9",
)


@pytest.mark.external
@needs_systemd
@pytest.mark.parametrize(("user", "limit", "limit_of_files"), [("daemon", 2.0, 2.0), ("root", 2.5, 3.0)])
def test_exposure_by_systemds_rating(
    user: str, limit: float, limit_of_files: float, make_units: Callable[..., Units], tmp_path: Path
) -> None:
    """Services of root that use files act as other users, and so keep capabilities."""
    units = make_units(
        *("--user", user, "-m", *(word for line in FURTHER for word in ("--service", line))),
        *("--source", "udp"),
        n_modules=8,
        image_pixel_height=96,
        image_pixel_width=96,
        number_of_writers=1,
        switch_user_active=user == "root",
        live_stream_configs={"tcp://127.0.0.1:9000": {"type": "forward", "config": []}},
        services=["stddaq-rest", "std_gf_filter", "std_data_compress_blosc2 -t 1"],
    )
    use_files = ("std_det_", "stddaq-rest")
    services = [name for name in units if name.endswith("-0.service") or "live_stream" in name]
    assert len(services) > 15
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager"]
    for name in services:
        path = tmp_path / "units" / name
        done = subprocess.run([*command, path], check=False, capture_output=True, text=True, timeout=100)
        found = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
        assert found, done.stderr
        assert float(found[1]) <= (limit_of_files if any(x in name for x in use_files) else limit), name


def _name() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name
