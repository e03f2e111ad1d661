"""A processing service from a function: `run_processor` publishes new images, `run_filter` some of them.

Both take care of all that is not the function: arguments, configuration, log and statistics lines, signals,
ring buffers and streams, threads, and images that the source overwrites while they are looked at.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TypeVar

from stddaq.config import DetectorConfig
from stddaq.daemon import log
from stddaq.daemon import main as daemon
from stddaq.daemon.arguments import ArgumentParser, thread_count
from stddaq.dataplane.endpoints import metadata_stream
from stddaq.dataplane.image_subscriber import ImageSubscriber
from stddaq.dataplane.metadata import compression_of, is_ring
from stddaq.errors import ConfigError
from stddaq.processing.outputs import FilterOutput, ImageOutput, KeepImage, ProcessImage
from stddaq.processing.stage import Output, Stage

Made = TypeVar("Made")


class ServiceParser(ArgumentParser):
    """The command line of a processing service: `[-s SUFFIX=image] CONFIG`, and what `add_argument` adds."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog, description)
        self.add_config()
        self.add_source_suffix('suffix of the metadata stream to process (default "image")')

    def add_threads(self) -> None:
        """Add `-t`. The function is then called by so many threads at once; the order of images stays."""
        self.add_argument(
            "-t", "--threads", type=thread_count, default=1, metavar="THREADS", help="threads (default: 1)"
        )

    def add_output_config(self) -> None:
        """Add `--output-config`, for a service whose images have another size or pixel type."""
        self.add_argument(
            "--output-config",
            metavar="CONFIG",
            help="configuration with the size and type of the images that are published; services that "
            "follow are started with it (default: as those of the source)",
        )


def run_processor(
    parser: ServiceParser,
    suffix: str,
    prepare: Callable[[DetectorConfig, argparse.Namespace], ProcessImage],
    argv: Sequence[str] | None = None,
) -> int:
    """Run a service that publishes, for each image of its source, a new one as `<detector_name>-<suffix>`.

    `prepare(config, args)` is called once and returns the function that is called for each image,
    `process(image, pixels)`: `image.pixels` (height, width) is what the source has taken, read-only;
    `pixels` (height, width), of the output's type, is to be filled, completely. An image whose call raises
    is published without pixels, with status `undefined`. `prepare` refuses to start by raising a
    `ConfigError`. Returns the exit code.
    """

    def serve(config: DetectorConfig, args: argparse.Namespace, stop: daemon.StopRequest) -> None:
        if suffix == "image" or not is_ring(suffix) or compression_of(suffix):
            raise ConfigError(
                f"suffix of the output: found {suffix!r}, allowed is any but those of std_daq's own streams"
            )
        process = prepare(config, args)
        output_config = _output_config(config, args)
        serve_stage(
            config,
            args,
            stop,
            lambda: ImageOutput(output_config, suffix, process),
            suffix,
            getattr(args, "threads", 1),
        )

    return daemon.run(parser, serve, argv)


def run_filter(
    parser: ServiceParser,
    suffix: str,
    prepare: Callable[[DetectorConfig, argparse.Namespace], KeepImage],
    argv: Sequence[str] | None = None,
) -> int:
    """Run a service that publishes the metadata of some images of its source as `<detector_name>-<suffix>`.

    `prepare(config, args)` is called once and returns the function that is called for each image,
    `keep(image)`: whether the image is passed on. It stays where it is: services that follow read this
    stream and the ring buffer of the source. An image whose call raises, or that was overwritten before
    it could be judged, is passed on. Returns the exit code.
    """

    def serve(config: DetectorConfig, args: argparse.Namespace, stop: daemon.StopRequest) -> None:
        keep = prepare(config, args)
        serve_stage(
            config,
            args,
            stop,
            lambda: FilterOutput(config, suffix, keep),
            suffix,
            getattr(args, "threads", 1),
        )

    return daemon.run(parser, serve, argv)


def _output_config(config: DetectorConfig, args: argparse.Namespace) -> DetectorConfig:
    path = getattr(args, "output_config", None)
    if path is None:
        return config
    output = DetectorConfig.load(path)
    if output.detector_name != config.detector_name:
        raise ConfigError(
            f"{path}: detector_name: found {output.detector_name!r}, "
            f"allowed is that of the source, {config.detector_name!r}"
        )
    return output


def serve_stage(
    config: DetectorConfig,
    args: argparse.Namespace,
    stop: daemon.StopRequest,
    make_output: Callable[[], Output[Made]],
    suffix: str,
    n_threads: int,
) -> None:
    """Run a stage from the stream `args.source_suffix` to the output of `suffix`, until asked to stop."""
    source = args.source_suffix
    if source == suffix:
        raise ConfigError(f"--source_suffix: found {source!r}, allowed is any but that of the output")
    with closing(ImageSubscriber(config, source)) as subscriber, closing(make_output()) as output:
        log.event(
            "ready: %s of %s on %s",
            source,
            config.detector_name,
            metadata_stream(config.detector_name, suffix),
        )
        Stage(config, subscriber, output, n_threads).serve(stop)
