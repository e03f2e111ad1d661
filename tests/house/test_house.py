"""Promises of the whole package: import time, commands, generated code."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes.deployment import Service, console_script

import stddaq

ROOT = Path(__file__).parents[2]
# Modules that are slow to import.
HEAVY = (
    "bluesky",
    "dask",
    "event_model",
    "fastapi",
    "h5py",
    "hdf5plugin",
    "numpy",
    "ophyd",
    "PIL",
    "pydantic",
    "redis",
    "rich",
    "tifffile",
    "uvicorn",
    "websockets",
    "zmq",
)

# The options in std_daq's documents.
SERVICES = {
    "std_det_driver": (
        "-s SUFFIX, --source_suffix SUFFIX",
        "-p PORT, --port PORT",
        "-m, --with_metadata_writer",
        "detector_json_filename",
    ),
    "std_det_writer": ("-s SUFFIX, --source_suffix SUFFIX", "detector_json_filename", "writer_id"),
    "std_live_stream": (
        "-s SUFFIX, --source_suffix SUFFIX",
        "-t {array-1.0,bsread,stins}, --type {array-1.0,bsread,stins}",
        "--source_suffix_meta SUFFIX",
        "--source_suffix_image SUFFIX",
        "detector_json_filename",
        "stream_address",
    ),
    "std_det_meta_writer_gf": ("detector_json_filename",),
    "std_det_meta_writer_jf": ("detector_json_filename",),
    "std_det_meta_writer_eg": ("detector_json_filename",),
    "std_det_meta_writer_pco": ("detector_json_filename",),
    "stddaq-rest": ("-p PORT, --port PORT", "--root DIRECTORY", "--token-file FILE", "CONFIG"),
    "std_bsread_recv": (
        "-n CONNECTIONS",
        "-t {pull,sub}",
        "detector_json_filename",
        "stream_address",
    ),
    "std_data_compress_h5bitshuffle_lz4": (
        "-t THREADS, --threads THREADS",
        "-b BLOCK, --block_size BLOCK",
        "detector_json_filename",
    ),
    "std_data_compress_blosc2": (
        "-t THREADS, --threads THREADS",
        "-l LEVEL, --level LEVEL",
        "detector_json_filename",
    ),
    "std_buffer_writer": (
        "--root_dir DIR",
        "--db_address URL",
        "-t HOURS, --timeout HOURS",
        "detector_json_filename",
    ),
    "std_buffer_reader": ("--root_dir DIR", "--db_address URL", "detector_json_filename"),
    "std_buffer_driver": ("--stream_address ADDRESS", "-p PORT, --port PORT", "detector_json_filename"),
    "std_gf_filter": (
        "-s SUFFIX, --source_suffix SUFFIX",
        "-n, --no_filter",
        "detector_json_filename",
    ),
    "std_delay_filter": ("-s SUFFIX, --source_suffix SUFFIX", "detector_json_filename"),
    "std_preview": ("-s SUFFIX, --source_suffix SUFFIX", "--hz HZ", "detector_json_filename"),
    "std_udp_recv_eg": ("detector_json_filename", "module_id"),
    "std_udp_recv_gf": ("detector_json_filename", "module_id"),
    "std_udp_recv_jf": ("detector_json_filename", "module_id"),
    "std_udp_tools_dump": ("detector_json_filename",),
    "std_udp_tools_replay": ("detector_json_filename",),
    "std_data_convert_gf": ("detector_json_filename", "module_id"),
    "std_data_convert_eg": ("detector_json_filename", "module_id"),
    "std_data_convert_jf": (
        "-g FILE, --gains_and_pedestals FILE",
        "detector_json_filename",
        "module_id",
    ),
    "std_data_sync_module": ("detector_json_filename",),
    "std_stream_send": ("detector_json_filename", "stream_address", "image_part"),
    "std_stream_receive": ("detector_json_filename", "stream_address", "image_part"),
    "std_data_sync_stream": ("detector_json_filename",),
    "std_metadata_stream": (
        "-s SUFFIX, --source_suffix SUFFIX",
        "detector_json_filename",
        "stream_address",
    ),
    "std_data_sync_metadata": ("detector_json_filename", "metadata_stream_address"),
    "stddaq": ("demo", "up", "record", "simulate", "replay", "info", "aggregate"),
}
# Second names of commands, which std_daq's own installation gives them.
ALIASES = {"std_udp_dump": "std_udp_tools_dump", "std_udp_replay": "std_udp_tools_replay"}


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=110, check=False, stdin=subprocess.DEVNULL, cwd=ROOT
    )


def heavy_modules_after(statement: str) -> list[str]:
    """Return the modules of HEAVY that a fresh interpreter has imported after `statement`."""
    program = f"import sys\n{statement}\nprint(*(set({HEAVY}) & sys.modules.keys()), file=sys.stderr)"
    done = run(sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
    return done.stderr.split()


@pytest.mark.parametrize(
    "statement",
    [
        "import stddaq",
        "import stddaq.errors",
        "import stddaq_ophyd",
        "from stddaq.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
        "from stddaq.cli import main\ntry: main(['record', '--help'])\nexcept SystemExit: pass",
    ],
)
def test_import_and_help_load_nothing_heavy(statement: str) -> None:
    assert heavy_modules_after(statement) == []


def test_client_needs_neither_files_nor_the_data_plane() -> None:
    assert set(heavy_modules_after("import stddaq.client")) <= {"pydantic", "websockets"}


@pytest.mark.slow
def test_handlers_need_no_devices() -> None:
    loaded = heavy_modules_after("import stddaq_ophyd.handlers")
    assert not {"bluesky", "event_model", "ophyd"} & set(loaded)


@pytest.mark.parametrize("service", SERVICES)
def test_command_is_installed_with_its_documented_arguments(service: str) -> None:
    command = console_script(service)
    assert os.access(command, os.X_OK)
    done = Service([command, "--help"], os.environ)
    assert done.wait() == 0
    assert done.stderr == []
    assert done.stdout[0].startswith(f"usage: {service} [-h] [--version]")
    described = " ".join(" ".join(done.stdout).split())
    for argument in SERVICES[service]:
        assert argument in described or as_python_3_13(argument) in described


def as_python_3_13(argument: str) -> str:
    """Return `-s SUFFIX, --source_suffix SUFFIX` with its value once, as that Python describes it."""
    return re.sub(r"^(-\w) \S+, (--)", r"\1, \2", argument)


@pytest.mark.parametrize("service", SERVICES)
def test_every_command_shows_the_version_of_the_package(
    service: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name=service)
    monkeypatch.setattr(sys, "argv", [service, "--version"])
    with pytest.raises(SystemExit) as exited:
        script.load()()
    assert not exited.value.code
    assert capfd.readouterr() == (f"{stddaq.__version__}\n", "")


def test_installed_commands_are_these_and_no_others() -> None:
    scripts = importlib.metadata.distribution("stddaq").entry_points.select(group="console_scripts")
    assert {script.name for script in scripts} == set(SERVICES) | set(ALIASES)
    for script in scripts:
        assert callable(script.load())


def test_version_is_that_of_the_distribution() -> None:
    assert importlib.metadata.version("stddaq") == stddaq.__version__
    # X.Y.Z on a tag; after it X.Y.Z.devN+gCOMMIT, with .dDATE if there are uncommitted changes.
    assert re.fullmatch(r"\d+\.\d+(\.\d+)?(\.dev\d+)?(\+[\w.]+)?", stddaq.__version__)


def test_module_runs_like_the_command() -> None:
    assert run(sys.executable, "-m", "stddaq", "--version").stdout == f"{stddaq.__version__}\n"


def test_protobuf_code_is_what_the_schema_generates(tmp_path: Path) -> None:
    done = run(str(ROOT / "proto" / "generate"), sys.executable, str(tmp_path))
    assert done.returncode == 0, done.stderr
    generated = {path.name: path.read_text() for path in (tmp_path / "std_daq").iterdir()}
    checked_in = ROOT / "src" / "stddaq" / "wire" / "std_daq"
    assert generated == {
        path.name: path.read_text() for path in checked_in.glob("*_pb2.py*") if path.is_file()
    }
