"""`stddaq doctor`: what this server lacks for a configuration, and the commands that mend it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from stddaq.daemon.arguments import ArgumentParser, NumberRange, user_id
from stddaq.text import escaped

if TYPE_CHECKING:
    from stddaq.cli.findings import Finding
    from stddaq.config import DetectorConfig

SUMMARY = "check whether this server is prepared for a configuration"
MAX_RATE_HZ = 1e6
CURE_TIMEOUT_S = 60.0


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("config", help="path to configuration file")
    parser.add_argument(
        "--rate",
        type=NumberRange(0.001, MAX_RATE_HZ, "Hz"),
        metavar="HZ",
        help="images per second; measures for some seconds whether the disks are fast enough",
    )
    parser.add_argument(
        "--user",
        type=user_id,
        metavar="USER",
        help="user that the services run as, unless the configuration sets switch_user_active: then it is "
        "root (default: the user of this command)",
    )
    parser.add_argument(
        "--interface",
        default="",
        metavar="NAME",
        help="network interface that the detector sends to (default: that with the largest packets)",
    )
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print the findings as JSON")
    shown.add_argument(
        "--mend",
        action="store_true",
        help="run the commands that mend what was found, except those that depend on the use of the server; "
        "they need root, and last until the next boot",
    )


def run(args: argparse.Namespace) -> int:
    from stddaq.cli.findings import Server
    from stddaq.cli.server_checks import check_server, is_prepared
    from stddaq.config import DetectorConfig

    config = DetectorConfig.load(args.config)
    server = Server(_user(config, args.user), interface=args.interface)
    findings = check_server(config, server, args.rate)
    if args.mend:
        before = findings
        errors = {finding.name: _mend(finding) for finding in before}
        findings = check_server(config, server, args.rate)
        _show_mended(before, findings, errors)
    if args.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
        return 0 if is_prepared(findings) else 1
    for finding in findings:
        print(f"{finding.state:<8} {finding.name}: {finding.found}")
        if finding.state != "ok":
            print(f"{'':8} expected: {finding.expected}")
            if finding.cure:
                print(f"{'':8} $ {finding.cure}")
    return 0 if is_prepared(findings) else 1


def _user(config: DetectorConfig, uid: int | None) -> int:
    if config.switch_user_active:
        return 0
    return os.geteuid() if uid is None else uid


def _mend(finding: Finding) -> str:
    """Run the command of a finding. Return its error; empty if there is nothing to run."""
    if finding.state == "ok" or not finding.cure or not finding.is_for_all:
        return ""
    try:
        done = subprocess.run(
            ["sh", "-c", finding.cure], check=False, capture_output=True, text=True, timeout=CURE_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return f"{finding.cure}: did not end within {CURE_TIMEOUT_S:g} s"
    return "" if done.returncode == 0 else f"{finding.cure}: {' '.join(done.stderr.split())}"


def _show_mended(before: Sequence[Finding], after: Sequence[Finding], errors: Mapping[str, str]) -> None:
    states = {finding.name: finding.state for finding in after}
    for finding in before:
        if finding.state != "ok" and states.get(finding.name) == "ok":
            print(f"{'mended':<8} {finding.name}: {finding.found}")
        elif errors[finding.name]:
            print(f"{'failed':<8} {finding.name}: {escaped(errors[finding.name])}")
