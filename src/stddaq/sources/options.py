"""The command-line options of all sources."""

from __future__ import annotations

import argparse

from stddaq.config import DetectorConfig
from stddaq.daemon.arguments import ArgumentParser, IntegerRange, NumberRange, image_count
from stddaq.errors import SourceError
from stddaq.sources.image_ids import ImageIds
from stddaq.sources.loop import SourceOptions
from stddaq.sources.simulated.detector_fields import last_image_id
from stddaq.text import mismatch
from stddaq.wire.simulator_messages import MAX_BURST, MAX_EXPOSURE_S, MAX_RATE_HZ


def add_source_options(parser: ArgumentParser) -> None:
    """Add the options of any source: rate, trigger, ids and end."""
    add = parser.add_argument
    add(
        "--rate",
        type=NumberRange(0, MAX_RATE_HZ, "Hz"),
        default=10.0,
        metavar="HZ",
        help="images per second, 0: as fast as possible (default: 10)",
    )
    add("--trigger", action="store_true", help="publish one burst per software trigger")
    add(
        "--burst",
        type=IntegerRange(1, MAX_BURST),
        default=1,
        metavar="N",
        help="images per trigger (default: 1)",
    )
    add("--n-images", type=image_count, metavar="N", help="end after this many images")
    add(
        "--first-id",
        type=IntegerRange(0, 2**64 - 1),
        default=0,
        metavar="ID",
        help="first image id (default: 0)",
    )
    add("--skip-every", type=IntegerRange(2, 2**62), metavar="N", help="leave out every N-th image id")
    add(
        "--exposure-time",
        type=NumberRange(0, MAX_EXPOSURE_S, "seconds"),
        default=0.001,
        metavar="S",
        help="seconds, announced in the metadata (default: 0.001)",
    )
    add(
        "--wait-for-subscribers",
        type=IntegerRange(0, 10_000),
        default=0,
        metavar="N",
        help="wait for this many subscribers before the first image (default: 0)",
    )
    add(
        "--wait-timeout",
        type=NumberRange(0, 1e6, "seconds"),
        default=10.0,
        metavar="S",
        help="longest time to wait for them (default: 10)",
    )


def source_options(
    config: DetectorConfig, args: argparse.Namespace, ids: ImageIds | None = None
) -> SourceOptions:
    """Return the options in `args`, with `ids` instead of counted ids. Raise `SourceError`."""
    last = last_image_id(config)
    if args.first_id > last:
        raise SourceError(
            mismatch("--first-id", f"0 to {last} for {config.detector_type}", f"{args.first_id}")
        )
    return SourceOptions(
        ids=ids or ImageIds(args.first_id, last, args.skip_every),
        rate=args.rate,
        triggered=args.trigger,
        burst=args.burst,
        n_images=args.n_images,
        exposure_time=args.exposure_time,
        wait_for_subscribers=args.wait_for_subscribers,
        wait_timeout=args.wait_timeout,
    )
