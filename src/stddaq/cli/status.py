"""`stddaq status`: show the state of the driver, its last run, and the services of this machine."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stddaq.cli.text import status_line, table
from stddaq.daemon.arguments import ArgumentParser

if TYPE_CHECKING:
    from stddaq.client import DriverError, DriverStatus
    from stddaq.daemon.health import ServiceHealth

SUMMARY = "show the state of the driver, how the last run ended, and which services work"
_HEADER = ("service", "state", "wanted", "heartbeat", "restarts", "pid")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_driver_url()
    parser.add_argument(
        "--json", action="store_true", help="print the driver's messages and the services as JSON"
    )


def run(args: argparse.Namespace) -> int:
    """Return 1 if a service that should run does not work. Raise `DriverError` after showing the services."""
    from stddaq.client import DriverError

    status, result, error = None, None, None
    try:
        status, result = _driver(args.url)
    except DriverError as failure:
        error = failure
    # After the driver: a wait for one that hangs makes its heartbeat older.
    services, rejected = _services()
    if args.json:
        _print([_json(services, rejected, status, result, error)])
    else:
        if status is not None:
            _print(_driver_lines(status, result))
        _print([*_table(services), *rejected])
    if error is not None:
        raise error
    return 0 if all(service.is_well for service in services) else 1


def _driver_lines(status: DriverStatus, result: dict[str, Any] | None) -> list[str]:
    from stddaq.cli.account import account_lines

    last = [] if result is None else ["last run:", *(f"  {line}" for line in account_lines(result))]
    return [status_line(status), *last]


def _print(lines: Sequence[str]) -> None:
    for line in lines:
        print(line)


def _json(
    services: Sequence[ServiceHealth],
    rejected: Sequence[str],
    status: DriverStatus | None,
    result: dict[str, Any] | None,
    error: DriverError | None,
) -> str:
    content = {
        "status": None if status is None else dict(status.raw),
        "last_result": result,
        "error": None if error is None else str(error),
        "services": [_as_json(service) for service in services],
        "rejected": rejected,
    }
    return json.dumps(content)


def _driver(url: str) -> tuple[DriverStatus, dict[str, Any] | None]:
    """Return the status of the driver and the account of its last run, if it keeps one."""
    from stddaq.client import DriverClient, UnsupportedError

    with DriverClient(url) as driver:
        status = driver.status()
        try:
            return status, driver.last_result()
        except UnsupportedError:
            return status, None


def _services() -> tuple[list[ServiceHealth], list[str]]:
    """Return the services of all detectors of this machine, and why some pages are not valid."""
    from stddaq.daemon.health import health_of
    from stddaq.daemon.metrics_reader import detectors_with_pages, read_pages
    from stddaq.wire.default_addresses import ipc_directory

    services: list[ServiceHealth] = []
    rejected: list[str] = []
    for detector in detectors_with_pages(ipc_directory()):
        pages = read_pages(detector, of_any_user=True)
        services += health_of(detector, pages)
        rejected += [f"{detector}: {name}: {why}" for name, why in pages.rejected.items()]
    return services, rejected


def _table(services: Sequence[ServiceHealth]) -> list[str]:
    lines = []
    for detector in dict.fromkeys(service.detector for service in services):
        rows = [_HEADER, *(_row(service) for service in services if service.detector == detector)]
        lines += [f"services of {detector}:", *(f"  {line}" for line in table(rows))]
    return lines


def _row(service: ServiceHealth) -> tuple[str, ...]:
    page = service.page
    return (
        service.name,
        service.state.replace("_", " "),
        "yes" if service.is_wanted else "no",
        f"{page.age_s:.1f} s ago" if page else "never",
        "" if service.n_restarts is None else str(service.n_restarts),
        str(page.pid) if page and page.is_running else "",
    )


def _as_json(service: ServiceHealth) -> dict[str, object]:
    page = service.page
    return {
        "detector": service.detector,
        "service": service.service,
        "id": service.instance_id,
        "state": service.state,
        "wanted": service.is_wanted,
        "pid": page.pid if page else None,
        "age_s": page.age_s if page else None,
        "started": page.started_s if page else None,
        "restarts": service.n_restarts,
    }
