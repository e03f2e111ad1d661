"""What an export would read and write, without doing it: for `stddaq export --dry-run`."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from stddaq.errors import FileLayoutError
from stddaq.files.export.hdf5 import images_of_chunk, open_compressed
from stddaq.files.export.run import Format, partial_of, prepare_export
from stddaq.files.export.source import Losses, Source

# Beside the pixels, of an image: its row and its id, or the tags and the description of a TIFF page.
IMAGE_OVERHEAD_BYTES = 512
# Beside the images.
FILE_OVERHEAD_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """An export that can be made.

    Attributes:
        outs: the files to make: one, or one for each part of a run of several drivers.
        raw_files: the files to read, each with its size in bytes.
        n_images: of each file.
        n_lost: images among them that are filled because they have no pixels, of all files.
        most_bytes: size of all files at most. Zarr compresses, so its exports are smaller.
        free_bytes: in the file system of `outs`, with what an interrupted export has left there.
    """

    outs: tuple[Path, ...]
    format: Format
    raw_files: tuple[tuple[Path, int], ...]
    n_images: int
    n_lost: int
    most_bytes: int
    free_bytes: int

    @property
    def fits(self) -> bool:
        """Return whether there is room for it."""
        return self.most_bytes <= self.free_bytes

    def lines(self) -> list[str]:
        """Return the plan as lines of text."""
        filled = f", {self.n_lost} of them filled" if self.n_lost else ""
        most = _mib(self.most_bytes)
        room = "" if self.fits else ": not enough"
        return [
            *(f"reads {path}, {_mib(size)}" for path, size in self.raw_files),
            f"writes {', '.join(map(str, self.outs))}, {self.format}: {self.n_images} images{filled}, "
            f"at most {most}",
            f"free there: {_mib(self.free_bytes)}{room}",
        ]


def plan_export(
    path: Path,
    out: Path,
    prefix: str | None = None,
    *,
    format: Format | None = None,
    losses: Losses = "error",
) -> ExportPlan:
    """Return what `export_run` would do with the same arguments, and write nothing.

    Raises the same errors, and `FileLayoutError` if the directory of `out` does not exist.
    """
    kind, sources = prepare_export(path, out, prefix, format, losses)
    files = [raw.path for source in sources.values() for raw in source.run.raw_files]
    try:
        free = shutil.disk_usage(out.absolute().parent).free
    except OSError as error:
        raise FileLayoutError(f"{out}: cannot be made: {error.strerror}") from error
    return ExportPlan(
        outs=tuple(sources),
        format=kind,
        raw_files=tuple((file, file.stat().st_size) for file in files),
        n_images=len(next(iter(sources.values()))),
        n_lost=sum(int(source.lost.sum()) for source in sources.values()),
        most_bytes=sum(_most_bytes(kind, source) for source in sources.values()),
        free_bytes=free + sum(_bytes_of(partial_of(one)) for one in sources),
    )


def _most_bytes(kind: Format, source: Source) -> int:
    pixels = len(source) * source.image_bytes
    if kind == "hdf5":
        n = images_of_chunk(source)
        pixels = -(-len(source) // n) * n * source.image_bytes
        with ExitStack() as open_files:
            if stored := open_compressed(source.run, open_files):
                # They are copied as they are stored.
                pixels = sum(images.id.get_storage_size() for images in stored)
                pixels += int(source.lost.sum()) * source.image_bytes
    return pixels + FILE_OVERHEAD_BYTES + len(source) * IMAGE_OVERHEAD_BYTES


def _bytes_of(partial: Path) -> int:
    if not partial.is_dir():
        return partial.stat().st_size if partial.exists() else 0
    return sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.1f} MiB"
