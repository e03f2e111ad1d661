"""Run all measurements, `make bench`, or some, `make bench ARGS="cost latency"`.

Figures are printed as they are measured. After all measurements, or with --write, they are also written, with
plots, to docs/explanations/performance.md. Compare ratios within one table only, because the speed of shared
machines changes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import browsers
import bsread_receiver
import checksums
import compressors
import cost
import daemons
import live_stream
import metrics_pages
import nexus_files
import plans
import rates
import reading
import report
import targets
import times
import udp_chain
import udp_modules
import udp_receiving
from rig import MEMORY
from tables import Table

from stddaq.closing import exit_at_signals

RESULTS = Path(__file__).with_name("results.json")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("measurements", nargs="*", metavar="MEASUREMENT", help="default: all")
    parser.add_argument("--disk", type=Path, default=Path(tempfile.gettempdir()), help="a directory on disk")
    parser.add_argument(
        "--write",
        action="store_true",
        help="write the page with these figures and earlier ones of the other measurements",
    )
    args = parser.parse_args(argv)
    available: dict[str, Callable[[], Table]] = {
        "cost": lambda: cost.writing("cost", MEMORY, "in memory", cost.BYTES_IN_MEMORY),
        "disk-cost": lambda: cost.writing("disk-cost", args.disk, "on disk", cost.BYTES_ON_DISK),
        "control": cost.control,
        "compressed": cost.compressed,
        "checksums": checksums.chain,
        "rates": lambda: rates.sustained("rates", MEMORY, "in memory"),
        "disk": lambda: rates.sustained("disk", args.disk, "on disk"),
        "metadata": rates.metadata,
        "live": live_stream.forwarding,
        "glass": browsers.glass,
        "viewers": browsers.viewers,
        "metrics": metrics_pages.cost,
        "receiver": bsread_receiver.receiving,
        "compressors": compressors.throughput,
        "udp-packets": udp_receiving.receiving,
        "conversion": udp_modules.conversion,
        "synchroniser": udp_modules.synchronising,
        "udp-rates": udp_chain.sustained,
        "udp-latency": udp_chain.latency,
        "latency": times.latency,
        "times": times.control,
        "idle": daemons.idle,
        "slow": daemons.slow_stream,
        "memory": daemons.memory,
        "growth": daemons.growth,
        "writers": daemons.writers,
        "master": times.master_file,
        "nxmx": nexus_files.nxmx,
        "opening": reading.opening,
        "reading": reading.blocks,
        "points": plans.points,
        "flights": plans.flights,
    }
    unknown = sorted(set(args.measurements) - set(available))
    if unknown:
        parser.error(f"found {', '.join(unknown)}, allowed are {', '.join(available)}")
    exit_at_signals()
    print(machine())
    tables = {name: available[name]() for name in args.measurements or available}
    if args.write or not args.measurements:
        targets.add(f"{datetime.now(UTC):%Y-%m-%d}", tables)
    if args.write:
        tables = _earlier() | tables
    if args.write or not args.measurements:
        ordered = {name: tables[name] for name in available if name in tables}
        results = {name: table.as_json() for name, table in ordered.items()}
        RESULTS.write_text(json.dumps({"machine": machine(), "tables": results}, indent=1), encoding="utf-8")
        report.write(machine(), ordered)
    return 0


def _earlier() -> dict[str, Table]:
    tables = json.loads(RESULTS.read_text(encoding="utf-8"))["tables"]
    return {name: Table(**table) for name, table in tables.items()}


def machine() -> str:
    """Return a description of this machine."""
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return (
        f"{datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} cores ({model}), {gigabytes:.0f} GB of memory, "
        f"Linux {platform.release().split('-')[0]}, Python {platform.python_version()}"
    )


if __name__ == "__main__":
    sys.exit(main())
