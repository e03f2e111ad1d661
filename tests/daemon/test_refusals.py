"""Services refuse unusable configurations and arguments: one line, exit code 2, nothing left behind."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.processes.deployment import Deployment, Service, console_script, make_config

from stddaq.sources import replay
from stddaq.sources.simulated import service as simulate
from stddaq.writing.driver import service as driver_service
from stddaq.writing.writer import meta_service as meta_writer_service
from stddaq.writing.writer import service as writer_service

Capture = pytest.CaptureFixture[str]
Main = Callable[[list[str]], int]
# Each service: its main function, and its arguments after the configuration file.
SERVICES: dict[str, tuple[Main, list[str]]] = {
    "std_det_driver": (driver_service.main, []),
    "std_det_writer": (writer_service.main, ["0"]),
    "std_det_meta_writer_gf": (meta_writer_service.main_gf, []),
    "std_det_meta_writer_jf": (meta_writer_service.main_jf, []),
    "std_det_meta_writer_eg": (meta_writer_service.main_eg, []),
    "std_det_meta_writer_pco": (meta_writer_service.main_pco, []),
    "stddaq simulate": (simulate.main, []),
    "stddaq replay": (replay.main, ["images.npy"]),
}


def command(service: str) -> list[str]:
    """Return the console script, with the subcommand of `stddaq`."""
    name, *sub_command = service.split()
    return [console_script(name), *sub_command]


def refusal(service: str, arguments: list[str], capsys: Capture) -> str:
    """Run the service's main function. Return its one line, without the service's name."""
    with pytest.raises(SystemExit) as ended:
        SERVICES[service][0](arguments)
    captured = capsys.readouterr()
    assert ended.value.code == 2
    assert captured.out == ""
    assert captured.err.endswith("\n")
    assert len(captured.err.splitlines()) == 1
    assert captured.err.startswith(f"{service}: error: ")
    return captured.err.removeprefix(f"{service}: error: ").rstrip("\n")


def refused(service: Service) -> str:
    """Wait for the refusal of a process. Return its one line."""
    assert service.wait(20) == 2, service.output
    assert len(service.stderr) == 1, service.output
    return service.stderr[0]


BAD_FILES: dict[str, tuple[bytes | None, str]] = {
    "missing": (None, "cannot be read: No such file or directory"),
    "not JSON": (b"{", "is not JSON"),
    "not UTF-8": (b"\xff\xfe\x00", "is not UTF-8 text"),
    "not an object": (b"[]", "expected a JSON object of configuration keys, got []"),
    "without a key": (
        json.dumps(make_config(bit_depth=None)).encode(),
        "bit_depth: expected a value, got nothing",
    ),
    "of a wrong type": (
        json.dumps(make_config(n_modules="1")).encode(),
        'n_modules: expected an integer, got "1"',
    ),
    "impossible": (
        json.dumps(make_config(bit_depth=12)).encode(),
        "bit_depth: expected 8, 16 or 32, got 12",
    ),
}


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("kind", BAD_FILES)
def test_every_service_refuses_an_unusable_configuration(
    service: str, kind: str, tmp_path: Path, capsys: Capture
) -> None:
    content, reason = BAD_FILES[kind]
    path = tmp_path / "detector.json"
    if content is not None:
        path.write_bytes(content)
    said = refusal(service, [str(path), *SERVICES[service][1]], capsys)
    assert said.startswith(f"{path}: ")
    assert reason in said


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "the following arguments are required: detector_json_filename"),
        (["CONFIG", "ARGUMENTS", "--no-such-option"], "unrecognized arguments: --no-such-option"),
        (["CONFIG", "ARGUMENTS", "too", "much"], "unrecognized arguments: too much"),
    ],
    ids=["none", "unknown option", "too many"],
)
def test_every_service_refuses_wrong_arguments(
    service: str,
    arguments: list[str],
    reason: str,
    deployment: Deployment,
    capsys: Capture,
) -> None:
    given: list[str] = []
    for argument in arguments:
        if argument == "ARGUMENTS":
            given += SERVICES[service][1]
        else:
            given.append(str(deployment.config_path) if argument == "CONFIG" else argument)
    said = refusal(service, given, capsys)
    assert reason in said
    assert f"(see {service} --help)" in said


@pytest.mark.parametrize(
    ("service", "arguments", "reason"),
    [
        ("std_det_driver", ["--port", "http"], "--port: expected an integer from 0 to 65535, got 'http'"),
        ("std_det_driver", ["-p", "-1"], "--port: "),
        ("std_det_driver", ["-p", "65536"], "--port: expected an integer from 0 to 65535, got '65536'"),
        ("std_det_driver", ["-p", "9" * 5000], "--port: "),
        (
            "std_det_driver",
            ["-s", "a/b"],
            "--source_suffix: expected letters, digits, '.', '_' and '-', got 'a/b'",
        ),
        ("std_det_driver", ["-s", ""], "--source_suffix: expected letters, digits, '.', '_' and '-', got ''"),
        (
            "std_det_driver",
            ["-s", "two words"],
            "--source_suffix: expected letters, digits, '.', '_' and '-', got 'two words'",
        ),
        ("std_det_driver", ["--source", "image"], "unrecognized arguments: --source"),
        (
            "std_det_driver",
            ["--writer-timeout", "0"],
            "--writer-timeout: expected a number of seconds above 0, up to 1e+06, got '0'",
        ),
        (
            "std_det_driver",
            ["--writer-timeout", "nan"],
            "--writer-timeout: expected a number of seconds above 0, up to 1e+06, got 'nan'",
        ),
        ("std_det_writer", [], "required: writer_id"),
        ("std_det_writer", ["one"], "writer_id: expected an integer from 0 to 2147483647, got 'one'"),
        ("std_det_writer", ["-1"], "writer_id"),
        ("std_det_writer", ["1.0"], "writer_id: expected an integer from 0 to 2147483647, got '1.0'"),
        (
            "std_det_writer",
            ["0", "-s", "../x"],
            "--source_suffix: expected letters, digits, '.', '_' and '-', got '../x'",
        ),
        ("stddaq simulate", ["--rate", "-1"], "--rate: expected a number of Hz from 0 to 1e+06, got '-1'"),
        ("stddaq simulate", ["--rate", "nan"], "--rate: expected a number of Hz from 0 to 1e+06, got 'nan'"),
        ("stddaq simulate", ["--burst", "0"], "--burst: expected an integer from 1 to 4294967296, got '0'"),
        ("stddaq simulate", ["--scene", "cats"], "--scene: invalid choice: 'cats'"),
        (
            "stddaq replay",
            ["images.npy", "--first-id", "x"],
            "--first-id: expected an integer from 0 to 18446744073709551615, got 'x'",
        ),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_wrong_argument_is_refused_with_what_is_expected(
    service: str,
    arguments: list[str],
    reason: str,
    deployment: Deployment,
    capsys: Capture,
) -> None:
    said = refusal(service, [str(deployment.config_path), *arguments], capsys)
    assert reason in said
    assert len(said) < 6000


@pytest.mark.parametrize("service", SERVICES)
def test_refusal_of_a_process_is_one_line_without_a_traceback(service: str, tmp_path: Path) -> None:
    process = subprocess.run(
        [*command(service), str(tmp_path / "missing.json"), *SERVICES[service][1]],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr == (
        f"{service}: error: {tmp_path}/missing.json: cannot be read: No such file or directory\n"
    )


def test_path_with_a_line_break_still_makes_one_line(tmp_path: Path, capsys: Capture) -> None:
    assert "cannot be read" in refusal("std_det_driver", [str(tmp_path / "a\nb.json")], capsys)


MakeDeployment = Callable[..., Deployment]


def start_refused(deployment: Deployment, service: str, *arguments: object) -> str:
    """Start a service that must refuse to start. Return its line."""
    return refused(deployment.run(*command(service), deployment.config_path, *arguments))


def test_driver_without_writers_is_refused(make_deployment: MakeDeployment) -> None:
    deployment = make_deployment(number_of_writers=0)
    said = start_refused(deployment, "std_det_driver")
    assert f"{deployment.config_path}: number_of_writers: expected 1 or more for a driver, got 0" in said


def test_driver_with_a_missing_allowed_root_is_refused(deployment: Deployment) -> None:
    said = start_refused(deployment, "std_det_driver", "--allowed-root", "/no/such/directory")
    assert "--allowed-root: expected an existing directory, got '/no/such/directory'" in said


@pytest.mark.parametrize(
    ("service", "allowed"),
    [
        ("std_det_meta_writer_gf", "gigafrost"),
        ("std_det_meta_writer_jf", "jungfrau-raw or jungfrau-converted"),
        ("std_det_meta_writer_pco", "pco"),
    ],
)
def test_metadata_writer_of_another_detector_is_refused(
    make_deployment: MakeDeployment, service: str, allowed: str
) -> None:
    deployment = make_deployment(detector_type="eiger")
    said = start_refused(deployment, service)
    assert said.endswith(f"detector_type: expected {allowed} for {service}, got 'eiger'")


def test_port_in_use_is_refused_with_the_port(make_deployment: MakeDeployment) -> None:
    _, url = make_deployment().start_driver()
    port = url.rsplit(":", 1)[1]
    said = start_refused(make_deployment(), "std_det_driver", "--port", port)
    assert f"--port {port}: cannot listen: " in said
    assert "in use; end the program that has it, or choose another port" in said


@pytest.mark.parametrize(
    ("service", "arguments"),
    [
        ("std_det_driver", ["--port", "0"]),
        ("std_det_writer", ["1"]),
        ("std_det_meta_writer_gf", []),
        ("stddaq simulate", ["--trigger"]),
    ],
)
def test_second_service_of_the_same_kind_is_refused_and_the_first_keeps_running(
    deployment: Deployment, service: str, arguments: list[str]
) -> None:
    first = deployment.run(*command(service), deployment.config_path, *arguments, ready="ready")
    before = deployment.sockets(), deployment.segments()

    said = start_refused(deployment, service, *arguments)

    assert re.search(
        rf"ipc://\S+/{deployment.detector_name}-\S+: another running service is bound there", said
    )
    assert (deployment.sockets(), deployment.segments()) == before
    assert first.returncode is None
    assert first.end() == 0


@pytest.mark.parametrize(
    ("service", "arguments"), [("std_det_writer", ["1"]), ("stddaq simulate", ["--trigger"])]
)
@pytest.mark.parametrize(
    "changes",
    [{"image_pixel_height": 64}, {"image_pixel_height": 48, "image_pixel_width": 32}],
    ids=["other size", "same size"],
)
def test_ring_of_another_geometry_in_use_is_refused_with_both_geometries_geometries(
    deployment: Deployment, service: str, arguments: list[str], changes: dict[str, Any]
) -> None:
    first = deployment.start("std_det_writer", 0)
    before = deployment.sockets(), deployment.segments()
    deployment.write_config(**changes)

    said = start_refused(deployment, service, *arguments)

    assert f"/dev/shm/{deployment.detector_name}-image: expected " in said
    height, width = deployment.config["image_pixel_height"], deployment.config["image_pixel_width"]
    assert f"1000 slots of {height * width * 2} bytes ({height}x{width}" in said
    assert (deployment.sockets(), deployment.segments()) == before
    assert first.returncode is None


def test_ipc_directory_that_makes_names_too_long_is_refused(deployment: Deployment) -> None:
    deployment.env["STDDAQ_IPC_DIR"] = "/tmp/" + "d" * 100
    assert "at most 107 bytes, got 123 bytes; shorten detector_name or STDDAQ_IPC_DIR" in start_refused(
        deployment, "std_det_writer", 0
    )


@pytest.mark.parametrize("writer_id", [2, 3, 100])
def test_writer_that_is_not_needed_says_so_and_exits_with_0(deployment: Deployment, writer_id: int) -> None:
    writer = deployment.start("std_det_writer", writer_id, ready=None)
    assert writer.wait() == 0
    assert writer.stderr == []
    assert len(writer.stdout) == 1
    assert f"writer {writer_id} is not needed: number_of_writers is 2" in writer.stdout[0]
    assert deployment.segments() == []
