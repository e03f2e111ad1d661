"""`std_data_compress_h5bitshuffle_lz4` and `std_data_compress_blosc2`: compress images once for all readers.

Writers store the bytes without compressing again. Each image is compressed by one thread, without the GIL.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from stddaq.config import DetectorConfig
from stddaq.daemon import main as daemon
from stddaq.daemon.arguments import bitshuffle_block, compression_level, thread_count
from stddaq.dataplane.metadata import compression_of
from stddaq.errors import CompressionError, ConfigError
from stddaq.processing.codecs import BitshuffleLz4, Blosc2
from stddaq.processing.outputs import Compress, CompressedOutput
from stddaq.processing.service import ServiceParser, serve_stage
from stddaq.text import mismatch, shown


def main_h5bitshuffle_lz4(argv: Sequence[str] | None = None) -> int:
    """The command `std_data_compress_h5bitshuffle_lz4`."""
    parser = _parser("std_data_compress_h5bitshuffle_lz4", "Compress images with bitshuffle and LZ4.")
    parser.add_argument(
        "-b",
        "--block_size",
        type=bitshuffle_block,
        default=0,
        metavar="BLOCK",
        help="pixels per block, a multiple of 8; 0: blocks of 8192 bytes (default: 0)",
    )

    def serve(config: DetectorConfig, args: argparse.Namespace, stop: daemon.StopRequest) -> None:
        block_bytes = args.block_size * config.dtype.itemsize
        try:
            codec = BitshuffleLz4(config, block_bytes)
        except CompressionError as error:
            raise ConfigError(f"--block_size: {error}") from error
        _serve(parser.prog, config, args, stop, "h5bitshuffle-lz4", codec)

    return daemon.run(parser, serve, argv)


def main_blosc2(argv: Sequence[str] | None = None) -> int:
    """The command `std_data_compress_blosc2`."""
    parser = _parser("std_data_compress_blosc2", "Compress images with Blosc2 (bit shuffle, LZ4).")
    parser.add_argument(
        "-l",
        "--level",
        type=compression_level,
        default=5,
        metavar="LEVEL",
        help="0: not at all, to 9: best and slowest (default: 5)",
    )

    def serve(config: DetectorConfig, args: argparse.Namespace, stop: daemon.StopRequest) -> None:
        try:
            codec = Blosc2(config, args.level)
        except CompressionError as error:
            raise ConfigError(f"{args.detector_json_filename}: {error}") from error
        _serve(parser.prog, config, args, stop, "blosc2", codec)

    return daemon.run(parser, serve, argv)


def _parser(prog: str, description: str) -> ServiceParser:
    parser = ServiceParser(prog, description)
    parser.add_argument(
        "-t", "--threads", type=thread_count, required=True, metavar="THREADS", help="threads that compress"
    )
    return parser


def _serve(
    service: str,
    config: DetectorConfig,
    args: argparse.Namespace,
    stop: daemon.StopRequest,
    suffix: str,
    compress: Compress,
) -> None:
    if compression_of(args.source_suffix):
        raise ConfigError(
            mismatch("--source_suffix", "a stream of uncompressed images", shown(args.source_suffix))
        )
    serve_stage(
        service, config, args, stop, lambda: CompressedOutput(config, suffix, compress), suffix, args.threads
    )
