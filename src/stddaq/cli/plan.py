"""`stddaq plan`: writers, cores and memory that a rate takes, and a deployment file for them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from stddaq.cli.doctor import MAX_RATE_HZ
from stddaq.cli.text import table
from stddaq.daemon.arguments import ArgumentParser, IntegerRange, NumberRange, Seconds, existing_directory
from stddaq.text import bytes_text

SUMMARY = "compute what a rate takes: writers, cores, memory; and write a deployment file"
DEFAULT_BUFFER_S = 2.0


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
    parser.add_argument("-o", "--output", metavar="FILE", help="write the deployment file there")


def run(args: argparse.Namespace) -> int:
    """Return 1 if the rate does not fit one server."""
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
    plan = make_plan(config, args.rate, costs, args.buffer)
    n_cores = args.cores or len(os.sched_getaffinity(0))
    rows = [("service", "instances", "load of each", "cores")]
    rows += [(s.program, f"{s.n_instances}", f"{s.load:.0%}", f"{s.cores}") for s in plan.services]
    print("\n".join(table(rows)))
    print(f"pixels         {bytes_text(plan.bytes_per_s)}/s")
    print(f"shared memory  {bytes_text(plan.memory_bytes)}, {args.buffer:g} s of images or 1000 of them")
    print(f"cores          {plan.n_cores} of {n_cores}")
    print(f"configuration  number_of_writers {plan.n_writers}, ram_buffer_gb {plan.ram_buffer_gb}")
    problems = plan.problems(n_cores)
    for problem in problems:
        print(f"problem        {problem}")
    if args.output:
        Path(args.output).write_text(deployment_text(plan, Path(args.config).name, n_cores))
        print(f"deployment     {args.output}")
    return 1 if problems else 0
