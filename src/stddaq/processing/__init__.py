"""Stages after acquisition: compressors, filters, and the base of users' own services.

Your own service is a function and a call; see docs/how-to/write-a-processing-service.md:

    def prepare(config, args):                   # once, at the start
        dark = np.load(args.dark)
        def subtract(image, pixels):             # for each image, fills `pixels`
            np.subtract(image.pixels, dark, out=pixels)
        return subtract

    parser = ServiceParser("subtract_dark", "Subtract the dark image.")
    parser.add_argument("--dark", required=True)
    raise SystemExit(run_processor(parser, "subtracted", prepare))
"""

from stddaq.dataplane.image import Image
from stddaq.processing.service import ServiceParser, run_filter, run_processor

__all__ = ["Image", "ServiceParser", "run_filter", "run_processor"]
