"""A pytest plugin that writes the table of faults in the documentation from the results of marked tests.

A test that provokes a fault has the marker `@pytest.mark.fault(fault=..., state=..., promise=...)`, in which
`{name}` is replaced by a parameter of the test, and reports its result with the fixture `seen`. With
`--fault-table FILE` the rows of the marked tests are written there, if all of them pass; `--fault-list`
prints the rows without running the tests.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest

AS_PROMISED = "as promised"
_PROPERTY = "fault"
INTRODUCTION = """\
# What happens when something fails

Each row is a test with real processes. `make faults` runs them and then writes this page; do not edit it.
After each fault, the account of the run (the driver's last result, and its copy in the master file) is
compared with the images that the source published.
Every image that the account calls good must be in the files, pixel by pixel; every missing image must be
counted and named by its id; and the next run must be perfect.
*Promise* is what the test demands.
*Seen* is the result when this page was written, on two shared cores; its numbers are those of one run.

After SIGKILL the account errs on the safe side: it also names as failed the images that the writer had
flushed and not reported yet, although they are readable.
"""


class Row(NamedTuple):
    """One row of the table, without the column "seen"."""

    fault: str
    state: str
    promise: str


Seen = Callable[[str], None]


@pytest.fixture
def seen(request: pytest.FixtureRequest) -> Seen:
    """Return a function that adds to the column "seen" of the table: `seen("error after 0.1 s")`."""

    def note(text: str) -> None:
        request.node.user_properties.append(("seen", text))

    return note


def row_of(item: pytest.Item) -> Row | None:
    """Return the row of a marked test, or None."""
    marker = item.get_closest_marker("fault")
    if marker is None:
        return None
    call = getattr(item, "callspec", None)
    parameters = {name: _word(value) for name, value in call.params.items()} if call else {}
    return Row(**{key: text.format(**parameters) for key, text in marker.kwargs.items()})


def _word(value: object) -> object:
    return value.name if isinstance(value, Enum) else value


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("table of faults")
    group.addoption("--fault-table", metavar="FILE", type=Path, help="write the table of faults to FILE")
    group.addoption("--fault-list", action="store_true", help="print the rows of the table; run no test")


def pytest_configure(config: pytest.Config) -> None:
    path: Path | None = config.getoption("--fault-table")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Table(path))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for position, item in enumerate(items):
        if row := row_of(item):
            item.user_properties.append((_PROPERTY, [position, *row]))
    if config.getoption("--fault-list"):
        print(json.dumps([row for item in items if (row := row_of(item))]))
        items.clear()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if session.config.getoption("--fault-list") and exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK


class _Table:
    """Collects the reports, including those of pytest-xdist workers, and writes the page."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[tuple[bool, int], tuple[Row, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        properties = dict(report.user_properties)
        if _PROPERTY not in properties:
            return
        notes = [str(value) for name, value in report.user_properties if name == "seen"]
        if report.skipped:
            notes = [
                f"not tested: {report.longrepr[-1] if isinstance(report.longrepr, tuple) else 'skipped'}"
            ]
        if report.when == "call" or report.skipped:
            position, *row = cast("list[Any]", properties[_PROPERTY])
            # Rows of tests/faults come first.
            place = not report.nodeid.startswith("tests/faults"), position
            self._rows[place] = Row(*row), "; ".join(notes) or AS_PROMISED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
        if exitstatus != pytest.ExitCode.OK:
            terminalreporter.write_line(f"{self._path} is unchanged, because a test failed")
            return
        rows = [self._rows[place] for place in sorted(self._rows)]
        lines = ["| fault | state | promise | seen |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(map(_cell, (*row, seen)))} |" for row, seen in rows]
        self._path.write_text("\n".join([INTRODUCTION, *lines, ""]))
        terminalreporter.write_line(f"{self._path}: {len(rows)} faults")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def rows_of_page(text: str) -> list[Row]:
    """Return the rows of a written page."""
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    return [Row(*line[2:].replace("\\|", "\0").split(" | ")[:3]) for line in lines]
