"""Correct the images of a run by its darks and flats, and average them, in several processes.

    pip install 'stddaq[analysis]' distributed
    python examples/process_run.py /data/bone mean.npy --darks 10 --flats 10

The run begins with darks, then flats. `--scheduler tcp://HOST:8786` computes on the workers of a running
`dask scheduler`, which read the files by the same path; without it two processes of this machine compute.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import dask.array
import numpy as np
from distributed import Client, LocalCluster  # pyright: ignore[reportMissingImports]

from stddaq import open_run
from stddaq.files.reading import Run


def corrected_mean(
    run: Run, n_darks: int, n_flats: int, images_per_block: int | None = None
) -> dask.array.Array:
    """Return the mean of (image - dark) / (flat - dark) over the other good images; nothing is read yet."""

    def images(rows: slice) -> dask.array.Array:
        return run.select(rows, status="good").images.dask(images_per_block)

    dark = images(slice(n_darks)).mean(axis=0)
    flat = images(slice(n_darks, n_darks + n_flats)).mean(axis=0)
    light = dask.array.maximum(flat - dark, 1.0)
    return ((images(slice(n_darks + n_flats, None)) - dark) / light).mean(axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description="Average the images of a run, corrected by darks and flats.")
    parser.add_argument("run", help="directory of the run, or one of its files")
    parser.add_argument("output", type=Path, help="the .npy file to write, float64 (height, width)")
    parser.add_argument("--darks", type=int, required=True, help="number of darks, which come first")
    parser.add_argument("--flats", type=int, required=True, help="number of flats, which come next")
    parser.add_argument("--scheduler", help="address of a dask scheduler (default: two processes here)")
    args = parser.parse_args()

    mean = corrected_mean(open_run(args.run), args.darks, args.flats)
    with Client(args.scheduler or LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)):
        np.save(args.output, mean.compute())
    print(f"{args.output}: mean of the corrected images of {args.run}")


if __name__ == "__main__":
    main()
