"""`stddaq stop`: end the run that is going on, whoever started it."""

from __future__ import annotations

import argparse

from stddaq.cli.text import add_url, status_line

SUMMARY = "end the run that is going on, and wait for its files"
SAVING_TIMEOUT_S = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_url(parser)


def run(args: argparse.Namespace) -> int:
    from stddaq.client import DriverClient, RunFailedError

    with DriverClient(args.url) as driver:
        if not driver.latest.is_busy:
            driver.stop()
            print(f"no run is going on, the driver is {driver.latest.status}")
            return 0
        run = driver.watch_run()
        driver.stop()
        try:
            *_, last = run
        except RunFailedError as error:
            print(f"run failed: {error}")
            return 1
    print(status_line(last))
    return 1 if last.status == "error" else 0
