"""Every service publishes its metrics from its start on, and no label names a run or a user."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from support.peers.cameras import PCO
from support.peers.udp_detectors import free_udp_ports
from support.processes.deployment import Deployment, console_script, free_port, wait_until
from support.processes.live_streams import FORWARD

from stddaq.daemon import metrics as m
from stddaq.daemon.metrics import TABLE, Metric
from stddaq.daemon.metrics_reader import Page, read_pages

EIGER: dict[str, Any] = {
    "detector_type": "eiger",
    "n_modules": 1,
    "image_pixel_height": 256,
    "image_pixel_width": 514,
    "module_positions": {"0": [0, 0, 513, 255]},
}
GIGAFROST = {"n_modules": 8, "image_pixel_height": 32, "image_pixel_width": 48}
JUNGFRAU: dict[str, Any] = {
    "detector_type": "jungfrau-raw",
    "n_modules": 1,
    "image_pixel_height": 512,
    "image_pixel_width": 1024,
    "module_positions": {"0": [0, 0, 1023, 511]},
}
ADDRESS, DIRECTORY, REDIS = "tcp://127.0.0.1:{port}", "{directory}", "{redis}"

ALL = {m.MESSAGES_LOGGED}
STREAM_READER = {m.IMAGES_RECEIVED, m.MESSAGES_LOST, m.IDS_SKIPPED, m.IDS_RESTARTED, m.MESSAGES_REJECTED}
RING_READER = {m.IMAGES_OVERWRITTEN, m.IMAGES_FAILED, m.RING_LAG_IMAGES, m.RING_LAG_RATIO}
SOURCE = {m.IMAGES_PUBLISHED, m.IMAGE_BYTES_PUBLISHED, m.IDS_RESTARTED}
SIMULATOR = SOURCE | {m.SOURCE_IMAGES_BEHIND}
STAGE = STREAM_READER | RING_READER | {m.IMAGES_PROCESSED}
DELAY_FILTER = STREAM_READER | {m.RING_LAG_IMAGES, m.RING_LAG_RATIO, m.IMAGES_PASSED, m.IMAGES_WAITING}
DELAY_FILTER |= {m.IMAGES_OVERWRITTEN}
COMPRESSOR = STAGE | {m.IMAGES_UNCOMPRESSED, m.COMPRESSED_BYTES, m.UNCOMPRESSED_BYTES}
METADATA_WRITER = {m.IMAGES_RECEIVED, m.IMAGES_FAILED}
RECEIVER = {m.PACKETS_RECEIVED, m.PACKETS_MISSING, m.PACKETS_REJECTED, m.PACKETS_DROPPED, m.RECEIVE_CALLS}
RECEIVER |= {m.FRAMES_ANNOUNCED, m.FRAMES_CORRUPTED, m.IDS_RESTARTED}
CONVERTER = {m.IMAGES_PROCESSED, m.IMAGES_OVERWRITTEN, m.IMAGES_FAILED, m.MESSAGES_REJECTED}


@dataclass(frozen=True)
class Program:
    """A service: what it publishes, and how it starts."""

    published: set[Metric]
    args: Sequence[object] = ()
    config: Mapping[str, Any] = field(default_factory=dict)


DRIVER = STREAM_READER | {m.CLIENTS_CONNECTED, m.COMMANDS_REFUSED, m.RUN_ACTIVE, m.RUN_STATE, m.RUNS_FINISHED}
DRIVER |= {m.IMAGES_DAMAGED, m.IMAGES_FORWARDED}
WRITER = RING_READER | {m.IMAGES_WRITTEN, m.IMAGE_BYTES_WRITTEN, m.IMAGE_WRITE_SECONDS}
WRITER |= {m.IMAGE_WRITE_LONGEST_SECONDS}
CAMERA_RECEIVER = SOURCE | {m.IMAGES_RECEIVED, m.CAMERA_IMAGES_LEFT_OUT, m.CAMERA_CONNECTIONS}
CAMERA_RECEIVER |= {m.MESSAGES_REJECTED}
LIVE_STREAM = STREAM_READER | RING_READER | {m.IMAGES_SENT, m.VIEWER_IMAGES_DROPPED, m.VIEWERS_CONNECTED}
SYNCHRONISER = SOURCE | {m.IMAGES_OVERWRITTEN, m.IMAGES_INCOMPLETE, m.IMAGES_WAITING, m.MODULE_FRAMES}
SYNCHRONISER |= {m.MODULE_FRAMES_DOUBTFUL, m.MODULE_FRAMES_IGNORED, m.MODULE_FRAMES_LOST, m.MESSAGES_REJECTED}
SENDER = STREAM_READER | RING_READER | {m.PARTS_SENT, m.PARTS_UNWANTED, m.SERVER_CONNECTIONS}
PART_RECEIVER = {m.PARTS_RECEIVED, m.PARTS_LOST, m.PARTS_UNWANTED, m.IDS_RESTARTED, m.MESSAGES_REJECTED}
PART_RECEIVER |= {m.SERVER_CONNECTIONS}
METADATA_SENDER = STREAM_READER | {m.IMAGES_FAILED, m.RING_LAG_IMAGES, m.RING_LAG_RATIO}
METADATA_SENDER |= {m.PARTS_SENT, m.SERVER_CONNECTIONS}
PART_SYNCHRONISER = SOURCE | {m.IMAGES_OVERWRITTEN, m.IMAGES_INCOMPLETE, m.IMAGES_NOT_RECEIVED}
PART_SYNCHRONISER |= {m.IMAGES_WAITING, m.PARTS_RECEIVED, m.PARTS_IGNORED, m.MESSAGES_REJECTED}
BUFFER_WRITER = STAGE | {m.IMAGES_WRITTEN, m.IMAGE_BYTES_WRITTEN, m.COMPRESSED_BYTES, m.IMAGES_ANNOUNCED}
BUFFER_WRITER |= {m.IMAGES_REPLACED, m.IMAGES_NOT_STORED, m.IMAGES_WAITING}
BUFFER_READER = {m.IMAGES_PUBLISHED, m.IMAGE_BYTES_PUBLISHED, m.IMAGES_EXPIRED, m.IMAGES_UNREADABLE}
BUFFER_DRIVER = {m.CLIENTS_CONNECTED, m.COMMANDS_REFUSED, m.IMAGES_REPLAYED, m.REPLAY_ACTIVE}
REST = {m.PAGES_REJECTED, m.HTTP_REQUESTS}
REST |= {m.BROWSERS_CONNECTED, m.BROWSER_IMAGES_SENT, m.BROWSER_IMAGES_SKIPPED}

PROGRAMS = {
    "std_det_driver": Program(DRIVER, ["--port", 0]),
    "std_det_writer": Program(WRITER, [0]),
    "std_det_meta_writer_gf": Program(METADATA_WRITER),
    "std_det_meta_writer_eg": Program(METADATA_WRITER, config=EIGER),
    "std_det_meta_writer_jf": Program(METADATA_WRITER, config=JUNGFRAU),
    "std_det_meta_writer_pco": Program(METADATA_WRITER, config=PCO),
    "std_data_compress_h5bitshuffle_lz4": Program(COMPRESSOR, ["-t", 1]),
    "std_data_compress_blosc2": Program(COMPRESSOR, ["-t", 1]),
    "std_gf_filter": Program(STAGE | {m.IMAGES_PASSED}),
    "std_delay_filter": Program(DELAY_FILTER),
    "std_live_stream": Program(LIVE_STREAM, [ADDRESS], {"live_stream_configs": {ADDRESS: FORWARD}}),
    "std_preview": Program({m.PREVIEWS_ENCODED, m.PREVIEW_ENCODE_SECONDS, m.IMAGES_OVERWRITTEN}),
    "std_bsread_recv": Program(CAMERA_RECEIVER, [ADDRESS], PCO),
    "std_udp_recv_gf": Program(RECEIVER, [0], GIGAFROST),
    "std_udp_recv_eg": Program(RECEIVER, [0], EIGER),
    "std_udp_recv_jf": Program(RECEIVER, [0], JUNGFRAU),
    "std_data_convert_gf": Program(CONVERTER, [0], GIGAFROST),
    "std_data_convert_eg": Program(CONVERTER, [0], EIGER),
    "std_data_convert_jf": Program(CONVERTER, [0], JUNGFRAU),
    "std_data_sync_module": Program(SYNCHRONISER, config=EIGER),
    "std_data_sync_stream": Program(PART_SYNCHRONISER),
    "std_data_sync_metadata": Program(PART_SYNCHRONISER, [ADDRESS], {"sender_sends_full_images": True}),
    "std_metadata_stream": Program(METADATA_SENDER, [ADDRESS]),
    "std_stream_receive": Program(PART_RECEIVER, [ADDRESS, 0]),
    "std_stream_send": Program(SENDER, [ADDRESS, 0]),
    "std_buffer_writer": Program(BUFFER_WRITER, ["--root_dir", DIRECTORY, "--db_address", REDIS]),
    "std_buffer_reader": Program(BUFFER_READER, ["--root_dir", DIRECTORY, "--db_address", REDIS]),
    "std_buffer_driver": Program(BUFFER_DRIVER, ["--port", 0, "--stream_address", ADDRESS]),
    "stddaq-rest": Program(REST, ["--port", 0]),
    "stddaq simulate": Program(SIMULATOR),
}
NO_SERVICES = {"stddaq", "std_udp_tools_dump", "std_udp_dump", "std_udp_tools_replay", "std_udp_replay"}
# Of conversions with files of pedestals and gains; see udp/test_converters.py.
CALIBRATED = {m.PIXELS_WITHOUT_VALUE}
# `stddaq up` is tested with the services that it runs; the rest is made from pages, /proc and the machine.
UP = {m.WANTED, m.SERVICE_RESTARTS, m.CONFIGURATION_CHANGES}
EXPORTER = {m.SERVICE_UP, m.SERVICE_WANTED, m.SERVICE_HEARTBEAT_AGE, m.SERVICE_START_TIME, m.SERVICE_INFO}
EXPORTER |= {m.PROCESS_CPU_SECONDS, m.PROCESS_MEMORY, m.PROCESS_DESCRIPTORS, m.CONFIGURATION_VALID}
EXPORTER |= {m.RING_SLOTS, m.RING_UNRESERVED_BYTES, m.SHARED_MEMORY_FREE_BYTES}
EXPORTER |= {m.DISK_FREE_BYTES, m.DISK_SIZE_BYTES}

# Labels with few values, which a monitoring system can keep for years.
LABELS = {
    "source",
    "reason",
    "state",
    "outcome",
    "writer",
    "module",
    "error",
    "type",
    "codec",
    "status",
    "method",
    "level",
}
_VALUE = re.compile(r"[\w.-]*")


def page_of(deployment: Deployment) -> Page:
    """Return the only page of a detector."""

    def found() -> Page | None:
        pages = read_pages(deployment.detector_name)
        assert not pages.rejected
        return pages.valid[0] if pages.valid else None

    return wait_until(found, 30, "the page")


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(name, marks=[pytest.mark.external] if REDIS in program.args else [])
        for name, program in PROGRAMS.items()
    ],
)
def test_service_publishes_its_metrics_from_the_start(
    make_deployment: Callable[..., Deployment],
    directory: Path,
    request: pytest.FixtureRequest,
    program: str,
) -> None:
    expected, address = PROGRAMS[program], ADDRESS.format(port=free_port())
    config = dict(expected.config)
    if "live_stream_configs" in config:
        config["live_stream_configs"] = {address: FORWARD}
    values = {ADDRESS: address, DIRECTORY: directory}
    if REDIS in expected.args:
        values[REDIS] = request.getfixturevalue("redis").address
    deployment = make_deployment(start_udp_port=free_udp_ports(8), **config)
    name, *command = program.split()
    args = [
        values.get(argument, argument) if isinstance(argument, str) else argument
        for argument in expected.args
    ]
    deployment.run(console_script(name), *command, deployment.config_path, *args, ready="ready")
    page = page_of(deployment)
    assert {series.metric for series in page.values} == expected.published | ALL
    for series, value in page.values.items():
        assert set(series.metric.labels) <= LABELS
        assert all(_VALUE.fullmatch(label) for label in series.labels), series
        # An increase from nothing would not be seen.
        assert series.metric.kind == "gauge" or value >= 0


def test_every_service_and_every_metric_is_tested() -> None:
    scripts = {script.name for script in distribution("stddaq").entry_points.select(group="console_scripts")}
    assert scripts - NO_SERVICES == {program for program in PROGRAMS if " " not in program}
    published = set().union(*(program.published for program in PROGRAMS.values()))
    assert published | ALL | UP | EXPORTER | CALIBRATED == set(TABLE.values())
    assert all(set(metric.labels) <= LABELS for metric in published)
