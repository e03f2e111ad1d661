"""What a file holds, as `stddaq.files.info` has read it, and the lines of text that show it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from stddaq.text import bytes_text
from stddaq.wire.run_defaults import DEFAULT_N_IMAGE

Kind = Literal[
    "raw", "metadata", "master", "joined master", "NXmx", "NXtomo", "application", "exported", "other"
]
MAX_LISTED = 20


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """One dataset of a file. `filters`: names, or numbers of filters without a name here."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...] | None = None
    filters: tuple[str, ...] = ()
    virtual: bool = False

    def __str__(self) -> str:
        layout = f"chunks {shape_text(self.chunks)}" if self.chunks else "contiguous"
        filters = "+".join(self.filters) or "not compressed"
        where = "virtual" if self.virtual else f"{layout}, {filters}"
        return f"{self.name}  {shape_text(self.shape)} {self.dtype}, {where}"


@dataclass(frozen=True, slots=True)
class IdsInfo:
    """The image ids of a file or run.

    Attributes:
        step: usual distance between two ids: the number of writers in a raw file divided by image id.
        gaps: ranges (first, last) of the skipped ids within an epoch.
        n_skipped: number of skipped ids.
        n_epochs: stretches of increasing ids.
    """

    first: int
    last: int
    step: int
    gaps: tuple[tuple[int, int], ...]
    n_skipped: int
    n_epochs: int


@dataclass(frozen=True, slots=True)
class StatusInfo:
    """Images by status. Lists are image ids."""

    n_good: int
    damaged: tuple[int, ...]
    overwritten: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FileInfo:
    """What a file holds.

    Attributes:
        kind: "joined master" is over the parts of several drivers, "application" an NXmx or NXtomo file
            that lacks values, "other" any HDF5 file that does not belong to a run.
        size: bytes of the file.
        pixel_bytes: bytes of its images, uncompressed; None when it holds none itself.
        unclosed: what is known of its writer; None when closed.
        missing: raw files that a master or NXmx file shows and are not there; HDF5 shows fill values instead.
        differs: why the raw files of such a file are not those that it was made over.
        datasets: all of a file of kind "other", otherwise those of the layout.
    """

    path: Path
    kind: Kind
    size: int
    datasets: tuple[DatasetInfo, ...]
    detector_name: str | None = None
    n_images: int | None = None
    image_shape: tuple[int, int] | None = None
    dtype: str | None = None
    pixel_bytes: int | None = None
    ids: IdsInfo | None = None
    status: StatusInfo | None = None
    origin: dict[str, str | int] = field(default_factory=dict)
    unclosed: str | None = None
    sources: tuple[Path, ...] = ()
    missing: tuple[Path, ...] = ()
    differs: str | None = None
    account: dict[str, object] | None = None

    def lines(self) -> list[str]:
        """Return the content as lines of text."""
        return [str(self.path), *(f"  {name + ':':<20}{value}" for name, value in self._properties())]

    def _properties(self) -> Iterator[tuple[str, str]]:
        yield "kind", f"{self.kind} file" if self.kind != "other" else "HDF5 file, not of a run"
        if self.unclosed:
            yield "not closed", self.unclosed
        if self.detector_name:
            yield "detector", self.detector_name
        if self.n_images is not None:
            yield "images", str(self.n_images)
        if self.image_shape:
            yield "image", f"{self.image_shape[0]} x {self.image_shape[1]} {self.dtype}"
        yield "size", self._size()
        for dataset in self.datasets:
            yield "dataset", str(dataset)
        if self.ids:
            yield from _id_properties(self.ids)
        if self.status:
            yield from _status_properties(self.status)
        for name, value in self.origin.items():
            yield name.replace("_", " "), str(value)
        if self.sources:
            yield "raw files", _listed([path.name for path in self.sources])
        if self.missing:
            yield "missing", f"{_listed([path.name for path in self.missing])}: fill values are shown instead"
        if self.differs:
            yield "not of this run", self.differs
        if self.account is not None:
            yield from _account_properties(self.account)

    def _size(self) -> str:
        if not self.pixel_bytes:
            return bytes_text(self.size)
        ratio = self.size / self.pixel_bytes
        return f"{bytes_text(self.size)}, {ratio:.3f} of the pixels' {bytes_text(self.pixel_bytes)}"


def _id_properties(ids: IdsInfo) -> Iterator[tuple[str, str]]:
    step = f", every {ids.step}" if ids.step > 1 else ""
    epochs = f", in {ids.n_epochs} stretches of increasing ids" if ids.n_epochs > 1 else ""
    yield "image ids", f"{ids.first} to {ids.last}{step}{epochs}"
    if ids.gaps:
        shown = [f"{first}-{last}" if last > first else str(first) for first, last in ids.gaps[:MAX_LISTED]]
        more = f", and {len(ids.gaps) - MAX_LISTED} more" if len(ids.gaps) > MAX_LISTED else ""
        yield "skipped ids", f"{ids.n_skipped}: {', '.join(shown)}{more}"


def _account_properties(account: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Return what the driver recorded about the run and the images do not show."""

    def said(key: str) -> str:
        return str(account.get(key, "?"))

    reason = f": {account['reason']}" if account.get("reason") else ""
    yield "run", f"{said('run_id')}, {said('outcome')}{reason}"
    yield "recorded", f"{said('started_at')} to {said('finished_at')}, {said('duration_s')} s"
    yield "stream", f"{said('source')}, over {said('number_of_writers')} writers by {said('image_division')}"
    n_image = "all" if account.get("n_image") == DEFAULT_N_IMAGE else said("n_image")
    yield "asked for", f"{n_image} images from id {said('start_id')} on"
    dropped = account.get("n_dropped")
    yield "dropped", "not known: the source does not number its images" if dropped is None else str(dropped)
    for name, key in (
        ("failed", "n_failed"),
        ("before the start id", "n_before_start_id"),
        ("malformed messages", "n_malformed"),
    ):
        if account.get(key):
            yield name, said(key)


def _status_properties(status: StatusInfo) -> Iterator[tuple[str, str]]:
    parts = [f"{status.n_good} good"]
    for name, image_ids in (("damaged", status.damaged), ("overwritten", status.overwritten)):
        parts.append(f"{len(image_ids)} {name}" + (f" ({_listed(image_ids)})" if image_ids else ""))
    yield "status", ", ".join(parts)


def _listed(values: Sequence[object]) -> str:
    shown = ", ".join(str(value) for value in values[:MAX_LISTED])
    return f"{shown}, and {len(values) - MAX_LISTED} more" if len(values) > MAX_LISTED else shown


def shape_text(shape: tuple[int, ...] | None) -> str:
    """Return a shape as it is shown; that of one value is None or empty."""
    return "(" + ", ".join(map(str, shape)) + ")" if shape else "scalar"
