"""`stddaq record --with URL`: one run of several drivers, and the master file over its parts."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stddaq.text import mismatch

if TYPE_CHECKING:
    from stddaq.client import DriverGroup


def joined_driver(args: argparse.Namespace) -> DriverGroup:
    """Return the client of all drivers. Raise `DriverError` when one is given twice."""
    from stddaq.client import DriverGroup

    return DriverGroup([args.url, *args.others])


def existing_master(args: argparse.Namespace) -> str:
    """Return why a run of several drivers must not start: its master file exists. Empty if it may."""
    from stddaq.files.names import master_file_name

    path = Path(args.path) / master_file_name(args.prefix)
    if not args.others or not os.path.lexists(path):
        return ""
    return mismatch(
        str(path), "a new file", "an existing one", "choose another --prefix, or give --overwrite"
    )


def with_master(account: Mapping[str, Any], args: argparse.Namespace) -> Mapping[str, Any]:
    """Create the master file of a run of several drivers. Return the account, which says if that failed."""
    if not args.others:
        return account
    from stddaq.files.joined_runs import finish_joined_run

    return finish_joined_run(account, Path(args.path).absolute(), args.prefix, overwrite=args.overwrite)
