"""`stddaq units`: systemd units of the services that `stddaq up` would start."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from stddaq.cli import up
from stddaq.daemon.arguments import ArgumentParser, existing_directory
from stddaq.errors import ConfigError
from stddaq.text import mismatch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stddaq.cli.supervisor.spec import ServiceSpec
    from stddaq.config import DetectorConfig

SUMMARY = "print systemd units of the services that stddaq up would start"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--directory",
        type=existing_directory,
        help="write the units there, as into /etc/systemd/system (default: print them)",
    )
    parser.add_argument(
        "--user",
        type=_user_name,
        metavar="NAME",
        help="user that the services run as (default: root if the configuration sets switch_user_active, "
        "else the user of this command)",
    )
    parser.add_argument(
        "--cpus",
        type=_cores_of_service,
        action="append",
        default=[],
        metavar="SERVICE=CORES",
        help="pin a service, or all of a kind, to cores: 'driver=2', 'writer 0=4', 'writer=4-7,12'; "
        "may be repeated",
    )
    parser.add_argument(
        "--service",
        action="append",
        default=[],
        metavar="COMMAND",
        help="a further service, without CONFIG: 'std_stream_send tcp://10.0.0.1:9100 0'; may be repeated",
    )
    parser.add_argument(
        "--only-services", action="store_true", help="the services of --service, without those of stddaq up"
    )
    up.add_service_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from stddaq.cli.unit_files import UnitOptions, passed_on_environment, unit_files
    from stddaq.config import DetectorConfig
    from stddaq.config.services import order_of_ending

    config = DetectorConfig.load(args.config)
    roots = [root.absolute() for root in args.allowed_root] or [Path(root) for root in config.allowed_roots]
    if not roots:
        raise ConfigError(
            mismatch(
                "--allowed-root",
                "the directories that the services may write in",
                "nothing",
                "give --allowed-root DIRECTORY, or allowed_roots in the configuration",
            )
        )
    # Units run in another directory.
    args.config = str(Path(args.config).absolute())
    args.allowed_root = [root.absolute() for root in args.allowed_root]
    args.token_file = args.token_file and args.token_file.absolute()
    specs = _further_services(config, args)
    if not args.only_services:
        specs += up.services(config, args)
    specs.sort(key=lambda spec: order_of_ending(spec.program))
    options = UnitOptions(
        Path(args.config),
        roots,
        args.user or _default_user(config),
        _cores(args.cpus, specs),
        passed_on_environment(),
    )
    units = unit_files(config, specs, options)
    if args.directory is None:
        print("\n".join(f"# {name}\n{text}" for name, text in units.items()), end="")
        return 0
    for name, text in units.items():
        (args.directory / name).write_text(text)
        print(args.directory / name)
    for path in _left(args.directory, config, units):
        print(f"stddaq units: {path}: not needed any more", file=sys.stderr)
    return 0


def _further_services(config: DetectorConfig, args: argparse.Namespace) -> list[ServiceSpec]:
    """Return the services of `--service`. Raise `ConfigError`."""
    from stddaq.cli.supervisor.commands import Commands
    from stddaq.config.services import PROGRAMS

    if args.only_services and not args.service:
        raise ConfigError(mismatch("--only-services", "a service or more of --service", "none"))
    commands, specs = Commands(config, args.config, ""), []
    for line in args.service:
        try:
            words = shlex.split(line)
        except ValueError as error:
            raise ConfigError(mismatch("--service", "a command line", f"{line!r} ({error})")) from error
        if not words or words[0] not in PROGRAMS:
            raise ConfigError(mismatch("--service", f"one of {', '.join(PROGRAMS)}", repr(line)))
        number = sum(spec.program == words[0] for spec in specs)
        specs.append(commands.instance(words[0], str(number), words[1:]))
    return specs


def _left(directory: Path, config: DetectorConfig, units: Mapping[str, str]) -> list[Path]:
    """Return the units of services that the configuration had earlier."""
    paths = sorted(directory.glob(f"std_daq-{config.detector_name}-*.service"))
    part_of = f"PartOf=std_daq-{config.detector_name}.target\n"
    return [path for path in paths if path.name not in units and part_of in path.read_text()]


def _default_user(config: DetectorConfig) -> str:
    import pwd

    uid = 0 if config.switch_user_active else os.geteuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _cores(given: Sequence[tuple[str, str]], specs: Sequence[ServiceSpec]) -> Mapping[str, str]:
    names = list(dict.fromkeys([spec.group for spec in specs] + [spec.name for spec in specs]))
    for name, _ in given:
        if name not in names:
            raise ConfigError(mismatch("--cpus", f"one of the services {', '.join(names)}", repr(name)))
    return dict(given)


def _cores_of_service(text: str) -> tuple[str, str]:
    name, _, cores = text.rpartition("=")
    if not name or not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", cores, re.ASCII):
        raise argparse.ArgumentTypeError(f"expected SERVICE=CORES such as 'writer=4-7,12', got {text!r}")
    return name, cores


def _user_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"expected the name of a user, got {text!r}")
    return text
