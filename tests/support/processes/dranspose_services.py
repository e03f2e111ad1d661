"""dranspose: controller, ingester, two workers, reducer. `.ci/make-dranspose` makes its environment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from support.data.code_blocks import ROOT, blocks_of
from support.peers.redis_server import RedisServer
from support.processes.deployment import Service, free_port, wait_until
from support.processes.recording import Rig

from stddaq.closing import Closing

PAGE = "docs/how-to/process-runs-live.md"
EXAMPLES = ROOT / "examples"
_PROGRAMS = Path(sys.prefix) / "dranspose" / "bin"


class Dranspose(Closing):
    """Its services as the page starts them; a context manager.

    Attributes:
        places: what replaces texts of the page.
        workers: the processes.
    """

    def __init__(self, redis: RedisServer, stream: str, held: Path | None = None) -> None:
        """Start them; the ingester pulls from the address `stream`. Skip the test without dranspose.

        With the path `held` a worker holds an image until it is killed, and writes its pid and the row there.
        """
        if not _PROGRAMS.exists():
            pytest.skip("needs the environment of dranspose, see .ci/make-dranspose")
        self.places = {"5010": str(free_port()), "5011": str(free_port()), "tcp://127.0.0.1:20002": stream}
        self._services: list[Service] = []
        self._env = os.environ | {
            "PYTHONUNBUFFERED": "1",
            "REDIS_URL": f"{redis.address.replace('tcp', 'redis')}/0",
            "INGESTER_URL": f"tcp://127.0.0.1:{free_port()}",
            "REDUCER_URL": f"tcp://127.0.0.1:{free_port()}",
            "PYTHONPATH": str(ROOT / "tests"),
            # For support.peers.holding_worker.
            "STDDAQ_TEST_HELD": str(held),
        }
        (block,) = (block for block in blocks_of(PAGE) if "dranspose.controller" in block.text)
        text = block.text
        if held is not None:
            # dranspose may give one worker nearly all images, so each of them can be the one.
            text = text.replace("live_flat_field:Worker", "support.peers.holding_worker:Worker")
        self.workers = [
            service
            for line in text.splitlines()
            if (service := self._start(*line.split())) and "Worker" in line
        ]
        wait_until(self._is_ready, 90, "dranspose", period=0.2)

    def _start(self, program: str, *arguments: object) -> Service:
        text = [str(argument) for argument in arguments]
        for old, new in self.places.items():
            text = [argument.replace(old, new) for argument in text]
        service = Service([str(_PROGRAMS / program), *text], self._env, EXAMPLES, preloaded=False)
        self._services.append(service)
        return service

    def _is_ready(self) -> bool:
        config = self.ask("config")
        return (
            config is not None
            and config["reducer"] is not None
            and [ingester["streams"] for ingester in config["ingesters"]] == [["images"]]
            and [len(worker["ingesters"]) for worker in config["workers"]] == [1, 1]
        )

    def ask(self, name: str) -> Any:
        """Return what the controller answers, or None if it does not yet."""
        try:
            with urlopen(f"http://127.0.0.1:{self.places['5010']}/api/v1/{name}", timeout=20) as answer:
                return json.load(answer)
        except URLError:
            return None

    def start_example(self, rig: Rig, output: Path, n_images: int) -> Service:
        """Start the program of the example, as the page does, with a run named as `output`."""
        (block,) = (block for block in blocks_of(PAGE) if "--n-images" in block.text)
        text = block.text.replace("500", str(n_images))
        text = text.replace("/data/flat flat.npy", f"{rig.directory} {output}")
        controller, reducer = (f"http://127.0.0.1:{self.places[port]}" for port in ("5010", "5011"))
        urls = ("--driver", rig.url, "--controller", controller, "--reducer", reducer)
        return self._start(*text.split(), "--file-prefix", output.stem, *urls)

    def close(self) -> None:
        """End them: their exit codes are dranspose's own affair."""
        for service in reversed(self._services):
            service.send(signal.SIGTERM)
            try:
                service.process.wait(10)
            except subprocess.TimeoutExpired:
                service.kill()
