"""The directories below which a service creates files."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from stddaq.daemon.arguments import existing_directory
from stddaq.errors import ConfigError
from stddaq.text import mismatch

if TYPE_CHECKING:
    # `stddaq --help` shows these options; the configuration is slow to import.
    from stddaq.config import DetectorConfig


def add_root_option(parser: argparse.ArgumentParser) -> None:
    """Add `--allowed-root`."""
    parser.add_argument(
        "--allowed-root",
        type=existing_directory,
        action="append",
        default=[],
        metavar="DIRECTORY",
        help="write files below this directory only; may be given several times "
        "(default: allowed_roots of the configuration; mandatory for root)",
    )


def root_options(args: argparse.Namespace) -> list[str]:
    """Return the options in `args` as words of a command line."""
    return [word for root in args.allowed_root for word in ("--allowed-root", str(root))]


def allowed_roots(config: DetectorConfig, args: argparse.Namespace) -> list[Path]:
    """Return the directories of `--allowed-root`, else of the configuration. None of either: anywhere.

    Raise `ConfigError` if there are none and the service runs as root.
    """
    roots = [root.absolute() for root in args.allowed_root] or [Path(root) for root in config.allowed_roots]
    if not roots and os.geteuid() == 0:
        raise ConfigError(
            mismatch(
                "--allowed-root",
                "the directory below which services that run as root may write",
                "nothing",
                "give --allowed-root DIRECTORY, or allowed_roots in the configuration",
            )
        )
    return roots
