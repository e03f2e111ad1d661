"""The import contracts of pyproject.toml hold, and each violation planted in a copy of the code is found."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = "Imports run one way"


# A module, an import that is forbidden to it, and the contract that forbids it.
VIOLATIONS = [
    ("stddaq.text", "stddaq.cli", LAYERS),
    ("stddaq.wire.zmtp", "stddaq.dataplane.endpoints", LAYERS),
    ("stddaq.wire.zmtp", "stddaq.config", LAYERS),
    ("stddaq.dataplane.ring_buffer", "stddaq.writing.driver", LAYERS),
    ("stddaq.daemon.main", "stddaq.dataplane.endpoints", LAYERS),
    ("stddaq.files.names", "stddaq.client", LAYERS),
    ("stddaq.streaming.live_stream", "stddaq.processing.stage", LAYERS),
    ("stddaq.web.app", "stddaq.cli", LAYERS),
    ("stddaq.client.driver", "stddaq.daemon.main", "Clients know no server code"),
    ("stddaq.files.names", "zmq", "Files know no sockets"),
    ("stddaq.config.model", "zmq", "The wire and the configuration know no sockets"),
    ("stddaq.config.store", "fastapi", "Storage knows no HTTP"),
    ("stddaq.files.reading", "starlette", "Storage knows no HTTP"),
    ("stddaq.client.driver", "event_model", "Nothing in stddaq imports Bluesky"),
    ("stddaq_ophyd.core.documents", "bluesky", "The core of the devices imports no device framework"),
    ("stddaq_ophyd.detector", "stddaq.writing.driver", "Devices stand on clients and files"),
    ("stddaq_ophyd.handlers", "stddaq.client", "Handlers need no devices"),
]


@dataclass(frozen=True)
class Report:
    """The report of lint-imports: the names of the broken contracts, and the text about each of them."""

    broken: tuple[str, ...]
    sections: dict[str, str]
    text: str


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a copy of src/ with pyproject.toml in it."""
    copy = shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


def check(source: Path) -> Report:
    """Check the contracts of `source`."""
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=source,
        env=os.environ | {"PYTHONPATH": str(source), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    text = done.stdout + done.stderr
    broken = re.findall(r"^(.+?) BROKEN(?: \(.*\))?$", text, re.MULTILINE)
    assert done.returncode == bool(broken), text
    # Each section is underlined.
    parts = re.split(r"^(.+)\n-+$", text.partition("Broken contracts")[2], flags=re.MULTILINE)
    return Report(tuple(broken), dict(zip(parts[1::2], parts[2::2], strict=True)), text)


def test_code_keeps_all_contracts(source: Path) -> None:
    report = check(source)
    assert report.broken == (), report.text
    assert f"{LAYERS} KEPT" in report.text


def test_folder_or_module_without_a_layer_is_refused(source: Path) -> None:
    (source / "stddaq" / "dashboards").mkdir()
    for name in ("dashboards/__init__.py", "helpers.py"):
        (source / "stddaq" / name).write_text('"""New."""\n')
    report = check(source)
    assert report.broken == (LAYERS,)
    assert "- stddaq.dashboards\n" in report.text
    assert "- stddaq.helpers\n" in report.text


def test_every_import_against_a_contract_is_found(source: Path) -> None:
    for module, imported, _ in VIOLATIONS:
        with (source / (module.replace(".", "/") + ".py")).open("a") as file:
            file.write(f"\nimport {imported}\n")
    report = check(source)
    missed = [
        (module, imported, contract)
        for module, imported, contract in VIOLATIONS
        if f"{module} -> {imported} (l." not in report.sections.get(contract, "")
    ]
    assert missed == [], report.text
