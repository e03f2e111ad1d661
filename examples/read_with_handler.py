"""Read images with the handlers that databroker uses, without a database: one lazy array per point.

    python examples/read_with_handler.py STDDAQ_RAW data/det_00001_0.h5 --images-per-event 2
    python examples/read_with_handler.py STDDAQ_PUBLISHED data/det_00001_Published.h5

STDDAQ_RAW takes the raw file of writer 0 and finds the others; STDDAQ_PUBLISHED takes a published images file
or a master file. Databroker needs none of this: it finds the handlers by itself.
"""

from __future__ import annotations

import argparse
from importlib.metadata import entry_points

from stddaq.errors import FileLayoutError


def main() -> None:
    handlers = {entry.name: entry for entry in entry_points(group="databroker.handlers")}
    parser = argparse.ArgumentParser(description="Average the images of each point.")
    parser.add_argument("spec", choices=sorted(name for name in handlers if name.startswith("STDDAQ")))
    parser.add_argument("path", help="raw file of writer 0, published images file or master file")
    parser.add_argument("--images-per-event", type=int, default=1)
    args = parser.parse_args()

    handler = handlers[args.spec].load()(args.path, frame_per_point=args.images_per_event)
    point = 0
    while True:
        try:
            images = handler(point_number=point)
        except FileLayoutError as error:
            if not point:
                raise SystemExit(str(error)) from None
            break  # The previous point was the last one.
        # Only `compute` reads the images.
        print(f"point {point}: shape {images.shape}, mean {images.mean().compute():.2f}")
        point += 1


if __name__ == "__main__":
    main()
