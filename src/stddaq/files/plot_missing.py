"""A picture of what a run lacks, and when: bad images by count, and by the writer whose file they are in.

Each column of the picture stands for a range of images and shows the worst of them, so that one lost image of
a million is seen as well. The colours differ in brightness, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stddaq.files.id_ranges import gaps
from stddaq.text import escaped
from stddaq.wire.std_daq import image_metadata_pb2 as pb

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from stddaq.files.reading import Run

MAX_COLUMNS = 300
# Up to this number of images each has a column of its own.
MAX_SINGLE_IMAGES = 100
# More bad images in a column are shown on a logarithmic scale.
MAX_LINEAR = 20
MAX_RESTART_LINES = 50
MAX_WRITER_LABELS = 16
NOTHING, GOOD, DAMAGED, LOST, SKIPPED = range(5)
# By Okabe and Ito, with falling brightness.
COLOURS = {GOOD: "#dcdcdc", DAMAGED: "#56b4e9", LOST: "#d55e00", SKIPPED: "#000000"}
NAMES = {GOOD: "good", DAMAGED: "damaged", LOST: "overwritten or failed", SKIPPED: "skipped"}

# A $ in a path does not start a formula.
TEXT: dict[str, Any] = {"parse_math": False}


@dataclass(frozen=True, slots=True)
class MissingImages:
    """What the picture shows, in columns of consecutive images.

    Attributes:
        n_positions: images and skipped ids.
        positions: (n,) of the images among them.
        counts: (5, columns) images of each kind, `NOTHING` to `SKIPPED`.
        worst: (writers, columns) worst kind of the images of a writer in a column.
        totals: (5,) images of each kind.
        restarts: (m,) positions at which the ids restart.
    """

    n_positions: float
    positions: np.ndarray
    counts: np.ndarray
    worst: np.ndarray
    totals: np.ndarray
    restarts: np.ndarray

    @classmethod
    def of(cls, ids: np.ndarray, status: np.ndarray, files: np.ndarray, n_files: int) -> MissingImages:
        """Return it for images (n,) in order, at least one, in the raw files `files` (n,)."""
        in_order, before, n_skipped = gaps(ids)
        if in_order is not ids:
            rows = np.argsort(ids, kind="stable")
            status, files = status[rows], files[rows]
        steps = np.ones(len(ids))
        steps[0] = 0
        steps[before + 1] += n_skipped
        positions = np.cumsum(steps)
        n_positions = float(positions[-1]) + 1
        n_columns = _number_of_columns(n_positions, n_files)
        columns = _columns(positions, n_positions, n_columns)
        kinds = np.full(len(ids), DAMAGED)
        kinds[status == pb.good_image], kinds[status == pb.id_missmatch] = GOOD, LOST
        counts = np.zeros((5, n_columns))
        np.add.at(counts, (kinds, columns), 1)
        worst = np.full((n_files, n_columns), NOTHING)
        np.maximum.at(worst, (files, columns), kinds)
        counts[SKIPPED] = _spread(positions[before], n_skipped, n_positions, n_columns)
        totals = counts.sum(axis=1)
        totals[SKIPPED] = n_skipped.sum(dtype=float)
        restarts = positions[1:][in_order[1:] <= in_order[:-1]]
        return cls(n_positions, positions, counts, worst, totals, restarts)


def plot_missing(run: Run, figure: Figure | None = None) -> Figure:
    """Draw the images of a run by status, raw file and time into `figure`, or a new one; return it.

    Needs matplotlib. Raises `FileLayoutError`.
    """
    if figure is None:
        from matplotlib import figure as figures

        figure = figures.Figure(figsize=(10, 5), dpi=120, layout="constrained")
    if not len(run):
        figure.suptitle(f"{escaped(str(run.path))}: no images", **TEXT)
        return figure
    files, _ = run.stored_at(np.arange(len(run)))
    ids = run.image_ids
    missing = MissingImages.of(ids, run.status, files, len(run.raw_files))
    bars, writers, skipped = figure.subplots(
        3, 1, sharex=True, height_ratios=[1.2, 0.4 + min(2.0, 0.3 * len(run.raw_files)), 0.25]
    )
    _draw_counts(bars, missing)
    _draw_writers(writers, missing, [escaped(raw.path.name) for raw in run.raw_files])
    _draw_strip(skipped, np.where(missing.counts[SKIPPED:] > 0, SKIPPED, NOTHING), missing)
    skipped.set_yticks([0], ["skipped"])
    _label_images(skipped, ids, missing)
    _label_time(bars, run, missing)
    for position in missing.restarts[:MAX_RESTART_LINES]:
        for axes in (bars, writers, skipped):
            axes.axvline(position - 0.5, color="#009e73", linewidth=1, linestyle=":")
    figure.suptitle(f"{escaped(str(run.path))}: {len(run)} images", fontsize="medium", **TEXT)
    _legend(figure, missing)
    return figure


def _number_of_columns(n_positions: float, n_files: int) -> int:
    if n_positions <= MAX_SINGLE_IMAGES:
        return int(n_positions)
    # Every writer has images in a column, as far as possible: otherwise the columns make patterns.
    return int(max(50, min(MAX_COLUMNS, n_positions // (2 * n_files))))


def _columns(positions: np.ndarray, n_positions: float, n_columns: int) -> np.ndarray:
    return np.minimum((positions * (n_columns / n_positions)).astype(np.int64), n_columns - 1)


def _spread(before: np.ndarray, numbers: np.ndarray, n_positions: float, n_columns: int) -> np.ndarray:
    """Return the skipped ids of each column, of `numbers` (m,) after each of the positions `before`."""
    # Number of skipped ids below the edges of the columns: linear within a gap, constant outside.
    points = np.stack([before + 0.5, before + 0.5 + numbers], axis=1).ravel()
    below = np.concatenate([[0.0], np.cumsum(numbers, dtype=float)])
    values = np.stack([below[:-1], below[1:]], axis=1).ravel()
    if not len(points):
        return np.zeros(n_columns)
    edges = np.arange(n_columns + 1) * (n_positions / n_columns) - 0.5
    return np.diff(np.interp(edges, points, values, left=0.0, right=values[-1]))


def _draw_counts(axes: Axes, missing: MissingImages) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    width = missing.n_positions / missing.counts.shape[1]
    lefts = np.arange(missing.counts.shape[1]) * width - 0.5
    bottom = np.zeros(len(lefts))
    for kind in (SKIPPED, LOST, DAMAGED):
        axes.bar(lefts, missing.counts[kind], width, bottom, align="edge", color=COLOURS[kind], linewidth=0)
        bottom += missing.counts[kind]
    if bottom.max() > MAX_LINEAR:
        # Few bad images are seen beside many.
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(0, 3 * bottom.max())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.set_ylim(0, max(1.0, 1.1 * bottom.max()))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_ylabel("bad images" if width <= 1 else f"bad images\nper {width:.0f}")
    if not bottom.any():
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", va="center", color="#606060")


def _draw_writers(axes: Axes, missing: MissingImages, names: list[str]) -> None:
    _draw_strip(axes, missing.worst, missing)
    step = -(-len(names) // MAX_WRITER_LABELS)
    axes.set_yticks(
        range(0, len(names), step), names[::step], fontsize="medium" if len(names) < 9 else 7, **TEXT
    )


def _draw_strip(axes: Axes, kinds: np.ndarray, missing: MissingImages) -> None:
    from matplotlib.colors import ListedColormap

    colours = ListedColormap(["#ffffff", *(COLOURS[kind] for kind in (GOOD, DAMAGED, LOST, SKIPPED))])
    extent = (-0.5, missing.n_positions - 0.5, len(kinds) - 0.5, -0.5)
    axes.imshow(kinds, colours, vmin=0, vmax=SKIPPED, aspect="auto", interpolation="nearest", extent=extent)
    for line in range(1, len(kinds)):
        axes.axhline(line - 0.5, color="white", linewidth=1)


def _label_images(axes: Axes, ids: np.ndarray, missing: MissingImages) -> None:
    from matplotlib.ticker import MaxNLocator

    if len(missing.restarts):
        axes.set_xlabel(f"image (the ids restart {len(missing.restarts)} times, at the dotted lines)")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        return
    first, last = int(ids.min()), int(ids.max())
    wanted = (round(value) for value in MaxNLocator(8, integer=True).tick_values(first, last))
    shown = [image_id for image_id in wanted if first <= image_id <= last]
    axes.set_xticks([image_id - first for image_id in shown], [str(image_id) for image_id in shown])
    axes.set_xlabel("image id")


def _label_time(axes: Axes, run: Run, missing: MissingImages) -> None:
    """Show the time above the picture: by the camera's clock, or by the duration of the run."""
    times = run.timestamps
    account = run.account or {}
    duration = account.get("recording_s")
    if times is not None and len(times) > 1 and (np.diff(times) > np.timedelta64(0)).all():
        seconds = (times - times[0]) / np.timedelta64(1, "s")
        label = "seconds after the first image"
    elif isinstance(duration, int | float) and duration > 0 and 1 < len(run) == account.get("count"):
        seconds = missing.positions * (duration / missing.positions[-1])
        label = "seconds after the first image, at a constant rate"
    else:
        return
    scale = seconds[-1] / missing.positions[-1]

    def of(position: Any) -> Any:
        return _continued(position, missing.positions, seconds, scale)

    def back(second: Any) -> Any:
        return _continued(second, seconds, missing.positions, 1 / scale)

    axes.secondary_xaxis("top", functions=(of, back)).set_xlabel(label, fontsize="small")


def _continued(values: Any, x: np.ndarray, y: np.ndarray, slope: float) -> Any:
    """Interpolate, and continue with `slope` outside, because axes are half an image wider."""
    outside = np.minimum(values - x[0], 0) + np.maximum(values - x[-1], 0)
    return np.interp(values, x, y) + outside * slope


def _legend(figure: Figure, missing: MissingImages) -> None:
    from matplotlib.patches import Patch

    kinds = [kind for kind in NAMES if kind == GOOD or missing.totals[kind]]
    patches = [
        Patch(color=COLOURS[kind], label=f"{missing.totals[kind]:.0f} {NAMES[kind]}") for kind in kinds
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(kinds), frameon=False)
