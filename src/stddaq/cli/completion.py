"""`stddaq completion`: the completion of commands, options and files for a shell."""

from __future__ import annotations

import argparse

from stddaq.daemon.arguments import ArgumentParser

SUMMARY = "print the completion of this command for a shell"
# Arguments that are paths.
_FILES = frozenset({"config", "file", "files", "paths", "output", "token_file"})
_DIRECTORIES = frozenset({"path", "directory", "allowed_root", "save"})


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell that reads the output")


def run(args: argparse.Namespace) -> int:
    import shtab

    from stddaq.cli import parser

    whole = parser()
    _mark_paths(whole)
    print(shtab.complete(whole, shell=args.shell))
    return 0


def _mark_paths(parser: argparse.ArgumentParser) -> None:
    import shtab

    for action in parser._actions:
        if action.dest in _FILES:
            action.complete = shtab.FILE  # pyright: ignore[reportAttributeAccessIssue]
        elif action.dest in _DIRECTORIES:
            action.complete = shtab.DIRECTORY  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _mark_paths(command)
