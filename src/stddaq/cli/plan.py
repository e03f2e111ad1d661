"""`stddaq plan`: writers, cores and memory that a rate takes, and a deployment file for them."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from stddaq.cli.doctor import MAX_RATE_HZ
from stddaq.cli.text import table
from stddaq.daemon.arguments import ArgumentParser, IntegerRange, NumberRange, Seconds, existing_directory
from stddaq.text import bytes_text

if TYPE_CHECKING:
    from stddaq.cli.planning import Plan

SUMMARY = "compute what a rate takes: writers, cores, memory; and write a deployment file"
DEFAULT_BUFFER_S = 2.0
DEFAULT_ADDRESS = "10.0.0.1"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("config", help="path to configuration file")
    parser.add_argument(
        "--rate",
        required=True,
        type=NumberRange(0.001, MAX_RATE_HZ, "Hz"),
        metavar="HZ",
        help="images per second",
    )
    parser.add_argument(
        "--costs",
        metavar="FILE",
        help="costs of a former plan; measured, and written there, if it is missing",
    )
    parser.add_argument(
        "--files",
        type=existing_directory,
        default=Path(),
        metavar="DIRECTORY",
        help="where writing is measured (default: the current directory)",
    )
    parser.add_argument(
        "--cores",
        type=IntegerRange(1, 4096),
        metavar="N",
        help="cores of a server (default: as this machine)",
    )
    parser.add_argument(
        "--buffer",
        type=Seconds(),
        default=DEFAULT_BUFFER_S,
        metavar="SECONDS",
        help=f"time that the ring buffer holds images (default: {DEFAULT_BUFFER_S:g})",
    )
    parser.add_argument(
        "--servers",
        type=int,
        choices=(1, 2),
        help="2: a receiving and a writing server (default: 2 if one has too few cores and two need fewer)",
    )
    parser.add_argument(
        "--address",
        default=DEFAULT_ADDRESS,
        metavar="HOST",
        help=f"the receiving server in the network between the two (default: {DEFAULT_ADDRESS})",
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write the deployment file there")


def run(args: argparse.Namespace) -> int:
    """Return 1 if the rate does not fit the servers."""
    from stddaq.cli.costs import Costs, measure
    from stddaq.cli.planning import deployment_text, make_plan
    from stddaq.config import DetectorConfig

    config = DetectorConfig.load(args.config)
    if args.costs and os.path.lexists(args.costs):
        costs = Costs.load(Path(args.costs))
    else:
        costs = measure(args.files)
        if args.costs:
            costs.save(Path(args.costs))
    n_cores = args.cores or len(os.sched_getaffinity(0))
    plan = make_plan(config, args.rate, costs, args.buffer, args.servers or 1)
    if args.servers is None and plan.servers[0].n_cores > n_cores:
        two = make_plan(config, args.rate, costs, args.buffer, 2)
        # Sending the images takes cores, too, and may take more than a second server has.
        if max(server.n_cores for server in two.servers) < plan.servers[0].n_cores:
            plan = two
    print("\n".join(_lines(plan, n_cores, args.buffer)))
    problems = plan.problems(n_cores)
    for problem in problems:
        print(f"problem        {problem}")
    if args.output:
        text = deployment_text(plan, Path(args.config).name, n_cores, args.address)
        Path(args.output).write_text(text)
        print(f"deployment     {args.output}")
    return 1 if problems else 0


def _lines(plan: Plan, n_cores: int, buffer_s: float) -> Iterator[str]:
    from stddaq.cli.planning import SPARE_CORES

    rows = [("server", "service", "instances", "load of each", "cores")]
    rows += [
        (
            server.name,
            s.program,
            f"{s.n_instances}",
            f"{s.load:.0%}",
            "shared" if s.shares_cores else f"{s.n_instances}",
        )
        for server in plan.servers
        for s in server.services
    ]
    yield from table(rows)
    keys = ", ".join(f"{key} {json.dumps(value)}" for key, value in plan.keys.items())
    yield f"pixels         {bytes_text(plan.bytes_per_s)}/s"
    yield f"shared memory  {bytes_text(plan.memory_bytes)}, {buffer_s:g} s of images or 1000 of them"
    for server in plan.servers:
        parts = f"{SPARE_CORES} for the system, {server.n_shared} shared, {server.n_own} with one service"
        yield f"cores          {server.n_cores} of {n_cores} ({server.name}): {parts}"
    yield f"configuration  {keys}"
