"""The container file builds, and its image records."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.processes.container import TOOLS, needs_container

BUILD = Path(__file__).parents[2] / ".ci" / "build-image"


@pytest.mark.external
@needs_container
@pytest.mark.timeout(400)
@pytest.mark.skipif(not (TOOLS / "buildah").is_dir(), reason="buildah of .ci/make-container")
def test_the_image_records(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", BUILD, sys.prefix, tmp_path], check=False, capture_output=True, text=True, timeout=390
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "50, all good" in done.stdout
    assert "0 differ" in done.stdout
