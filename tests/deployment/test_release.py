"""A release has the notes of its version, and its workflows name steps that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
NOTES = ROOT / ".ci" / "release_notes.py"


def notes_of(version: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, NOTES, version], check=False, capture_output=True, text=True, timeout=60
    )


def test_a_release_has_the_notes_of_its_version() -> None:
    versions = re.findall(r"(?m)^## \[?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text())
    for version in versions:
        done = notes_of(version)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("### "), done.stdout[:100]
        assert "\n## " not in done.stdout


def test_a_version_without_notes_is_refused() -> None:
    done = notes_of("99.0.0")
    assert done.returncode == 1
    assert done.stderr == "CHANGELOG.md: expected a section 99.0.0, got none\n"


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda p: p.stem)
def test_workflows_run_programs_and_targets_that_exist(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert commands
    text = "\n".join(commands)
    for program in re.findall(r"\.ci/[\w.-]+", text):
        assert (ROOT / program).is_file(), program
    for file in re.findall(r"-f (\S+)", text):
        assert (ROOT / file).is_file(), file
    targets = set(re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text()))
    assert set(re.findall(r"make (?:PYTHON=\S+ )?([a-z][\w-]*)", text)) <= targets
