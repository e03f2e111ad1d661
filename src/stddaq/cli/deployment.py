"""`stddaq deployment`: check a deployment file, print its units, or apply them to this server."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from stddaq.cli.text import table
from stddaq.daemon.arguments import ArgumentParser, Seconds, existing_directory
from stddaq.errors import ConfigError
from stddaq.text import mismatch

if TYPE_CHECKING:
    from stddaq.cli.deployment_file import Deployment, Play

SUMMARY = "check a deployment file, or apply it to this server"
CONFIGS = Path("/etc/std_daq/configs")
RUN_TIMEOUT_S = 3600.0


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="deployment file: a playbook, or its variables")
    parser.add_argument("--play", metavar="NAME", help="the play of this server (default: the only one)")
    parser.add_argument(
        "--apply",
        action="store_true",
        help="write the units, and restart what changed, after the run in progress",
    )
    parser.add_argument(
        "--directory",
        type=existing_directory,
        metavar="DIRECTORY",
        help="write the units there only, and start nothing",
    )
    parser.add_argument(
        "--configs",
        type=Path,
        default=CONFIGS,
        metavar="DIRECTORY",
        help=f"the configuration files (default: {CONFIGS})",
    )
    parser.add_argument(
        "--take-configs",
        type=existing_directory,
        metavar="DIRECTORY",
        help="new configuration files, which replace those in --configs with --apply",
    )
    parser.add_argument("--user", default="root", metavar="NAME", help="user of the services (default: root)")
    parser.add_argument(
        "--run-timeout",
        type=Seconds(),
        default=RUN_TIMEOUT_S,
        metavar="SECONDS",
        help=f"longest wait for the end of a run (default: {RUN_TIMEOUT_S:g})",
    )


def run(args: argparse.Namespace) -> int:
    from stddaq.cli.deployment_file import read_deployment_file
    from stddaq.cli.deployment_pairs import pair_mistakes

    plays = read_deployment_file(Path(args.file))
    if mistakes := pair_mistakes(args.file, plays):
        raise ConfigError("; ".join(mistakes), mistakes)
    if not args.apply and args.directory is None and not args.configs.is_dir():
        print("\n".join(_overview(plays)))
        return 0
    play = _chosen(plays, args)
    units: dict[str, str] = {}
    for deployment in play.deployments:
        try:
            units |= _units(deployment, args)
        except ConfigError as error:
            mistakes += error.mistakes or [str(error)]
    if mistakes:
        raise ConfigError("; ".join(mistakes), mistakes)
    if args.directory is not None:
        for name, text in units.items():
            (args.directory / name).write_text(text)
            print(args.directory / name)
    elif args.apply:
        from stddaq.cli.unit_update import Systemd, UnitUpdate

        update = UnitUpdate(Systemd(), units, args.run_timeout, _new_configs(play, args))
        for line in update.apply():
            print(line, flush=True)
    else:
        print("\n".join(_overview([play])))
    return 0


def _chosen(plays: list[Play], args: argparse.Namespace) -> Play:
    chosen = [play for play in plays if args.play in (None, play.name)]
    if len(chosen) == 1:
        return chosen[0]
    names = ", ".join(play.name for play in plays)
    got = "nothing" if args.play is None else repr(args.play)
    raise ConfigError(mismatch("--play", f"one of {names}", got))


def _new_configs(play: Play, args: argparse.Namespace) -> dict[Path, str]:
    if args.take_configs is None:
        return {}
    names = [deployment.config_file for deployment in play.deployments]
    return {(args.configs / name).absolute(): (args.take_configs / name).read_text() for name in names}


def _overview(plays: list[Play]) -> list[str]:
    rows = [("play", "configuration", "program", "instances", "cores")]
    for play in plays:
        for deployment in play.deployments:
            for program in dict.fromkeys(instance.program for instance in deployment.instances):
                own = [i for i in deployment.instances if i.program == program]
                cores = " ".join(instance.cores or "any" for instance in own)
                rows.append((play.name, deployment.config_file, program, f"{len(own)}", cores))
    return table(rows)


def _units(deployment: Deployment, args: argparse.Namespace) -> dict[str, str]:
    """Return the units of a deployment by name. Raise `ConfigError`."""
    from stddaq.cli.deployment_file import check_instances
    from stddaq.cli.supervisor.commands import Commands
    from stddaq.cli.unit_files import UnitOptions, passed_on_environment, unit_files
    from stddaq.config import DetectorConfig
    from stddaq.config.services import order_of_ending

    path = (args.configs / deployment.config_file).absolute()
    config = DetectorConfig.load((args.take_configs or args.configs) / deployment.config_file)
    mistakes = check_instances(args.file, deployment, config, os.cpu_count() or 1)
    if not config.allowed_roots:
        advice = "services may make files below these directories only"
        mistakes.append(mismatch(f"{path}: allowed_roots", "a directory or more", "none", advice))
    if mistakes:
        raise ConfigError("; ".join(mistakes), mistakes)
    commands = Commands(config, str(path), "")
    instances = sorted(deployment.instances, key=lambda instance: order_of_ending(instance.program))
    pairs = [(commands.instance(i.program, i.number, i.arguments), i) for i in instances]
    options = UnitOptions(
        path,
        [Path(root) for root in config.allowed_roots],
        "root" if config.switch_user_active else args.user,
        {spec.name: instance.cores for spec, instance in pairs if instance.cores},
        passed_on_environment(),
        {spec.name: instance.environment for spec, instance in pairs},
    )
    return unit_files(config, [spec for spec, _ in pairs], options)
