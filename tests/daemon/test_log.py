"""Log and statistics lines, for Filebeat and people."""

from __future__ import annotations

import logging
import os
import pty
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.processes.deployment import Deployment, console_script, wait_until
from support.processes.machine import assert_within

from stddaq import __version__
from stddaq.daemon import log, statistics

STAMP = r"\[(0[1-9]|1[0-2])-([0-2]\d|3[01]) ([01]\d|2[0-3]):[0-5]\d:[0-5]\d\.\d{3}\]"
VERSION = re.escape(f"[v{__version__}]")


def line(service: str, level: str, message: str) -> str:
    """Return a regular expression for a whole line; `message` is a regular expression."""
    return rf"^{STAMP}\[{service}\]{VERSION}\[{level}\] {message}$"


@pytest.fixture(autouse=True)
def logger_as_before() -> Iterator[None]:
    logger = log.logger
    handlers, propagate, level = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)


def test_line_is_time_service_version_level_and_message(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up("std_det_writer", "debug")
    log.logger.debug("a")
    log.logger.info("b %d", 5)
    log.logger.warning("c")
    log.logger.error("d")
    log.event("run %s starts", "r1")

    captured = capsys.readouterr()
    levels_and_messages = (
        ("debug", "a"),
        ("info", "b 5"),
        ("warning", "c"),
        ("error", "d"),
        ("info", r"\[event\] run r1 starts"),
    )
    for found, (level, message) in zip(captured.out.splitlines(), levels_and_messages, strict=True):
        assert re.search(line("std_det_writer", level, message), found), found
    assert captured.err == ""


@pytest.mark.parametrize("is_journal", [True, False])
def test_journal_takes_the_level_of_each_line(
    is_journal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "output").open("w") as output:
        found = os.fstat(output.fileno())
        # The variable is inherited also by processes whose output goes elsewhere.
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino + (not is_journal)}")
        monkeypatch.setattr("sys.stdout", output)
        log.set_up("std_det_writer", "debug", "influxdb")
        log.logger.info("a", extra={"statistics": {"detector": "d", "n": 1}})
        try:
            raise ValueError("b")
        except ValueError:
            log.logger.exception("c")
    lines = (tmp_path / "output").read_text().splitlines()
    prefixes = [line[:3] for line in lines]
    expected = ["<6>"] + (len(lines) - 1) * ["<3>"]
    assert len(lines) > 3
    assert prefixes == expected if is_journal else not re.search(r"(?m)^<\d>", "\n".join(lines))


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", ["debug", "info", "warning", "error", "critical"]),
        ("info", ["info", "warning", "error", "critical"]),
        ("warning", ["warning", "error", "critical"]),
        ("error", ["error", "critical"]),
        ("off", []),
    ],
)
def test_log_level_of_the_configuration_hides_lower_levels(
    capsys: pytest.CaptureFixture[str], level: str, shown: list[str]
) -> None:
    log.set_up("s", level)
    for name in ("debug", "info", "warning", "error", "critical"):
        log.logger.log(getattr(logging, name.upper()), "x")
    assert [re.findall(r"\[(\w+)\] x", found)[0] for found in capsys.readouterr().out.splitlines()] == shown


def test_statistics_line_is_pairs_and_a_time_in_nanoseconds(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up("std_det_writer", "info")
    statistics.log_statistics("GF2", {"source": "image", "id": 2, "avg_throughput": 1.0 / 3})
    found = capsys.readouterr().out.rstrip("\n")
    assert re.search(
        line("std_det_writer", "info", r"detector=GF2,source=image,id=2,avg_throughput=0\.33 \d+"), found
    )


def test_idle_writer_prints_exactly_the_pairs_of_the_specification(deployment: Deployment) -> None:
    writer = deployment.start("std_det_writer", 1)
    pairs = (
        rf"detector={deployment.detector_name},source=image,id=1,n_written_images=0,"
        r"avg_buffer_write_us=0,max_buffer_write_us=0,avg_throughput=0\.00 \d{10,}"
    )
    writer.wait_for_line(line("std_det_writer", "info", pairs))


def test_idle_driver_prints_exactly_the_pairs_of_the_specification(deployment: Deployment) -> None:
    driver, _ = deployment.start_driver("-s", "filter")
    pairs = (
        rf"detector={deployment.detector_name},source=filter,processed_times=0,"
        r"repetition_rate_hz=0\.00,n_active_connections=0 \d{10,}"
    )
    driver.wait_for_line(line("std_det_driver", "info", pairs))


def test_idle_metadata_writer_prints_the_pairs_of_other_services(deployment: Deployment) -> None:
    writer = deployment.start("std_det_meta_writer_gf")
    pairs = (
        rf"detector={deployment.detector_name},source=\w+,processed_times=0,"
        r"repetition_rate_hz=0\.00 \d{10,}"
    )
    writer.wait_for_line(line("std_det_meta_writer_gf", "info", pairs))


@pytest.mark.slow
def test_statistics_come_once_a_period(make_deployment: Callable[..., Deployment]) -> None:
    deployment = make_deployment(stats_collection_period=2)
    writer = deployment.start("std_det_writer", 0)

    def times() -> list[int]:
        return [int(found.rsplit(" ", 1)[1]) for found in writer.stdout if "n_written_images" in found]

    wait_until(lambda: len(times()) >= 2, what="two statistics lines")
    period_s = (times()[1] - times()[0]) / 1e9
    assert period_s > 1.8
    assert_within(period_s, 4.0)


def test_a_daemon_prints_only_log_lines(deployment: Deployment) -> None:
    driver, _ = deployment.start_driver()
    writer = deployment.start("std_det_writer", 0)
    for service in (driver, writer):
        assert service.end() == 0
        assert service.stdout
        assert all(re.match(line(r"std_det_\w+", r"\w+", ".*"), found) for found in service.stdout), (
            service.output
        )
        assert service.stderr == []


def test_log_level_off_prints_nothing(make_deployment: Callable[..., Deployment]) -> None:
    deployment = make_deployment(log_level="off")
    writer = deployment.start("std_det_writer", 0, ready=None)
    wait_until(deployment.sockets, timeout=20, what="the writer's socket")
    assert writer.end() == 0
    assert writer.output.count("\n") == 0  # The output is only the command itself.


def test_level_is_coloured_on_a_terminal_only(deployment: Deployment, tmp_path: Path) -> None:
    command = [console_script("std_det_writer"), str(deployment.config_path), "99"]
    controller, terminal = pty.openpty()
    try:
        subprocess.run(command, env=deployment.env, stdout=terminal, timeout=30, check=True)
        on_terminal = os.read(controller, 4096).decode()
    finally:
        os.close(terminal)
        os.close(controller)
    in_pipe = subprocess.run(
        command, env=deployment.env, stdout=subprocess.PIPE, timeout=30, check=True, text=True
    ).stdout
    assert "[\x1b[32minfo\x1b[0m] " in on_terminal
    assert "\x1b" not in in_pipe


def test_message_with_line_breaks_is_one_line(
    capsys: pytest.CaptureFixture[str], logger_as_before: None
) -> None:
    """The path in a request for a master file can contain a carriage return."""
    log.set_up("std_det_writer", "info")
    log.logger.error("create_master_file failed: %s", "\ré\n\u2028a: is missing")
    out = capsys.readouterr().out
    assert out.splitlines() == [out.rstrip("\n")]
    assert out.endswith("create_master_file failed: \\ré\\n\\u2028a: is missing\n")
