"""`stddaq up`: all services of one configuration in one terminal."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from stddaq.errors import ConfigError, EndpointError

if TYPE_CHECKING:
    from stddaq.cli.supervisor import ServiceSpec
    from stddaq.config import DetectorConfig

SUMMARY = "start the services of a configuration in this terminal, and supervise them"
_META_WRITERS = {
    "gigafrost": "gf",
    "jungfrau-raw": "jf",
    "jungfrau-converted": "jf",
    "eiger": "eg",
    "pco": "pco",
}
_SOURCES = ("none", "simulate", "replay")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="path to configuration file")
    parser.add_argument("-p", "--port", type=int, default=8080, help="WebSocket port of the driver (8080)")
    parser.add_argument("--host", default="127.0.0.1", help="address that the driver listens on (127.0.0.1)")
    parser.add_argument(
        "-m", "--with_metadata_writer", action="store_true", help="also write the metadata of all images"
    )
    parser.add_argument(
        "-s",
        "--source_suffix",
        default="image",
        metavar="SUFFIX",
        help="metadata stream and ring buffer to record (image)",
    )
    parser.add_argument(
        "--source",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="SOURCE",
        help="last option: 'simulate ARGS...' or 'replay FILE ARGS...', as in stddaq simulate and replay "
        "without their CONFIG; or 'none' (default)",
    )


def run(args: argparse.Namespace) -> int:
    import asyncio

    from stddaq.cli.supervisor import Supervisor, is_listening
    from stddaq.config import DetectorConfig

    config = DetectorConfig.load(args.config)
    specs = _services(config, args)
    for spec in specs:
        if is_listening(spec.address):
            raise EndpointError(
                f"{spec.address}: another service listens there already, so {spec.name} cannot; "
                "is this configuration up elsewhere?"
            )
    url = f"ws://{args.host}:{args.port}"
    return asyncio.run(
        Supervisor(specs).run(lambda: f"all services ready, driver at {url}, Ctrl-C ends them")
    )


def _services(config: DetectorConfig, args: argparse.Namespace) -> list[ServiceSpec]:
    """What is to run, in the order in which it ends: source, driver (which saves a run), writers."""
    from stddaq.cli.supervisor import ServiceSpec
    from stddaq.wire import endpoints

    if config.number_of_writers < 1:
        raise ConfigError(
            f"{args.config}: number_of_writers: found {config.number_of_writers}, "
            "allowed for stddaq up is 1 or more"
        )
    if not 1 <= args.port <= 65535:
        raise ConfigError(f"--port: found {args.port}, allowed is a port from 1 to 65535")
    name, suffix = config.detector_name, args.source_suffix
    specs = _source(config, args)
    driver = ["--port", str(args.port), "--host", args.host, "-s", suffix]
    if args.with_metadata_writer:
        driver.append("-m")
    specs.append(
        ServiceSpec("driver", _service("std_det_driver", args, *driver), f"tcp://{args.host}:{args.port}")
    )
    for i in range(config.number_of_writers):
        command = _service("std_det_writer", args, str(i), "-s", suffix)
        specs.append(ServiceSpec(f"writer {i}", command, endpoints.writer_to_driver(name, i)))
    if args.with_metadata_writer:
        command = _service(f"std_det_meta_writer_{_META_WRITERS[config.detector_type]}", args)
        specs.append(ServiceSpec("meta writer", command, endpoints.writer_to_driver(name, "meta")))
    return specs


def _source(config: DetectorConfig, args: argparse.Namespace) -> list[ServiceSpec]:
    from stddaq.cli.supervisor import ServiceSpec
    from stddaq.wire.endpoints import metadata_stream

    kind, *rest = args.source or ["none"]
    if kind not in _SOURCES:
        raise ConfigError(f"--source: found {kind!r}, allowed are {', '.join(_SOURCES)}")
    if kind == "none":
        return []
    command = (sys.executable, "-m", "stddaq", kind, args.config, *rest)
    address = metadata_stream(config.detector_name, args.source_suffix)
    return [ServiceSpec(kind, command, address, may_finish=True)]


def _service(script: str, args: argparse.Namespace, *rest: str) -> tuple[str, ...]:
    """The command of a service: the console script that was installed beside this interpreter."""
    path = Path(sys.executable).parent / script
    if not path.exists():
        raise ConfigError(f"{path}: missing; install stddaq into this environment")
    return (str(path), args.config, *rest)
