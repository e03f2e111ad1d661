"""The configuration service's client: configurations, HDF5 files, simulators.

Change a configuration::

    from stddaq.client import ConfigClient

    service = ConfigClient("http://127.0.0.1:5000", user="me")
    config = service.get()
    config["number_of_writers"] = 4
    print(service.set(config).restarted)
"""

from __future__ import annotations

import getpass
import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from stddaq.client.address import authorization, split_token
from stddaq.errors import StdDaqError
from stddaq.wire.default_addresses import DEFAULT_CONFIG_URL

TIMEOUT_S = 30.0
# Metadata of 100000 images in many columns; more is not an answer of the service.
MAX_ANSWER_BYTES = 512 * 2**20


class ConfigServiceError(StdDaqError):
    """Base of the errors of this client."""


class ConfigServiceUnreachableError(ConfigServiceError, ConnectionError):
    """No configuration service responds at the URL in time."""


class RequestRefusedError(ConfigServiceError):
    """The service refused a request; nothing has changed.

    Attributes:
        status: HTTP status code.
        reasons: the messages of the service; at least one.
    """

    def __init__(self, status: int, reasons: list[str]) -> None:
        super().__init__("; ".join(reasons))
        self.status, self.reasons = status, reasons


class ConfigRefusedError(RequestRefusedError):
    """The configuration is not valid; `reasons` lists every mistake."""


class ConfigChangedError(RequestRefusedError):
    """The configuration has changed since it was read."""


class NotAllowedError(RequestRefusedError, PermissionError):
    """The token is missing or wrong, or the file is not below a root of the service."""


class NotFoundError(RequestRefusedError):
    """The file, or the detector, does not exist."""


_ERRORS: dict[int, type[RequestRefusedError]] = {
    401: NotAllowedError,
    403: NotAllowedError,
    404: NotFoundError,
    412: ConfigChangedError,
}


class Config(dict[str, Any]):
    """A configuration as it is in the file; `etag` identifies its version."""

    def __init__(self, content: dict[str, Any], etag: str | None) -> None:
        super().__init__(content)
        self.etag = etag


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """The effect of a new configuration.

    Attributes:
        changed: keys whose values changed.
        picked_up_by: programs that follow the change while they run.
        restarted: programs that `stddaq up` restarts, after the current run.
        previous: name of the previous version in the history of the service; None when nothing changed.
    """

    message: str
    detector_name: str
    changed: list[str]
    picked_up_by: list[str]
    restarted: list[str]
    previous: str | None


class ConfigClient:
    """A client of one configuration service, which several threads can share.

    Every method raises `ConfigServiceUnreachableError`, and `RequestRefusedError` or a subclass of it.
    """

    def __init__(
        self,
        url: str = DEFAULT_CONFIG_URL,
        *,
        user: str | None = None,
        detector: str | None = None,
        token: str | None = None,
        timeout: float = TIMEOUT_S,
    ) -> None:
        """`user` is for the logs of the service (default: the login name), `detector` the name of one of
        several detectors, `timeout` that of a request in seconds. `token` is for a service that demands one.
        It may also be in the URL (`http://any:TOKEN@host:5000`) or in the environment variable STDDAQ_TOKEN.
        """
        self.url, self._token = split_token(url.rstrip("/"), token)
        self._who = {"user": getpass.getuser() if user is None else user}
        if detector is not None:
            self._who["detector"] = detector
        self._timeout = timeout
        # The proxy in the environment leads out of the institute, but the service is inside.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self) -> Config:
        """Return the configuration as it is in the file."""
        content, headers = self._request("GET", "/api/config/get", self._who)
        return Config(content, headers.get("ETag"))

    def set(self, config: dict[str, Any]) -> ConfigChange:
        """Replace the configuration file. Raise `ConfigRefusedError`, which lists every mistake.

        A result of `get` replaces only the version that it was read from. Raise `ConfigChangedError` when
        the file has changed since.
        """
        etag = config.etag if isinstance(config, Config) else None
        answer, headers = self._request(
            "POST", "/api/config/set", self._who, config, {"If-Match": etag} if etag else {}
        )
        if isinstance(config, Config):
            config.etag = headers.get("ETag")
        return ConfigChange(**{field.name: answer[field.name] for field in fields(ConfigChange)})

    def read_metadata(
        self, filename: str | Path, first_row: int = 0, max_rows: int = 100_000
    ) -> dict[str, Any]:
        """Return rows of the tables of a file below a root of the service."""
        query = {"filename": str(filename), "first_row": first_row, "max_rows": max_rows}
        return self._request("GET", "/api/h5/read_metadata", query)[0]

    def file_status(self, filename: str | Path) -> dict[str, Any]:
        """Return datasets, shapes and types of a file below a root of the service."""
        return self._request("GET", "/api/h5/get_metadata_status", {"filename": str(filename)})[0]

    def create_interleaved_vds(
        self, base_path: str | Path, output_file: str | Path, file_prefix: str = "file"
    ) -> dict[str, Any]:
        """Create a master file over the raw files `<base_path>/<file_prefix><i>.h5`."""
        asked = {
            "base_path": str(base_path),
            "output_file": str(output_file),
            "file_prefix": file_prefix,
        }
        return self._request("POST", "/api/h5/create_interleaved_vds", {}, asked)[0]

    def create_nexus(
        self,
        base_path: str | Path,
        metadata: Mapping[str, Any],
        file_prefix: str = "file",
        *,
        output_file: str | Path | None = None,
        incomplete: bool = False,
    ) -> dict[str, Any]:
        """Create an NXmx file over the raw files of a run.

        `metadata` replace single values of those that the run has. With `incomplete` the file is made without
        the values that are missing, and without its definition.
        """
        asked = {
            "base_path": str(base_path),
            "definition": "NXmx",
            "file_prefix": file_prefix,
            "metadata": dict(metadata),
            "output_file": None if output_file is None else str(output_file),
            "incomplete": incomplete,
        }
        return self._request("POST", "/api/h5/create_nexus", {}, asked)[0]

    def server_setup(self, detector: str | None = None) -> dict[str, Any]:
        """Test whether a run could be recorded; `passed`, and `tests` with what each of them has found."""
        query = {} if detector is None else {"detector": detector}
        return self._request("POST", "/api/test/stddaq/server-setup", query)[0]

    def simulator(
        self, detector: str, command: Literal["start", "stop", "trigger"], rate: float | None = None
    ) -> dict[str, Any]:
        """Make the simulator of a detector publish at its rate, only when it is triggered, or one burst.

        `rate` is in images per second from now on; 0 means as fast as possible.
        """
        name, query = urllib.parse.quote(detector, safe=""), {} if rate is None else {"rate": rate}
        return self._request("POST", f"/api/test/{name}/simulator/{command}", query)[0]

    def _request(
        self,
        method: Literal["GET", "POST"],
        path: str,
        query: dict[str, Any],
        body: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[dict[str, Any], Any]:
        """Return the JSON object and the headers of the answer."""
        request = urllib.request.Request(
            f"{self.url}{path}?{urllib.parse.urlencode(query)}",
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json", **(headers or {})},
            method=method,
        )
        for name, value in authorization(self._token).items():
            request.add_unredirected_header(name, value)
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                content = json.loads(response.read(MAX_ANSWER_BYTES))
                return self._object(content), response.headers
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(path, error) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise ConfigServiceUnreachableError(
                f"{self.url}: no answer of a configuration service: {reason}"
            ) from error

    def _object(self, content: object) -> dict[str, Any]:
        if not isinstance(content, dict):
            raise ValueError(f"expected a JSON object, got {type(content).__name__}")
        return content


def _refusal(path: str, error: urllib.error.HTTPError) -> RequestRefusedError:
    try:
        detail = json.loads(error.read(2**20))["detail"]
    except (OSError, http.client.HTTPException, ValueError, TypeError, KeyError):
        detail = f"HTTP status {error.code} {error.reason}"
    reasons = [str(reason) for reason in detail] if isinstance(detail, list) else [str(detail)]
    if error.code == 422 and path == "/api/config/set":
        return ConfigRefusedError(error.code, reasons)
    return _ERRORS.get(error.code, RequestRefusedError)(error.code, reasons)
