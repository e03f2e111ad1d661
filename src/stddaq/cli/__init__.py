"""The command `stddaq`: services in one terminal, runs, files, and a demonstration.

Each sub-command is a module with `add_arguments` and `run`. `run` imports what is expensive to import, so
that `stddaq --help` is quick. A `StdDaqError` or `OSError` becomes one line on standard error and exit code
2.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Protocol, cast

from stddaq.cli.escaped_output import escaped_output
from stddaq.daemon.arguments import ArgumentParser, refuse
from stddaq.daemon.output import open_closed_streams
from stddaq.errors import StdDaqError
from stddaq.text import os_error_text


class SubCommand(Protocol):
    """The interface of a module of this package."""

    SUMMARY: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments of the command."""
        ...

    def run(self, args: argparse.Namespace) -> int:
        """Carry out the command. Return the exit code."""
        ...


# In the order in which a newcomer needs them.
_MODULES = (
    *("demo", "init", "up", "record", "status", "stop", "watch", "trigger", "info", "validate"),
    *(
        "plot-missing",
        "export",
        "aggregate",
        "nexus",
        "repair",
        "doctor",
        "plan",
        "units",
        "deployment",
        "completion",
    ),
)
# Services with their own argument parsers: the module, and one sentence.
_SERVICES = {
    "simulate": ("simulated.service", "publish simulated images as a detector would"),
    "replay": ("replay", "publish recorded images as a detector would"),
    "simulate-udp": ("udp.service", "send the UDP packets of a simulated detector"),
    "simulate-pco": (
        "bsread.camera_server",
        "push simulated images over the network as a PCO camera server would",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Return its exit code: 0, 1 when a run or a check failed, 2 when refused."""
    open_closed_streams()
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in _SERVICES:
        service = importlib.import_module(f"stddaq.sources.{_SERVICES[argv[0]][0]}")
        return service.main(argv[1:])
    known = parser()
    if not argv:
        known.print_help()
        return 0
    args = known.parse_args(argv)
    try:
        with escaped_output():
            code = args.run(args)
            if sys.stdout is not None:
                sys.stdout.flush()
            return code
    except StdDaqError as error:
        refuse(f"stddaq {args.command}", error)
    except BrokenPipeError:
        # The reader of the output has closed the pipe; keep the interpreter from flushing into it.
        sys.stdout = None
        return 0
    except OSError as error:
        # Of a path that the user gave, such as one in a directory that may not be searched.
        refuse(f"stddaq {args.command}", os_error_text(error))
    except KeyboardInterrupt:
        return 130


def parser() -> ArgumentParser:
    """Return the parser of all commands."""
    known = ArgumentParser("stddaq", "Data acquisition from detector to file.")
    commands = known.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for name in _MODULES:
        module = cast(SubCommand, importlib.import_module(f"stddaq.cli.{name.replace('-', '_')}"))
        command = commands.add_parser(
            name, help=module.SUMMARY, description=_sentence(module.SUMMARY), add_version=False
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    for name, (_, summary) in _SERVICES.items():
        commands.add_parser(
            name, help=f"{summary}; see stddaq {name} --help", add_help=False, add_version=False
        )
    return known


def _sentence(summary: str) -> str:
    return summary[0].upper() + summary[1:] + "."
