"""Filebeat's input and the ingest pipeline of Elasticsearch understand the lines of every service.

The processors are executed here as Elasticsearch documents them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.peers.redis_server import RedisServer
from support.processes.deployment import Deployment, Service, free_port
from support.processes.other_services import start_other_services

from stddaq.config.services import PROGRAMS

FILEBEAT = Path(__file__).parents[2] / "services" / "filebeat"
PIPELINE = json.loads((FILEBEAT / "ingest-pipeline.json").read_text())["processors"]
CPP_LINE = (
    "[11-20 20:43:07.412][\x1b[33mstd_det_writer\x1b[0m][v0.13.34][\x1b[32minfo\x1b[0m] "
    "detector=GF2,source=image,id=2,n_written_images=7,avg_buffer_write_us=0,max_buffer_write_us=0,"
    "avg_throughput=1.50 13384997578250107"
)


def expanded(pattern: str, definitions: Mapping[str, str]) -> str:
    """Return the regular expression of a grok pattern whose definitions are all its own."""
    return re.sub(r"%\{(\w+):(\w+)\}", lambda found: f"(?P<{found[2]}>{definitions[found[1]]})", pattern)


def applies(condition: str | None, document: Mapping[str, Any]) -> bool:
    """Return the value of `ctx.FIELD != null` or `ctx.FIELD == null`."""
    if condition is None:
        return True
    found = re.fullmatch(r"ctx\.(\w+) (!=|==) null", condition)
    assert found, condition
    return (document.get(found[1]) is not None) == (found[2] == "!=")


def grok(document: dict[str, Any], options: Mapping[str, Any]) -> None:
    for pattern in options["patterns"]:
        if found := re.search(
            expanded(pattern, options["pattern_definitions"]), document[options["field"]], re.DOTALL
        ):
            document.update(found.groupdict())
            return
    raise AssertionError(f"no pattern fits {document}")


def ingested(line: str) -> dict[str, Any]:
    """Return the document that the pipeline makes of a line."""
    document: dict[str, Any] = {"message": line}
    for processor in PIPELINE:
        ((name, options),) = processor.items()
        field = options["field"]
        is_missing = isinstance(field, str) and field not in document
        if not applies(options.get("if"), document) or (is_missing and options.get("ignore_missing")):
            continue
        if name == "gsub":
            replacement = options["replacement"].replace("$1", r"\1")
            document[field] = re.sub(options["pattern"], replacement, document[field])
        elif name == "grok":
            grok(document, options)
        elif name == "kv":
            pairs = (
                pair.split(options["value_split"], 1)
                for pair in document[field].split(options["field_split"])
            )
            document.setdefault(options["target_field"], {}).update(pairs)
        elif name == "set":
            document[field] = document[options["copy_from"]] if "copy_from" in options else options["value"]
        elif name == "rename":
            document[options["target_field"]] = document.pop(field)
        else:
            assert name == "remove"
            for each in field:
                document.pop(each, None)
    return document


def test_lines_of_cpp_services_lose_their_colours() -> None:
    document = ingested(CPP_LINE)
    assert (document["service.name"], document["service.version"]) == ("std_det_writer", "0.13.34")
    assert (document["log.level"], document["event.kind"]) == ("info", "metric")
    assert document["std_daq"]["n_written_images"] == "7"
    assert document["std_daq"]["avg_throughput"] == "1.50"


def test_events_warnings_and_other_lines() -> None:
    event = ingested(
        "[11-20 20:43:07.412][std_det_driver][v0.1.0][info] [event] ready: listening on ws://a:1"
    )
    assert (event["message"], event["event.category"]) == ("ready: listening on ws://a:1", "process")
    warning = ingested(
        "[11-20 20:43:07.412][stddaq simulate][v0.1.0][warning] detector=x is no statistics line"
    )
    assert (warning["log.level"], warning["event.kind"]) == ("warning", "event")
    assert warning["message"] == "detector=x is no statistics line"
    assert ingested("  File x.py, line 3")["message"] == "  File x.py, line 3"


def test_the_journal_is_read_for_every_program() -> None:
    (journal,) = yaml.safe_load((FILEBEAT / "filebeat.yml").read_text())["filebeat.inputs"]
    programs = {name.removeprefix("stddaq ") for name in PROGRAMS}
    assert set(journal["syslog_identifiers"]) == programs


@pytest.mark.parametrize("statistics_format", ["std_daq", pytest.param("influxdb", marks=pytest.mark.slow)])
def test_real_lines_of_services(statistics_format: str, make_deployment: Callable[..., Deployment]) -> None:
    stream = f"tcp://127.0.0.1:{free_port()}"
    deployment = make_deployment(
        stats_collection_period=1,
        statistics_format=statistics_format,
        number_of_writers=1,
        live_stream_configs={stream: {"type": "forward", "config": []}},
    )
    driver, _ = deployment.start_driver()
    services = [
        driver,
        *deployment.start_writers(),
        deployment.start("std_det_meta_writer_gf"),
        deployment.start("std_live_stream", stream),
        deployment.start("std_gf_filter", "-n"),
        deployment.start("std_data_compress_blosc2", "-t", 1),
        deployment.run(deployment.stddaq, "simulate", deployment.config_path, "--rate", 20, ready="ready"),
    ]
    for service in services:
        service.wait_for_line(r"detector=\S+ \S+")
    for service in services:
        check_documents(service, deployment.detector_name)


@pytest.mark.external
def test_real_lines_of_other_services(make_deployment: Callable[..., Deployment], directory: Path) -> None:
    with RedisServer() as redis:
        services = start_other_services(make_deployment, directory, redis.address, stats_collection_period=1)
        for program, service in services.items():
            # It serves requests, and has no statistics.
            if program != "stddaq-rest":
                service.wait_for_line(r"detector=\S+ \S+")
            check_documents(service, has_statistics=program != "stddaq-rest")


def check_documents(service: Service, detector: str = "", *, has_statistics: bool = True) -> None:
    """Check the documents of all lines of a service."""
    # The first line is the command.
    documents = [ingested(line) for line in service.output.splitlines()[1:]]
    metrics = [document for document in documents if document["event.kind"] == "metric"]
    assert bool(metrics) == has_statistics, service.output
    for document in metrics:
        assert document["std_daq"]["detector"] == detector or not detector
        counts = [value for value in document["std_daq"].values() if re.fullmatch(r"-?\d+(\.\d+)?", value)]
        assert counts, document
    for document in documents:
        assert re.fullmatch(r"(std_|stddaq[ -])[a-z0-9_]+", document["service.name"]), document
    assert any(document.get("event.category") == "process" for document in documents)
