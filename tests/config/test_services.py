"""What a changed configuration file means for the services that run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

from support.processes.deployment import make_config

from stddaq.config import DetectorConfig
from stddaq.config.services import pending_changes


def test_file_that_is_validated_already_is_not_validated_at_each_start(tmp_path: Path) -> None:
    path, content = tmp_path / "c.json", make_config(number_of_writers=1)
    path.write_text(json.dumps(content))
    running = DetectorConfig.load(path)

    def fail(*_: object) -> NoReturn:
        raise AssertionError("the content is that of the start")

    assert pending_changes(running, path, fail) == []
    path.write_text(json.dumps(content | {"number_of_writers": 2, "delay_filter_timeout": 3}))
    assert pending_changes(running, path) == ["number_of_writers"]
