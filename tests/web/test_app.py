"""The application without a server: errors become HTTP statuses."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from support.processes.deployment import make_config

import stddaq.config.store
import stddaq.web.errors
from stddaq.config.store import ConfigStore
from stddaq.errors import ConfigError, StdDaqError
from stddaq.files.opening import UnclosedFileError
from stddaq.web.app import STATUSES, create_app
from stddaq.web.configurations import Configurations
from stddaq.web.errors import QueueFullError, RequestInvalidError, UnknownDetectorError
from stddaq.web.h5_files import MAX_WAITING, H5Files


class FailingFiles(H5Files):
    """Every request raises `error`."""

    def __init__(self, error: Exception) -> None:
        super().__init__([], 1.0)
        self._error = error

    async def request(self, name: str, **arguments: Any) -> dict[str, Any]:
        raise self._error


def get(files: H5Files, path: str, configurations: Configurations | None = None) -> tuple[int, Any]:
    """Return the status and the decoded body of the answer to a request."""
    app = create_app(configurations or Configurations([]), files)
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    path, _, query = path.partition("?")
    headers = [(b"host", b"localhost")]
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": query.encode(),
        "headers": headers,
    }
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent[1:]))


def domain_errors(module: Any) -> set[type[Exception]]:
    """Return the errors that `module` defines."""
    found = [value for value in vars(module).values() if isinstance(value, type)]
    return {kind for kind in found if issubclass(kind, StdDaqError) and kind.__module__ == module.__name__}


def test_every_domain_error_of_the_service_and_of_the_store_has_a_status() -> None:
    errors = domain_errors(stddaq.web.errors) | domain_errors(stddaq.config.store)
    assert errors
    assert errors <= STATUSES.keys()


@pytest.mark.parametrize("kind", STATUSES)
def test_error_is_answered_with_its_status_and_message(kind: type[Exception]) -> None:
    status, body = get(FailingFiles(kind("the reason")), "/api/h5/read_metadata?filename=/f")
    assert status == STATUSES[kind]
    assert body == {"detail": ["the reason"] if kind is ConfigError else "the reason"}


def test_error_whose_class_is_not_listed_has_the_status_of_its_most_specific_listed_base() -> None:
    class StillWrittenError(UnclosedFileError):
        pass

    status, _ = get(FailingFiles(StillWrittenError("f.h5")), "/api/h5/read_metadata?filename=/f")
    assert status == 409


def test_every_mistake_of_a_request_is_named() -> None:
    status, body = get(FailingFiles(ValueError()), "/api/h5/read_metadata?first_row=-1&max_rows=x")
    assert status == 422
    assert [mistake.partition(":")[0] for mistake in body["detail"]] == ["filename", "first_row", "max_rows"]


def test_request_beyond_the_queue_is_refused_at_once() -> None:
    files = H5Files([], 1.0)
    files._n_waiting = MAX_WAITING
    with pytest.raises(
        QueueFullError, match=f"read_metadata: expected at most {MAX_WAITING} waiting requests"
    ):
        asyncio.run(files.request("read_metadata"))


def test_request_that_waits_too_long_for_its_turn_ends_with_a_timeout() -> None:
    async def wait() -> None:
        files = H5Files([], 0.01)
        files._turns = asyncio.Semaphore(0)
        await files.request("read_metadata")

    with pytest.raises(TimeoutError, match=r"read_metadata: expected an answer within 0\.01 s, got none"):
        asyncio.run(wait())


@pytest.fixture
def stores(tmp_path: Path) -> list[ConfigStore]:
    """Return the stores of two detectors, a and b."""
    found = []
    for name in "ab":
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(make_config(detector_name=name)))
        found.append(ConfigStore(path))
    return found


def test_only_configuration_needs_no_name(stores: list[ConfigStore]) -> None:
    assert Configurations(stores[:1]).of(None) is stores[0]


def test_configuration_is_chosen_by_the_name_in_its_file(stores: list[ConfigStore]) -> None:
    configurations = Configurations(stores)
    assert configurations.of("b") is stores[1]
    with pytest.raises(RequestInvalidError, match="detector: expected one of a, b, got nothing"):
        configurations.of(None)
    with pytest.raises(UnknownDetectorError, match='detector: expected one of a, b, got "c"'):
        configurations.of("c")


def test_invalid_configuration_file_hides_only_its_own_detector(stores: list[ConfigStore]) -> None:
    stores[0].path.write_text("{")
    configurations = Configurations(stores)
    assert configurations.of("b") is stores[1]
    with pytest.raises(UnknownDetectorError, match="expected one of b"):
        configurations.of("a")


def test_configuration_file_that_became_invalid_is_answered_with_409(stores: list[ConfigStore]) -> None:
    stores[0].path.write_text("{")
    status, body = get(H5Files([], 1.0), "/api/config/get?user=me", Configurations(stores[:1]))
    assert status == 409
    assert "is not JSON" in body["detail"]
