"""A start that the operating system does not allow, for every daemon: one line, exit code 2."""

from __future__ import annotations

import sys
from importlib.metadata import distribution

import pytest
from support.processes import few_descriptors, without_sockets
from support.processes.deployment import Deployment, console_script

# Each daemon with its arguments after the configuration file.
DAEMONS: dict[str, list[str]] = {
    "std_bsread_recv": ["tcp://127.0.0.1:9"],
    "std_buffer_driver": ["--stream_address", "tcp://127.0.0.1:0", "--port", "0"],
    "std_buffer_reader": ["--root_dir", ".", "--db_address", "tcp://127.0.0.1:9"],
    "std_buffer_writer": ["--root_dir", ".", "--db_address", "tcp://127.0.0.1:9"],
    "std_data_compress_blosc2": ["-t", "1"],
    "std_data_compress_h5bitshuffle_lz4": ["-t", "1"],
    "std_delay_filter": [],
    "std_det_driver": ["--port", "0"],
    "std_det_meta_writer_eg": [],
    "std_det_meta_writer_gf": [],
    "std_det_meta_writer_jf": [],
    "std_det_meta_writer_pco": [],
    "std_det_writer": ["0"],
    "std_data_convert_eg": ["0"],
    "std_data_convert_gf": ["0"],
    "std_data_convert_jf": ["0"],
    "std_data_sync_module": [],
    "std_data_sync_metadata": ["tcp://127.0.0.1:9"],
    "std_data_sync_stream": [],
    "std_metadata_stream": ["tcp://127.0.0.1:0"],
    "std_stream_receive": ["tcp://127.0.0.1:9", "0"],
    "std_stream_send": ["tcp://127.0.0.1:0", "0"],
    "std_gf_filter": [],
    "std_live_stream": ["tcp://127.0.0.1:0"],
    "std_preview": [],
    "std_udp_recv_eg": ["0"],
    "std_udp_recv_gf": ["0"],
    "std_udp_recv_jf": ["0"],
    "std_udp_tools_dump": [],
    "std_udp_tools_replay": ["1", "."],
    "stddaq simulate": [],
    "stddaq replay": ["images.npy"],
    "stddaq simulate-pco": ["tcp://127.0.0.1:0"],
    "stddaq-rest": ["--port", "0"],
}
# The daemon under both names of std_daq (C++).
SECOND_NAMES = {"std_udp_dump", "std_udp_replay"}
# Detector types that a daemon accepts.
DETECTOR_TYPES = {
    "std_bsread_recv": "pco",
    "std_det_meta_writer_eg": "eiger",
    "std_det_meta_writer_jf": "jungfrau-raw",
    "std_det_meta_writer_pco": "pco",
    "stddaq simulate-pco": "pco",
}


def test_all_daemons_are_tested() -> None:
    scripts = distribution("stddaq").entry_points.select(group="console_scripts")
    names = {script.name for script in scripts} - SECOND_NAMES
    assert {name.split()[0] for name in DAEMONS} == names


def refusal(deployment: Deployment, daemon: str, command: list[str]) -> str:
    """Run a daemon that must be refused, and return its line."""
    script, *sub_command = daemon.split()
    if detector_type := DETECTOR_TYPES.get(daemon):
        deployment.write_config(detector_type=detector_type)
    refused = deployment.run(*command, script, *sub_command, deployment.config_path, *DAEMONS[daemon])
    assert refused.wait() == 2, refused.output
    assert len(refused.stderr) == 1, refused.output
    return refused.stderr[0]


@pytest.mark.parametrize("daemon", DAEMONS)
def test_error_of_the_operating_system_at_the_start_is_one_line(deployment: Deployment, daemon: str) -> None:
    line = refusal(deployment, daemon, [sys.executable, "-P", without_sockets.__file__])
    assert line == f"{daemon}: error: Too many open files"


TOO_FEW = "limit of open files (ulimit -Hn): expected 128 or more, got 20"


@pytest.mark.parametrize("daemon", DAEMONS)
def test_too_few_descriptors_are_refused_before_libzmq_aborts(deployment: Deployment, daemon: str) -> None:
    line = refusal(deployment, daemon, [sys.executable, "-P", few_descriptors.__file__, "20"])
    assert line == f"{daemon}: error: {TOO_FEW}"


def test_too_few_descriptors_of_a_shell_are_refused(deployment: Deployment) -> None:
    bin_directory = console_script("stddaq").removesuffix("stddaq")
    shell = ["sh", "-c", 'ulimit -n 20 && script=$1 && shift && exec "$0$script" "$@"', bin_directory]
    assert refusal(deployment, "std_det_driver", shell) == f"std_det_driver: error: {TOO_FEW}"
