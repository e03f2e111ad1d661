"""`std_live_stream`: sends images to viewers over TCP while they are taken, as array-1.0 or bsread."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

from stddaq.config import DetectorConfig
from stddaq.daemon import log
from stddaq.daemon import main as daemon
from stddaq.daemon.arguments import ArgumentParser, suffix
from stddaq.daemon.metrics import Registry
from stddaq.errors import ConfigError
from stddaq.streaming.encoders import StreamType, make_encoder
from stddaq.streaming.live_stream import LiveSource, LiveStream
from stddaq.streaming.settings import FollowedSetting, socket_kind
from stddaq.streaming.viewer_queue import ImageBuffers
from stddaq.streaming.viewers import Viewers
from stddaq.text import mismatch

NAME = "std_live_stream"
# The names in the statistics line of the std_daq service (C++).
TYPE_NAMES: dict[StreamType, str] = {"array-1.0": "array10", "bsread": "bsread", "stins": "stins"}


def main(argv: Sequence[str] | None = None) -> int:
    """The command `std_live_stream`."""
    parser = ArgumentParser(NAME, "Stream images to viewers while they are taken.")
    parser.add_config()
    parser.add_argument(
        "stream_address", help="tcp://HOST:PORT to bind, a key of live_stream_configs in the configuration"
    )
    parser.add_source_suffix('suffix of the metadata stream and the ring buffer (default "image")')
    parser.add_argument(
        "--source_suffix_meta",
        type=suffix,
        metavar="SUFFIX",
        help='suffix of the metadata stream alone, as "filter" (default: that of -s)',
    )
    parser.add_argument(
        "--source_suffix_image",
        type=suffix,
        metavar="SUFFIX",
        help="suffix of the ring buffer alone (default: that of -s)",
    )
    parser.add_argument(
        "-t",
        "--type",
        choices=get_args(StreamType),
        default="array-1.0",
        help="array-1.0 is uncompressed, bsread compressed; stins sends whole runs to one consumer, as "
        "dranspose (default array-1.0)",
    )
    parser.add_driver_url()
    parser.add_argument(
        "--announce",
        metavar="URL",
        help="write the address of the stream into this Redis, redis://HOST:PORT, where datahub and "
        "cam_server look for it",
    )
    return daemon.run(parser, _serve, argv)


def _serve(config: DetectorConfig, args: argparse.Namespace, stop: daemon.StopRequest) -> None:
    path = Path(args.detector_json_filename)
    runs_only = args.type == "stins"
    if runs_only and args.announce is not None:
        raise ConfigError(mismatch("--announce", "a stream of type array-1.0 or bsread", "stins"))
    source = LiveSource(
        args.source_suffix_meta or args.source_suffix, args.source_suffix_image or args.source_suffix
    )
    setting = FollowedSetting(path, args.stream_address, config)
    pool = ImageBuffers(config.image_bytes)
    encoder = make_encoder(args.type, config, pool, source.image)
    with ExitStack() as stack:
        limit = 1 if runs_only else None
        viewers = Viewers(args.stream_address, pool, socket_kind(setting.current), limit)
        stack.callback(viewers.close)
        registry = Registry(config.detector_name, NAME, str(viewers.port))
        rest = source, encoder, viewers, setting, TYPE_NAMES[args.type], registry
        if runs_only:
            # They import asyncio and websockets, which the other types do not need.
            from stddaq.streaming.run_follower import RunFollower
            from stddaq.streaming.run_stream import RunStream

            runs = RunFollower(args.url)
            stack.callback(runs.close)
            stream = RunStream(config, runs, *rest)
        else:
            stream = LiveStream(config, *rest)
        stack.callback(stream.close)
        if args.announce is not None:
            # The client of the database brings asyncio and websockets, too.
            from stddaq.streaming.announcement import Announcement, announced_address, key_of

            address = announced_address(viewers.endpoint)
            announcement = Announcement(args.announce, key_of(config.detector_name, args.type), address)
            stack.callback(announcement.close)
        log.ready("%s as %s at %s", setting.current, args.type, viewers.endpoint)
        stream.serve(stop)
