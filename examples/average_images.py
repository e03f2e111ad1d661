"""Average all good images of a run of any size, and write the result to a .npy file.

    python examples/average_images.py demo/demoMaster.h5 average.npy

RUN is the master file, or any raw file of the run when there is no master file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from stddaq import open_run


def main() -> None:
    parser = argparse.ArgumentParser(description="Average the good images of a run.")
    parser.add_argument("run", type=Path, help="master file, or a raw file of the run")
    parser.add_argument("output", type=Path, help="the .npy file to write, float64 (height, width)")
    args = parser.parse_args()

    run = open_run(args.run)
    good = run.select(status="good")
    total = np.zeros(run.image_shape)
    for _, images in good.images.blocks():
        total += images.sum(axis=0, dtype=np.float64)
    np.save(args.output, total / max(1, good.n_images))
    print(f"{args.output}: average of {good.n_images} of {run.n_images} images")


if __name__ == "__main__":
    main()
