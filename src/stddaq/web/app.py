"""The HTTP interface: which paths there are, what they take and answer.

What is refused is answered with its HTTP status and `{"detail": reason}`; a list of reasons where there are
several. What may block is handed to threads and processes, so that one file system that hangs does not stop
the service.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from fastapi import FastAPI, Header, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

import stddaq
from stddaq.client.simulator import SimulatorClient, SimulatorError
from stddaq.config import DetectorConfig
from stddaq.config.store import (
    Change,
    ConfigOutdatedError,
    ConfigProtectedError,
    ConfigStore,
    ConfigWriteError,
    StoredConfig,
)
from stddaq.daemon.isolation import run_in_thread
from stddaq.daemon.log import event, logger
from stddaq.errors import ConfigError
from stddaq.text import shown
from stddaq.validation import explain
from stddaq.web.errors import HttpRefusalError
from stddaq.web.guard import Guard, JsonAnswer
from stddaq.web.h5_files import H5Files

T = TypeVar("T")
CONFIG_TIMEOUT_S = 10.0
SIMULATOR_TIMEOUT_S = 2.0
MAX_ROWS = 100_000
# Strings of requests appear in log lines and in the names of the previous versions.
NAME = r"^[A-Za-z0-9_][A-Za-z0-9._@-]*$"

User = Annotated[
    str, Query(max_length=64, pattern=NAME, description="who asks; for the logs and the history")
]
Detector = Annotated[
    str | None,
    Query(max_length=64, pattern=NAME, description="detector_name; needed when the service has several"),
]
FileName = Annotated[str, Query(min_length=1, max_length=4096, description="absolute path below a root")]


class Refusal(BaseModel):
    """Why a request was not carried out."""

    detail: str | list[str]


class ConfigChanged(BaseModel):
    """What came of a new configuration."""

    message: str
    detector_name: str
    changed: list[str]
    """Keys with another value than before."""
    picked_up_by: list[str]
    """Programs that follow the change while they run."""
    restarted: list[str]
    """Programs that `stddaq up` starts again, after the run that is going on."""
    previous: str | None
    """The version before, in the history directory beside the file; null when nothing changed."""


class DatasetDescription(BaseModel):
    """One dataset; `filters` by name, `chunks` null when contiguous."""

    name: str
    shape: list[int]
    dtype: str
    chunks: list[int] | None
    filters: list[str]
    virtual: bool
    attributes: dict[str, Any]


class FileStatus(BaseModel):
    """What a file holds."""

    filename: str
    kind: Literal["raw", "metadata", "master", "other"]
    size: int
    n_images: int | None
    closed: bool
    """False while it is written, and when its writer was killed."""
    not_closed: str | None
    missing: list[str]
    """Raw files of a master file that are not there."""
    n_datasets: int
    datasets: list[DatasetDescription]


class Table(BaseModel):
    """Rows of one table; a column is a list of one value per row."""

    name: str
    n_rows: int
    """Rows of the whole table."""
    first_row: int
    columns: dict[str, list[Any]]
    attributes: dict[str, Any]


class FileMetadata(BaseModel):
    """The tables of a file."""

    filename: str
    closed: bool
    tables: list[Table]


class InterleavedRequest(BaseModel):
    """Which raw files to show as one, and where."""

    model_config = ConfigDict(extra="forbid")

    base_path: Annotated[str, Field(min_length=1, max_length=4096)]
    """Directory of the raw files, absolute."""
    output_file: Annotated[str, Field(min_length=1, max_length=4096)]
    """The master file, absolute or relative to `base_path`; must not exist."""
    file_prefix: Annotated[str, Field(min_length=1, max_length=230)] = "file"


class MasterDescription(BaseModel):
    """A master file that was made."""

    filename: str
    n_images: int
    image_shape: list[int]
    dtype: str
    n_gaps: int
    raw_files: list[str]
    metadata_file: str | None


class SimulatorAnswer(BaseModel):
    """What a simulator does now; `rate` in images per second."""

    detector_name: str
    free_running: bool
    rate: float
    next_id: int
    n_published: int


class ConfigStores:
    """The configurations that the service was started with."""

    def __init__(self, stores: Sequence[ConfigStore]) -> None:
        self._stores = tuple(stores)

    def of(self, detector: str | None) -> ConfigStore:
        """The one whose `detector_name` it is; None: the only one. Raises `HttpRefusalError`."""
        if detector is None and len(self._stores) == 1:
            return self._stores[0]
        by_name = self._by_name()
        names = ", ".join(by_name)
        if detector is None:
            raise HttpRefusalError(422, f"detector: missing, this service has several: {names}")
        if detector not in by_name:
            raise HttpRefusalError(404, f"detector: found {shown(detector)}, this service has {names}")
        return by_name[detector]

    def _by_name(self) -> dict[str, ConfigStore]:
        """By the names that are in the files now; one that is broken has none."""
        found: dict[str, ConfigStore] = {}
        for store in self._stores:
            try:
                found[store.read().config.detector_name] = store
            except ConfigError as error:
                logger.warning("%s", error)
        return found


REFUSALS: Mapping[int, str] = {
    400: "the request is not HTTP that the service takes",
    401: "the token is missing or wrong",
    403: "not below a root, or asked by another web site",
    404: "does not exist",
    408: "the body did not come in time",
    409: "the state of the file, configuration or simulator does not allow it",
    412: "the configuration has changed since it was read",
    413: "the body is too long",
    415: "the body is not said to be JSON",
    422: "the request, or what it names, is not valid; every mistake is named",
    503: "too many requests are waiting",
    504: "the file system did not answer in time",
}


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Refusal, "description": REFUSALS[status]} for status in statuses}


def create_app(stores: ConfigStores, files: H5Files, guard: Callable[[Any], Guard]) -> FastAPI:
    """The application; `guard` wraps it in what all requests must pass."""
    app = FastAPI(
        title="stddaq-rest",
        summary="Configurations, HDF5 files and simulators of stddaq",
        version=stddaq.__version__,
        # The pages that show the description load their scripts from the internet.
        docs_url=None,
        redoc_url=None,
        default_response_class=JsonAnswer,
        responses=_refusals(400, 401, 403, 408, 413, 422),
    )
    app.add_middleware(guard)  # pyright: ignore[reportArgumentType]
    _answer_errors(app)
    _add_config(app, stores)
    _add_files(app, files)
    _add_simulator(app, stores)
    return app


def _answer_errors(app: FastAPI) -> None:
    @app.exception_handler(HttpRefusalError)
    async def refused(_request: Request, error: HttpRefusalError) -> JsonAnswer:
        return JsonAnswer({"detail": error.detail}, error.status)

    @app.exception_handler(HTTPException)
    async def not_found(_request: Request, error: HTTPException) -> JsonAnswer:
        return JsonAnswer({"detail": error.detail}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JsonAnswer:
        # The first step is where the value was: the body, the query, the path.
        mistakes = [explain(single, "body", skip=1) for single in error.errors()]
        return JsonAnswer({"detail": mistakes}, 422)

    @app.exception_handler(Exception)
    async def defect(request: Request, error: Exception) -> JsonAnswer:
        logger.error("%s %s: unexpected %r", request.method, request.url.path, error)
        return JsonAnswer({"detail": "unexpected error of the service; its log says more"}, 500)


def _add_config(app: FastAPI, stores: ConfigStores) -> None:
    @app.get("/api/config/get", response_model=dict[str, Any], responses=_refusals(404, 409, 504))
    async def get_config(user: User, detector: Detector = None) -> Response:
        """The configuration file as it is; its `ETag` can be given to `set` as `If-Match`."""
        stored = await _aside(lambda: _read(stores.of(detector)))
        event("%s reads the configuration of %s", user, stored.config.detector_name)
        return JsonAnswer(stored.content, headers={"ETag": stored.etag})

    @app.post(
        "/api/config/set",
        responses=_refusals(404, 409, 412, 415, 504),
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": DetectorConfig.model_json_schema()}},
            }
        },
    )
    async def set_config(
        request: Request,
        response: Response,
        user: User,
        detector: Detector = None,
        if_match: Annotated[str | None, Header(max_length=100)] = None,
    ) -> ConfigChanged:
        """Put a whole configuration in place of the file. One with mistakes changes nothing."""
        text = await request.body()
        store = await _aside(lambda: stores.of(detector))
        try:
            change = await _aside(lambda: _replace(store, text, user, if_match))
        except HttpRefusalError as refusal:
            event("%s: configuration %s refused: %s", user, store.path, str(refusal)[:1000])
            raise
        event(
            "%s: configuration %s set, changed: %s", user, store.path, ", ".join(change.changed) or "nothing"
        )
        response.headers["ETag"] = change.etag
        return ConfigChanged(
            message="configuration set" if change.previous else "the configuration was this already",
            detector_name=change.config.detector_name,
            changed=change.changed,
            picked_up_by=change.picked_up_by,
            restarted=change.restarted,
            previous=change.previous,
        )


def _read(store: ConfigStore) -> StoredConfig:
    try:
        return store.read()
    except ConfigError as error:
        raise HttpRefusalError(409, str(error)) from error


def _replace(store: ConfigStore, text: bytes, user: str, if_match: str | None) -> Change:
    try:
        return store.replace(text, user, if_match)
    except ConfigError as error:
        raise HttpRefusalError(422, list(error.mistakes)) from error
    except ConfigOutdatedError as error:
        raise HttpRefusalError(412, str(error)) from error
    except ConfigProtectedError as error:
        raise HttpRefusalError(403, str(error)) from error
    except ConfigWriteError as error:
        raise HttpRefusalError(409, str(error)) from error


def _add_files(app: FastAPI, files: H5Files) -> None:
    refusals = _refusals(404, 409, 503, 504)

    @app.get("/api/h5/read_metadata", responses=refusals)
    async def read_metadata(
        filename: FileName,
        first_row: Annotated[int, Query(ge=0, le=2**62)] = 0,
        max_rows: Annotated[int, Query(ge=1, le=MAX_ROWS)] = MAX_ROWS,
    ) -> FileMetadata:
        """Image ids, status and whatever else the file says of its images, also while it is written."""
        return FileMetadata(
            **await files.request("read_metadata", filename=filename, first_row=first_row, max_rows=max_rows)
        )

    @app.get("/api/h5/get_metadata_status", responses=refusals)
    async def get_metadata_status(filename: FileName) -> FileStatus:
        """What the file holds: datasets, shapes, types."""
        return FileStatus(**await files.request("get_metadata_status", filename=filename))

    @app.post("/api/h5/create_interleaved_vds", responses=_refusals(404, 409, 415, 503, 504))
    async def create_interleaved_vds(asked: InterleavedRequest) -> MasterDescription:
        """Make a master file, which shows the images of all raw files of a run as one dataset."""
        event("master file %s over %s asked for", ascii(asked.output_file), ascii(asked.base_path))
        return MasterDescription(**await files.request("create_interleaved_vds", **asked.model_dump()))


def _add_simulator(app: FastAPI, stores: ConfigStores) -> None:
    @app.post("/api/test/{detector_name}/simulator/{command}", responses=_refusals(404, 409, 504))
    async def simulator(
        detector_name: Annotated[str, Path(max_length=64, pattern=NAME)], command: Literal["start", "stop"]
    ) -> SimulatorAnswer:
        """Let the simulator of a detector publish at its rate, or only when it is triggered."""
        answer = await _aside(lambda: _ask_simulator(stores, detector_name, command))
        event("simulator of %s: %s", detector_name, command)
        return answer


def _ask_simulator(
    stores: ConfigStores, detector_name: str, command: Literal["start", "stop"]
) -> SimulatorAnswer:
    stores.of(detector_name)
    try:
        with SimulatorClient(detector_name, SIMULATOR_TIMEOUT_S) as simulator:
            state = simulator.start() if command == "start" else simulator.stop()
    except SimulatorError as error:
        raise HttpRefusalError(409, str(error)) from error
    return SimulatorAnswer(
        detector_name=detector_name,
        free_running=state.free_running,
        rate=state.rate,
        next_id=state.next_id,
        n_published=state.n_published,
    )


async def _aside(function: Callable[[], T]) -> T:
    try:
        return await run_in_thread(function, CONFIG_TIMEOUT_S, "configuration")
    except TimeoutError as error:
        raise HttpRefusalError(504, f"no answer within {CONFIG_TIMEOUT_S:g} s") from error
