"""The documentation's table of faults matches the tests that it is made from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.tools.fault_table import Row, rows_of_page

REPOSITORY = Path(__file__).parents[2]
TESTS = REPOSITORY / "tests"
PAGE = REPOSITORY / "docs" / "explanations" / "faults.md"


@pytest.mark.slow
def test_table_of_faults_has_a_row_for_each_test_and_no_other():
    """The column "seen" is not compared. If this test fails, run `make faults`."""
    # Collecting the whole suite takes ten times as long.
    modules = [path for path in TESTS.rglob("test_*.py") if "mark.fault" in path.read_text()]
    listed = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "fault", "--fault-list", "-p", "no:cacheprovider", *modules],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert listed.returncode == 0, listed.stdout + listed.stderr
    (line,) = [line for line in listed.stdout.splitlines() if line.startswith("[[")]
    assert sorted(rows_of_page(PAGE.read_text())) == sorted(Row(*row) for row in json.loads(line))
