"""The import contracts of pyproject.toml hold, and each violation planted in a copy of the code is found."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = "Imports run one way"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a copy of src/ with pyproject.toml in it."""
    copy = shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


def broken_contracts(source: Path) -> tuple[list[str], str]:
    """Return the names of the contracts that `source` breaks, and the report."""
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=source,
        env=os.environ | {"PYTHONPATH": str(source), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    report = done.stdout + done.stderr
    broken = [line.removesuffix(" BROKEN") for line in report.splitlines() if line.endswith(" BROKEN")]
    assert done.returncode == bool(broken), report
    return broken, report


def test_code_keeps_all_contracts(source: Path) -> None:
    broken, report = broken_contracts(source)
    assert broken == [], report
    assert f"{LAYERS} KEPT" in report


@pytest.mark.parametrize("name", ["dashboards/__init__.py", "helpers.py"])
def test_folder_or_module_without_a_layer_is_refused(source: Path, name: str) -> None:
    new = source / "stddaq" / name
    new.parent.mkdir(exist_ok=True)
    new.write_text('"""New."""\n')
    broken, report = broken_contracts(source)
    assert broken == [LAYERS]
    assert f"- stddaq.{new.parent.name if new.name == '__init__.py' else new.stem}\n" in report


@pytest.mark.parametrize(
    ("module", "imported", "contract"),
    [
        ("stddaq/text.py", "stddaq.cli", LAYERS),
        ("stddaq/wire/zmtp.py", "stddaq.dataplane.endpoints", LAYERS),
        ("stddaq/wire/zmtp.py", "stddaq.config", LAYERS),
        ("stddaq/dataplane/ring_buffer.py", "stddaq.writing.driver", LAYERS),
        ("stddaq/daemon/main.py", "stddaq.dataplane.endpoints", LAYERS),
        ("stddaq/files/names.py", "stddaq.client", LAYERS),
        ("stddaq/streaming/live_stream.py", "stddaq.processing.stage", LAYERS),
        ("stddaq/web/app.py", "stddaq.cli", LAYERS),
        ("stddaq/client/driver.py", "stddaq.daemon.main", "Clients know no server code"),
        ("stddaq/files/names.py", "zmq", "Files know no sockets"),
        ("stddaq/config/model.py", "zmq", "The wire and the configuration know no sockets"),
        ("stddaq/config/store.py", "fastapi", "Storage knows no HTTP"),
        ("stddaq/files/reading.py", "starlette", "Storage knows no HTTP"),
        ("stddaq/client/driver.py", "event_model", "Nothing in stddaq imports Bluesky"),
        (
            "stddaq_ophyd/core/documents.py",
            "bluesky",
            "The core of the devices imports no device framework",
        ),
        ("stddaq_ophyd/detector.py", "stddaq.writing.driver", "Devices stand on clients and files"),
        ("stddaq_ophyd/handlers.py", "stddaq.client", "Handlers need no devices"),
    ],
)
def test_import_against_a_contract_breaks_it(source: Path, module: str, imported: str, contract: str) -> None:
    path = source / module
    path.write_text(f"{path.read_text()}\nimport {imported}\n")
    broken, report = broken_contracts(source)
    assert contract in broken, report
