"""`stddaq simulate-udp`: sends the UDP packets of a simulated detector, with faults on request."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Sequence

from stddaq.config import DetectorConfig
from stddaq.config.modules import MODULE_SIZES
from stddaq.daemon.arguments import ArgumentParser, IntegerRange, NumberRange, image_count, ipv4_address
from stddaq.daemon.main import StopRequest, run
from stddaq.errors import ConfigError
from stddaq.sources.image_files import open_images
from stddaq.sources.image_ids import ImageIds
from stddaq.sources.loop import run_source
from stddaq.sources.options import add_source_options, source_options
from stddaq.sources.replay import RecordedProvider
from stddaq.sources.simulated.detector_fields import last_image_id
from stddaq.sources.simulated.scenes import Scene
from stddaq.sources.simulated.service import SceneProvider, add_scene_options
from stddaq.sources.udp.faults import FaultRates
from stddaq.sources.udp.packet_sink import PacketSink
from stddaq.sources.udp.payloads import payloads_of
from stddaq.text import mismatch

_FAULTS = {
    "lost": "are not sent",
    "repeated": "are sent twice",
    "swapped": "are exchanged with the next one of their module",
    "late": "are sent after the next image",
    "wrong_size": "lack their last byte",
    "wrong_port": "go to the port of the next module",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the simulator. Return the exit code."""
    parser = ArgumentParser("stddaq simulate-udp", "Send the UDP packets of a simulated detector.")
    parser.add_config()
    parser.add_argument(
        "--address",
        type=ipv4_address,
        default="127.0.0.1",
        metavar="ADDRESS",
        help="IPv4 address of the receivers (default: here)",
    )
    parser.add_argument(
        "--images", metavar="FILE[:dataset]", help="send the images of a HDF5, npy or TIFF file, then again"
    )
    parser.add_link_sets()
    parser.add_argument(
        "--restart-every", type=image_count, metavar="N", help="restart the ids after this many images"
    )
    for fault, what in _FAULTS.items():
        parser.add_argument(
            f"--{fault.replace('_', '-')}",
            type=NumberRange(0, 1, "all packets"),
            default=0.0,
            metavar="SHARE",
            help=f"share of the packets, 0 to 1, that {what}",
        )
    parser.add_argument(
        "--dead-module",
        type=IntegerRange(0, 65535),
        action="append",
        default=[],
        metavar="MODULE",
        help="a module that sends nothing; may be repeated",
    )
    add_scene_options(parser)
    add_source_options(parser)
    return run(parser, _serve, argv)


def _serve(config: DetectorConfig, args: argparse.Namespace, stop: StopRequest) -> None:
    if config.detector_type not in ("gigafrost", *MODULE_SIZES):
        where = f"{args.detector_json_filename}: detector_type"
        raise ConfigError(mismatch(where, "a detector that sends UDP packets", config.detector_type))
    rates = FaultRates(
        **{fault: getattr(args, fault) for fault in _FAULTS}, dead_modules=frozenset(args.dead_module)
    )
    if sum(getattr(rates, fault) for fault in _FAULTS) > 1:
        raise ConfigError(mismatch("shares of faults", "1 or less together", "more"))
    options = source_options(config, args)
    if args.restart_every:
        last = min(args.first_id + args.restart_every - 1, last_image_id(config))
        options = dataclasses.replace(options, ids=ImageIds(args.first_id, last, args.skip_every))
    open_sink = functools.partial(
        PacketSink, address=args.address, rates=rates, seed=args.seed, link_sets=args.link_sets
    )
    dtype = payloads_of(config).dtype
    if args.images is None:
        provider = SceneProvider(Scene(args.scene, config.image_shape, dtype, args.seed))
        run_source("simulate-udp", config, provider, options, stop, open_sink)
        return
    with open_images(args.images) as images:
        provider = RecordedProvider.of(images, config.image_shape, dtype, loop=True)
        run_source("simulate-udp", config, provider, options, stop, open_sink)
