"""Metrics pages of real services, and readers that trust none of them."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.processes.deployment import Deployment, wait_until
from support.processes.recording import DAMAGED, Rig, image_of

from stddaq.daemon import metrics
from stddaq.daemon.health import ServiceHealth, health_of
from stddaq.daemon.metrics import Metric, Registry, Series
from stddaq.daemon.metrics_page import (
    FIXED,
    SCHEMA_AT,
    STATE,
    MetricsPage,
    directory_of,
    published_page,
    remove_unused_pages,
)
from stddaq.daemon.metrics_reader import Page, PageError, read_pages

NAME = "GF2"


@pytest.fixture(autouse=True)
def ipc_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STDDAQ_IPC_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def registry() -> Registry:
    registry = Registry(NAME, "std_det_writer", "3")
    registry.add(metrics.IMAGES_WRITTEN, lambda: 7, source="image")
    registry.add(metrics.IMAGE_WRITE_SECONDS, lambda: 0.25)
    return registry


@pytest.fixture
def page(registry: Registry) -> Iterator[MetricsPage]:
    page = MetricsPage(registry, period=1)
    page.publish_if_due()
    yield page
    page.close()


@pytest.fixture
def path(page: MetricsPage) -> Path:
    return directory_of(NAME) / "std_det_writer-3"


def only_page(name: str = NAME) -> Page:
    pages = read_pages(name)
    assert not pages.rejected
    assert len(pages.valid) == 1
    return pages.valid[0]


def value(page: Page, metric: Metric, *labels: str) -> float:
    return page.values[Series(metric, labels)]


def test_values_and_labels_are_those_of_the_registry(path: Path) -> None:
    page = only_page()
    assert (page.service, page.instance_id, page.pid) == ("std_det_writer", "3", os.getpid())
    assert page.is_running
    assert page.age_s < page.silent_after_s == 4
    assert value(page, metrics.IMAGES_WRITTEN, "image") == 7
    assert value(page, metrics.IMAGE_WRITE_SECONDS) == 0.25


def test_parts_of_services_outside_a_daemon_publish_nothing(registry: Registry) -> None:
    assert published_page(registry, 1) is None


def test_page_and_directory_are_removed_at_the_end(registry: Registry, ipc_directory: Path) -> None:
    first, second = MetricsPage(registry, 1), MetricsPage(Registry(NAME, "std_det_driver"), 1)
    for page in (first, second):
        page.publish_if_due()
    for page in (first, second):
        page.remove()
        page.close()
        if page is first:
            assert only_page().service == "std_det_driver"
    assert list(ipc_directory.iterdir()) == []
    assert not read_pages(NAME).valid


def test_fork_that_ends_does_not_remove_the_page(page: MetricsPage, path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=page.remove)
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert path.exists()


def test_second_service_of_a_name_leaves_the_page_of_the_first(page: MetricsPage, registry: Registry) -> None:
    second = MetricsPage(registry, 1)
    before = only_page().started_s
    second.publish_if_due()
    assert only_page().started_s == before
    second.close()
    assert only_page().started_s == before


def test_removed_page_is_made_again(page: MetricsPage, path: Path) -> None:
    path.unlink()
    path.parent.rmdir()
    wait_until(lambda: (page.publish_if_due(), path.exists())[1])
    assert value(only_page(), metrics.IMAGES_WRITTEN, "image") == 7


def test_directory_that_is_a_link_is_refused(
    registry: Registry, ipc_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    directory_of(NAME).symlink_to(elsewhere)
    page = MetricsPage(registry, 1)
    page.publish_if_due()
    page.close()
    assert list(elsewhere.iterdir()) == []
    assert read_pages(NAME).rejected


def _publish_without_pause(registry_name: str) -> None:
    count = 0
    registry = Registry(registry_name, "test")
    for source in map(str, range(64)):
        registry.add(metrics.IMAGES_WRITTEN, lambda: count, source=source)
    page = MetricsPage(registry, 1)
    while True:
        count += 1
        page._publish_at = 0.0
        page.publish_if_due()


def _is_page_of(pid: int | None) -> bool:
    return [page.pid for page in read_pages(NAME).valid] == [pid]


def test_readers_see_values_of_one_moment_and_killed_writers_leave_them() -> None:
    """64 values that are equal at each moment, from a loop without pause that is killed at any moment."""
    for _kill in range(3):
        process = multiprocessing.get_context("fork").Process(target=_publish_without_pause, args=(NAME,))
        process.start()
        try:
            wait_until(functools.partial(_is_page_of, process.pid))
            for _reading in range(300):
                pages = read_pages(NAME)
                assert not [why for why in pages.rejected.values() if "ever new" not in why]
                assert all(len(set(page.values.values())) == 1 for page in pages.valid)
        finally:
            process.kill()
            process.join()
        page = only_page()
        assert not page.is_running
        assert len(set(page.values.values())) == 1
    remove_unused_pages(NAME)
    assert not directory_of(NAME).exists()


def test_unused_pages_are_those_without_a_process(page: MetricsPage, path: Path) -> None:
    left = path.with_name("left")
    left.write_bytes(path.read_bytes())
    os.mkfifo(path.with_name("fifo"))
    remove_unused_pages(NAME)
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["fifo", path.name]
    path.with_name("fifo").unlink()


def _replaced(content: bytes, offset: int, part: bytes) -> bytes:
    return content[:offset] + part + content[offset + len(part) :]


def _with_schema(change: Callable[[dict], object]) -> Callable[[bytes], bytes]:
    def spoil(content: bytes) -> bytes:
        length = FIXED.unpack(content[: FIXED.size])[5]
        schema = json.loads(content[SCHEMA_AT : SCHEMA_AT + length])
        change(schema)
        encoded = json.dumps(schema).encode()
        values = content[SCHEMA_AT + (length + 7) // 8 * 8 :]
        head = _replaced(content[:SCHEMA_AT], 40, struct.pack("=Q", len(encoded)))
        return head + encoded.ljust((len(encoded) + 7) // 8 * 8) + values

    return spoil


SPOILT: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut": lambda content: content[:-17],
    "head only": lambda content: content[:100],
    "another magic number": lambda content: b"x" + content[1:],
    "no period": lambda content: _replaced(content, 32, struct.pack("=Q", 0)),
    "long schema": lambda content: _replaced(content, 40, struct.pack("=Q", 2**60)),
    "schema beyond the end": lambda content: _replaced(content, 40, struct.pack("=Q", 9999)),
    "more values": lambda content: _replaced(content, FIXED.size + 8, struct.pack("=Q", 2**40)),
    "not JSON": lambda content: _replaced(content, SCHEMA_AT, b"\xff\xff"),
    "deep JSON": lambda content: (
        _replaced(content[:SCHEMA_AT], 40, struct.pack("=Q", 200_000)) + b"[" * 200_000
    ),
    "not a number": lambda content: content[:-32] + struct.pack("=4d", *[float("nan")] * 4),
    "a list": _with_schema(lambda schema: schema.update(labels=[])),
    "another detector": _with_schema(lambda schema: schema["labels"].update(detector="other")),
    "another service": _with_schema(lambda schema: schema["labels"].update(service="stddaq-rest")),
    "label that is no text": _with_schema(lambda schema: schema["labels"].update(service=5)),
    "escape in a label": _with_schema(lambda schema: schema["series"][0].__setitem__(1, "\x1b[2J")),
    "line break in a label": _with_schema(lambda schema: schema["series"][0].__setitem__(1, "a\nb 1")),
    "unknown metric": _with_schema(lambda schema: schema["series"][0].__setitem__(0, "stddaq_other")),
    "a label too many": _with_schema(lambda schema: schema["series"][0].append("x")),
    "twice": _with_schema(lambda schema: schema["series"].__setitem__(1, schema["series"][0])),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT.keys())
def test_page_that_is_not_valid_is_rejected_beside_a_valid_one(
    path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    valid = path.read_bytes()
    path.unlink()
    path.write_bytes(spoil(valid))
    other = MetricsPage(Registry(NAME, "std_det_driver"), 1)
    other.publish_if_due()
    pages = read_pages(NAME)
    assert [page.service for page in pages.valid] == ["std_det_driver"]
    assert list(pages.rejected) == [path.name]
    other.close()


@pytest.mark.parametrize("kind", ["fifo", "link", "directory"])
def test_what_is_no_file_is_rejected(path: Path, kind: str) -> None:
    other = path.with_name("other")
    if kind == "fifo":
        os.mkfifo(other)
    elif kind == "link":
        other.symlink_to(path)
    else:
        other.mkdir()
    pages = read_pages(NAME)
    assert len(pages.valid) == 1
    assert list(pages.rejected) == ["other"]
    other.rmdir() if kind == "directory" else other.unlink()


def test_page_error_is_an_error_of_stddaq() -> None:
    assert issubclass(PageError, ValueError)
    assert STATE.size == 24


# With real services.


def health(deployment: Deployment) -> dict[str, ServiceHealth]:
    pages = read_pages(deployment.detector_name)
    assert not pages.rejected
    return {service.name: service for service in health_of(deployment.detector_name, pages)}


def wait_for_state(deployment: Deployment, name: str, state: str) -> ServiceHealth:
    def found() -> ServiceHealth | None:
        service = health(deployment).get(name)
        return service if service and service.state == state else None

    return wait_until(found, 20, f"{name} {state}")


def page_value(deployment: Deployment, name: str, metric: Metric, *labels: str) -> float:
    service = health(deployment)[name]
    assert service.page
    return value(service.page, metric, *labels)


def test_pages_count_what_happens_in_a_run(rig: Rig) -> None:
    deployment = rig.deployment
    rig.record([image_of(1), image_of(2, status=DAMAGED), image_of(5)])
    rig.record([image_of(6), image_of(7)], file_prefix="second")
    wait_for_state(deployment, "std_det_driver", "works")
    wait_until(lambda: page_value(deployment, "std_det_driver", metrics.RUNS_FINISHED, "file_saved") == 2, 20)
    driver = functools.partial(page_value, deployment, "std_det_driver")
    assert driver(metrics.IMAGES_DAMAGED) == 1
    assert driver(metrics.IDS_SKIPPED, "image") == 2
    assert driver(metrics.RUNS_FINISHED, "error") == 0
    assert driver(metrics.MESSAGES_LOST, "image") == 0
    assert [driver(metrics.IMAGES_FORWARDED, writer) for writer in "01"] == [2, 3]
    wait_until(lambda: driver(metrics.RUN_STATE, "idle") == 1, 20)
    assert driver(metrics.RUN_ACTIVE) == 0
    for writer, n_written in enumerate((2, 3)):
        count = functools.partial(page_value, deployment, f"std_det_writer {writer}")
        wait_for_state(deployment, f"std_det_writer {writer}", "works")
        wait_until(lambda: count(metrics.IMAGES_WRITTEN, "image") == n_written, 20)  # noqa: B023
        assert count(metrics.IMAGE_BYTES_WRITTEN, "image") == n_written * rig.config.image_bytes
        assert count(metrics.IMAGES_OVERWRITTEN, "image") == 0
