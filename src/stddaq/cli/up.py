"""`stddaq up`: all services of one configuration in one terminal."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from stddaq.daemon.arguments import ArgumentParser, IntegerRange, Seconds
from stddaq.daemon.roots import allowed_roots, root_options
from stddaq.errors import ConfigError, EndpointError
from stddaq.text import mismatch
from stddaq.writing.driver.options import add_driver_options, driver_options

if TYPE_CHECKING:
    from stddaq.cli.supervisor.commands import Commands
    from stddaq.cli.supervisor.spec import ServiceSpec
    from stddaq.cli.supervisor.supervisor import Supervisor
    from stddaq.config import DetectorConfig

SUMMARY = "start and supervise the services of a configuration in this terminal"
_SOURCES = ("none", "simulate", "replay", "udp")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--plain",
        action="store_true",
        help="the lines of the services as they write them, without their names; also on a terminal, where "
        "statistics are left out otherwise",
    )
    add_service_arguments(parser)


def add_service_arguments(parser: ArgumentParser) -> None:
    """Add the options that decide which services there are."""
    parser.add_argument("config", help="path to configuration file")
    add_driver_options(parser, IntegerRange(1, 65535))
    parser.add_argument(
        "--source",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="SOURCE",
        help="must be the last option: 'simulate ARGS...' or 'replay FILE ARGS...', the command without "
        "CONFIG; 'udp [--link-sets 2] [--idle-time S] ARGS...', receivers and converters of a detector that "
        "sends packets, with the converters' options; or 'none' (default)",
    )


def run(args: argparse.Namespace) -> int:
    import asyncio

    from stddaq.cli.supervisor.events import EventPublisher
    from stddaq.cli.supervisor.page import SupervisorPage
    from stddaq.cli.supervisor.readiness import is_listening
    from stddaq.cli.supervisor.supervisor import Supervisor
    from stddaq.config import DetectorConfig
    from stddaq.daemon.metrics_page import remove_unused_pages
    from stddaq.dataplane.ipc_sockets import remove_unused_sockets
    from stddaq.dataplane.ring_segments import remove_unused_rings

    config = DetectorConfig.load(args.config)
    specs = services(config, args)
    for spec in specs:
        if spec.address and is_listening(spec.address):
            port = " If not, give another --port." if spec.name == "driver" else ""
            raise EndpointError(
                f"{spec.address}: another service listens there already, so {spec.name} cannot start; "
                f"is this configuration up elsewhere?{port}"
            )
    url = f"ws://{args.host}:{args.port}"
    try:
        return asyncio.run(
            Supervisor(
                specs,
                page=SupervisorPage(config.detector_name, config.etag),
                events=EventPublisher(config.detector_name),
                is_plain=args.plain,
            ).run(
                lambda: f"all services ready, driver at {url}, press Ctrl-C to end them",
                lambda supervisor: _follow(supervisor, args),
            )
        )
    finally:
        # A killed service cannot remove its sockets and its ring, which may be most of the machine's memory.
        remove_unused_sockets(config.detector_name)
        remove_unused_rings(config.detector_name)
        remove_unused_pages(config.detector_name)


async def _follow(supervisor: Supervisor, args: argparse.Namespace) -> None:
    """Apply changes of the configuration file to the running services."""
    from stddaq.config.watch import config_changes

    def report(error: ConfigError) -> None:
        supervisor.say(f"change ignored, services keep the previous configuration: {error}", "error")

    async for config in config_changes(Path(args.config), report):
        try:
            specs = services(config, args)
        except ConfigError as error:
            report(error)
            continue
        await supervisor.change_to(specs)


def services(config: DetectorConfig, args: argparse.Namespace) -> list[ServiceSpec]:
    """Return the services in the order in which they end: sources, processing, driver, writers.

    `args` are those of `add_service_arguments`. Raise `ConfigError`.
    """
    from stddaq.cli.supervisor.commands import Commands
    from stddaq.config.services import META_WRITERS, service_mistakes
    from stddaq.dataplane import endpoints

    mistakes = service_mistakes(config)
    if config.number_of_writers < 1:
        mistakes.append(
            mismatch("number_of_writers", "1 or more for stddaq up", str(config.number_of_writers))
        )
    if mistakes:
        raise ConfigError(f"{args.config}: " + "; ".join(mistakes), mistakes)
    if any(word.partition("=")[0] == "--allowed-root" for word in args.source):
        raise ConfigError(
            mismatch("--allowed-root", "its place before --source", "it among the source's options")
        )
    allowed_roots(config, args)  # Else driver and each writer would refuse to start.
    name, source = config.detector_name, args.source_suffix
    driver_address = f"tcp://{args.host}:{args.port}"
    commands = Commands(config, args.config, driver_address)
    specs = _source(commands, args) + commands.requested() + commands.live_streams()
    specs.append(
        commands.service(
            "driver",
            "std_det_driver",
            driver_options(args),
            driver_address,
            conducts=True,
        )
    )
    roots = root_options(args)
    for i in range(config.number_of_writers):
        address = endpoints.writer_to_driver(name, i)
        specs.append(
            commands.service(
                f"writer {i}", "std_det_writer", [str(i), "-s", source, *roots], address, instance_id=str(i)
            )
        )
    if args.with_metadata_writer:
        address = endpoints.writer_to_driver(name, "meta")
        specs.append(commands.service("meta writer", META_WRITERS[config.detector_type], roots, address))
    return specs


def _source(commands: Commands, args: argparse.Namespace) -> list[ServiceSpec]:
    kind, *rest = args.source or ["none"]
    if kind not in _SOURCES:
        raise ConfigError(mismatch("--source", f"one of {', '.join(_SOURCES)}", repr(kind)))
    if kind == "udp":
        parser = ArgumentParser("stddaq up --source udp", add_version=False, add_help=False)
        parser.add_link_sets()
        parser.add_argument("--idle-time", type=Seconds(60))
        known, options = parser.parse_known_args(rest)
        return commands.udp_detector(options, known.link_sets, known.idle_time)
    return [] if kind == "none" else [commands.source(kind, rest)]
