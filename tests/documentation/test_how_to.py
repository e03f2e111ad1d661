"""The Python in the how-to pages does what the pages say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from support.processes import Deployment

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to"


def python_of(page: str, **replaced: str) -> str:
    """The one block of Python of a page, with what a reader would put in its place."""
    (block,) = re.findall(r"^```python\n(.*?)^```", (HOW_TO / page).read_text(), re.MULTILINE | re.DOTALL)
    for old, new in replaced.items():
        assert old in block
        block = block.replace(old, new)
    return block


def test_images_are_recorded_and_read_as_the_pages_say(
    deployment: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, url = deployment.start_driver()
    deployment.start_writers()
    deployment.run(deployment.stddaq, "simulate", deployment.config_path, "--rate", 200, ready="ready")

    places = {"ws://127.0.0.1:8080": url, "/data/run1": str(tmp_path), "n_image=1000": "n_image=100"}
    exec(python_of("record-images.md", **places), {})
    assert capsys.readouterr().out == "100\n"

    names: dict[str, Any] = {}
    read = python_of("read-the-files.md", **{"/data/run1/fileMaster.h5": f"{tmp_path}/scanMaster.h5"})
    exec(read + "    shape = images.shape\n", names)
    assert names["shape"] == (
        100,
        *(deployment.config[f"image_pixel_{side}"] for side in ("height", "width")),
    )
    assert names["good"].all()
