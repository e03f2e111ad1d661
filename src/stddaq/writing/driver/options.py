"""The options of the driver, which `stddaq up` accepts and passes to it."""

from __future__ import annotations

import argparse

from stddaq.daemon.access import add_token_option
from stddaq.daemon.arguments import ArgumentParser, IntegerRange, Seconds, port_number
from stddaq.daemon.roots import add_root_option, root_options
from stddaq.wire.default_addresses import DEFAULT_PORT

WRITER_TIMEOUT_S = 10.0


def add_driver_options(parser: ArgumentParser, port: IntegerRange = port_number) -> None:
    """Add all options of the driver; `port` is the type of the WebSocket port."""
    parser.add_source_suffix("suffix of the metadata stream and the ring buffer to record (default: image)")
    parser.add_argument(
        "-p",
        "--port",
        type=port,
        default=DEFAULT_PORT,
        help=f"WebSocket port of the driver (default: {DEFAULT_PORT})",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address that the driver listens on (default: 127.0.0.1)"
    )
    add_token_option(parser)
    parser.add_argument(
        "-m",
        "--with_metadata_writer",
        action="store_true",
        help="a metadata writer takes part in the runs; stddaq up also starts it",
    )
    add_root_option(parser)
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace existing files in every run, as the C++ driver does (default: refuse the start)",
    )
    parser.add_argument(
        "--writer-timeout",
        type=Seconds(),
        default=WRITER_TIMEOUT_S,
        metavar="SECONDS",
        help=f"end the run when a writer makes no progress for this long (default: {WRITER_TIMEOUT_S:g})",
    )


def driver_options(args: argparse.Namespace) -> list[str]:
    """Return the options in `args` as words of a command line."""
    words = ["-s", args.source_suffix, "--port", str(args.port), "--host", args.host]
    words += ["--writer-timeout", str(args.writer_timeout)]
    if args.token_file is not None:
        words += ["--token-file", str(args.token_file)]
    words += root_options(args)
    words += ["-m"] if args.with_metadata_writer else []
    words += ["--overwrite"] if args.overwrite else []
    return words
