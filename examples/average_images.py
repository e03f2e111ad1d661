"""Average all good images of a run of any size, and write the result to a .npy file.

    python examples/average_images.py demo/demoMaster.h5 average.npy

RUN is the master file, or any raw file of the run when there is no master file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from stddaq.files.reading import open_run

BLOCK = 64
GOOD = 1


def main() -> None:
    parser = argparse.ArgumentParser(description="Average the good images of a run.")
    parser.add_argument("run", type=Path, help="master file, or a raw file of the run")
    parser.add_argument("output", type=Path, help="the .npy file to write, float64 (height, width)")
    args = parser.parse_args()

    with open_run(args.run) as run:
        total = np.zeros(run.image_shape)
        good = run.status == GOOD
        for start in range(0, run.n_images, BLOCK):
            stop = min(start + BLOCK, run.n_images)
            total += run.read(start, stop)[good[start:stop]].sum(axis=0, dtype=np.float64)
    n_good = int(good.sum())
    np.save(args.output, total / max(1, n_good))
    print(f"{args.output}: average of {n_good} of {len(good)} images")


if __name__ == "__main__":
    main()
