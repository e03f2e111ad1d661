"""A processing service from a function: `run_processor` publishes new images, `run_filter` some of them.

Both do everything except the function: arguments, configuration, log and statistics lines, signals, ring
buffers and streams, threads, and images that the source overwrites while they are processed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import closing

from stddaq.config import DetectorConfig
from stddaq.daemon import log
from stddaq.daemon import main as daemon
from stddaq.daemon.arguments import ArgumentParser, thread_count
from stddaq.daemon.config_loading import load_in_fork
from stddaq.daemon.metrics import Registry
from stddaq.dataplane.endpoints import metadata_stream
from stddaq.dataplane.image_subscriber import ImageSubscriber
from stddaq.dataplane.metadata import compression_of, is_ring
from stddaq.errors import ConfigError
from stddaq.processing.outputs import (
    FilterOutput,
    KeepImage,
    Made,
    ProcessedOutput,
    ProcessImage,
    StageOutput,
)
from stddaq.processing.stage import Stage
from stddaq.text import mismatch, shown


class ServiceParser(ArgumentParser):
    """The command line of a processing service: `[-s SUFFIX=image] CONFIG`, and what `add_argument` adds."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog, description)
        self.add_config()
        self.add_source_suffix('suffix of the metadata stream to process (default "image")')

    def add_threads(self) -> None:
        """Add `-t THREADS`. The function is then called in parallel; the order of images does not change."""
        self.add_argument(
            "-t", "--threads", type=thread_count, default=1, metavar="THREADS", help="threads (default: 1)"
        )

    def add_output_config(self) -> None:
        """Add `--output-config`, for a service that publishes images of another size or pixel type."""
        self.add_argument(
            "--output-config",
            metavar="CONFIG",
            help="configuration with the size and type of the published images; start the services that "
            "follow with it (default: those of the source)",
        )


def run_processor(
    parser: ServiceParser,
    suffix: str,
    prepare: Callable[[DetectorConfig, argparse.Namespace], ProcessImage],
    argv: Sequence[str] | None = None,
) -> int:
    """Run a service that publishes a new image for each image of its source, as `<detector_name>-<suffix>`.

    `prepare(config, args)` is called once and returns the function that is called for each image,
    `process(image, pixels)`. That reads `image.pixels` (height, width), the image of the source, and fills
    all of `pixels` (height, width), of the output's type. If it raises, the image is published with zeros
    and status `undefined`. `prepare` raises `ConfigError` to refuse to start. Return the exit code.
    """

    def serve(config: DetectorConfig, args: argparse.Namespace, stop: daemon.StopRequest) -> None:
        if suffix == "image" or not is_ring(suffix) or compression_of(suffix):
            raise ConfigError(
                mismatch("suffix of the output", "any but those of std_daq's own streams", shown(suffix))
            )
        process = prepare(config, args)
        output_config = _output_config(config, args)
        serve_stage(
            parser.prog,
            config,
            args,
            stop,
            lambda: ProcessedOutput(output_config, suffix, process),
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
    `keep(image)`. That returns whether to forward the image. The pixels stay in the ring buffer of the
    source; later services read this stream and that ring. An image is also forwarded if `keep` raises,
    or if it is overwritten before `keep` returns. Return the exit code.
    """

    def serve(config: DetectorConfig, args: argparse.Namespace, stop: daemon.StopRequest) -> None:
        keep = prepare(config, args)
        serve_stage(
            parser.prog,
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
    output = load_in_fork(path)
    if output.detector_name != config.detector_name:
        expected = f"that of the source, {shown(config.detector_name)}"
        raise ConfigError(mismatch(f"{path}: detector_name", expected, shown(output.detector_name)))
    return output


def serve_stage(
    service: str,
    config: DetectorConfig,
    args: argparse.Namespace,
    stop: daemon.StopRequest,
    make_output: Callable[[], StageOutput[Made]],
    suffix: str,
    n_threads: int,
) -> None:
    """Run `service`, a stage from the stream `args.source_suffix` to the output of `suffix`, until `stop`."""
    source = args.source_suffix
    if source == suffix:
        raise ConfigError(mismatch("--source_suffix", "any but that of the output", shown(source)))
    registry = Registry(config.detector_name, service)
    with closing(ImageSubscriber(config, source)) as subscriber, closing(make_output()) as output:
        log.ready(
            "%s of %s on %s",
            source,
            config.detector_name,
            metadata_stream(config.detector_name, suffix),
        )
        Stage(config, subscriber, output, n_threads, registry).serve(stop)
