"""`/api/h5`: describe HDF5 files, read their rows and images, make master files."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from stddaq.daemon.log import event
from stddaq.run_metadata import RunMetadata
from stddaq.web.h5_files import H5Files
from stddaq.web.responses import described
from stddaq.web.routes.login import who

MAX_ROWS = 100_000
MAX_PATH_LENGTH = 4096

FileName = Annotated[
    str, Query(min_length=1, max_length=MAX_PATH_LENGTH, description="absolute path below a root")
]


class DatasetDescription(BaseModel):
    """One dataset; `filters` are names, `chunks` is null for a contiguous dataset."""

    name: str
    shape: list[int]
    dtype: str
    chunks: list[int] | None
    filters: list[str]
    virtual: bool
    attributes: dict[str, Any]


class FileStatus(BaseModel):
    """The content of a file."""

    filename: str
    kind: Literal["raw", "metadata", "master", "NXmx", "application", "exported", "other"]
    size: int
    n_images: int | None
    closed: bool
    """False while the file is written, and after its writer was killed."""
    not_closed: str | None
    missing: list[str]
    """Raw files that the file shows and that do not exist."""
    not_of_this_run: str | None
    """Why the raw files that the file shows are not those that it was made over."""
    n_datasets: int
    datasets: list[DatasetDescription]


class Table(BaseModel):
    """Rows of one table; a column is a list with one value per row."""

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
    """The raw files to show as one dataset, and the file to make."""

    model_config = ConfigDict(extra="forbid")

    base_path: Annotated[str, Field(min_length=1, max_length=MAX_PATH_LENGTH)]
    """Directory of the raw files, absolute."""
    output_file: Annotated[str, Field(min_length=1, max_length=MAX_PATH_LENGTH)]
    """The master file, absolute or relative to `base_path`; must not exist."""
    file_prefix: Annotated[str, Field(min_length=1, max_length=230)] = "file"


class MasterDescription(BaseModel):
    """A new master file."""

    filename: str
    n_images: int
    image_shape: list[int]
    dtype: str
    n_gaps: int
    raw_files: list[str]
    metadata_file: str | None


class NexusRequest(BaseModel):
    """The raw files of a run, and the values that the file of an application definition needs beside them."""

    model_config = ConfigDict(extra="forbid")

    base_path: Annotated[str, Field(min_length=1, max_length=MAX_PATH_LENGTH)]
    """Directory of the raw files, absolute."""
    definition: Literal["NXmx"]
    output_file: Annotated[str, Field(min_length=1, max_length=MAX_PATH_LENGTH)] | None = None
    """The file, absolute or relative to `base_path`; must not exist. By default `<prefix>_master.h5`."""
    file_prefix: Annotated[str, Field(min_length=1, max_length=230)] = "file"
    metadata: RunMetadata = RunMetadata()
    """They replace single values of those that the run has."""
    incomplete: bool = False
    """Make the file without the values that are missing, and without its definition."""


class NexusDescription(BaseModel):
    """A new file of an application definition."""

    filename: str
    definition: str | None
    """Null if values are missing."""
    missing: list[str]
    n_frames: int
    n_mapped: int
    """Frames that show an image."""
    image_shape: list[int]
    dtype: str


def router(files: H5Files) -> APIRouter:
    """Return the routes of `files`."""
    routes = APIRouter(prefix="/api/h5")

    @routes.get("/read_metadata", responses=described(404, 409, 503, 504))
    async def read_metadata(
        filename: FileName,
        first_row: Annotated[int, Query(ge=0, le=2**62)] = 0,
        max_rows: Annotated[int, Query(ge=1, le=MAX_ROWS)] = MAX_ROWS,
    ) -> FileMetadata:
        """Return image ids, status and other columns of the images, also while the file is written."""
        return FileMetadata(
            **await files.request("read_metadata", filename=filename, first_row=first_row, max_rows=max_rows)
        )

    @routes.get("/get_metadata_status", responses=described(404, 409, 503, 504))
    async def get_metadata_status(filename: FileName) -> FileStatus:
        """Return the datasets of the file with their shapes and types."""
        return FileStatus(**await files.request("get_metadata_status", filename=filename))

    @routes.get("/image", responses=described(404, 409, 503, 504), response_class=Response)
    async def image(filename: FileName, index: Annotated[int, Query(ge=0, le=2**62)] = 0) -> Response:
        """Return an image by its position, in the format of the live images, also while it is recorded."""
        answer = await files.request("read_image", filename=filename, index=index)
        headers = {"Cache-Control": "no-store"}
        return Response(answer["frame"], media_type="application/octet-stream", headers=headers)

    @routes.post("/create_interleaved_vds", responses=described(404, 409, 415, 503, 504))
    async def create_interleaved_vds(request: InterleavedRequest, connection: Request) -> MasterDescription:
        """Make a master file, which shows the images of all raw files of a run as one dataset."""
        name = who(connection)
        event("%s makes master file %s over %s", name, ascii(request.output_file), ascii(request.base_path))
        return MasterDescription(**await files.request("create_interleaved_vds", **request.model_dump()))

    @routes.post("/create_nexus", responses=described(404, 409, 415, 503, 504))
    async def create_nexus(request: NexusRequest, connection: Request) -> NexusDescription:
        """Make a file for programs of crystallography (NXmx) over the raw files of a run."""
        prefix = ascii(f"{request.base_path}/{request.file_prefix}")
        event("%s makes NXmx file over %s", who(connection), prefix)
        arguments = request.model_dump(exclude={"definition", "metadata"})
        metadata = request.metadata.model_dump(exclude_unset=True)
        return NexusDescription(**await files.request("create_nexus", **arguments, metadata=metadata))

    return routes
