"""`stddaq doctor`: what this server lacks for a configuration, and the commands that mend it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os

from stddaq.daemon.arguments import ArgumentParser, NumberRange, user_id

SUMMARY = "check whether this server is prepared for a configuration"
MAX_RATE_HZ = 1e6


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
        help="user that the services run as (default: root if the configuration sets switch_user_active, "
        "else the user of this command)",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    from stddaq.cli.server_checks import Server, check_server, is_prepared
    from stddaq.config import DetectorConfig

    config = DetectorConfig.load(args.config)
    uid = args.user if args.user is not None else (0 if config.switch_user_active else os.geteuid())
    findings = check_server(config, Server(uid), args.rate)
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
