"""A defect in the distributor's thread ends the process, because clients could not notice it otherwise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from support.processes.deployment import make_config

from stddaq.writing.driver.distributor import CRASHED

CRASH = """
import json
import time
from stddaq.config import DetectorConfig
from stddaq.writing.driver.distributor import Distributor

config = DetectorConfig.parse(json.loads({config!r}))
distributor = Distributor(config, "image", with_metadata_writer=False, writer_timeout=1.0)
distributor.{method} = lambda: 1 / 0
distributor.start()
distributor.call(lambda: None)
time.sleep(100)
"""


def test_a_defect_in_the_data_path_ends_the_driver(tmp_path: Path):
    program = CRASH.format(config=json.dumps(make_config()), method="_control")
    directory = Path("/tmp") / f"sd-{make_config()['detector_name']}"
    directory.mkdir()
    try:
        result = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"STDDAQ_IPC_DIR": str(directory)},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
    finally:
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()
    assert result.returncode == CRASHED
    assert "ZeroDivisionError" in result.stderr
