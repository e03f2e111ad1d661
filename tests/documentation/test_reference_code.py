"""The code of the reference works as described."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.processes.deployment import Deployment, console_script, free_port, make_config
from support.processes.image_buffers import ImageBufferRig
from support.processes.page_session import PageSession
from support.processes.recording import Image, pixels_of

from stddaq.config import DetectorConfig


def test_described_services_are_valid() -> None:
    with PageSession("docs/reference/configuration.md") as page:
        services = json.loads(f"{{{page.take('std_bsread_recv')}}}")["services"]
    streams = {"tcp://0.0.0.0:20000": {"type": "forward", "config": []}}
    config = make_config(detector_type="pco", services=services, live_stream_configs=streams)
    assert DetectorConfig.parse(config).services == services


def test_lines_for_influxdb_are_those_of_up(
    make_deployment: Callable[..., Deployment], tmp_path: Path
) -> None:
    deployment = make_deployment(statistics_format="influxdb", number_of_writers=1)
    up = deployment.run(
        deployment.stddaq,
        "up",
        deployment.config_path,
        "--port",
        free_port(),
        "--plain",
        ready="std_det_writer,detector=",
    )
    (tmp_path / "up.log").write_text("".join(f"{line}\n" for line in up.stdout))
    with PageSession("docs/reference/log-lines.md", deployment, tmp_path / "here") as page:
        page.places = {"stddaq up config.json --plain": f"cat {tmp_path / 'up.log'}"}
        lines = page.run("grep").splitlines()
    assert lines
    assert all(re.match(r"std_\w+,detector=\w+,\S+ \S+ \d+$", line) for line in lines), lines


def test_described_settings_of_a_live_stream_are_valid() -> None:
    with PageSession("docs/reference/live-stream.md") as page:
        streams = json.loads(f"{{{page.take('image_attributes')}}}")
    assert DetectorConfig.parse(make_config(live_stream_configs=streams)).live_stream_configs


@pytest.mark.external
def test_images_are_stored_and_replayed_as_described(
    make_deployment: Callable[..., Deployment], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, here = tmp_path / "buffer", tmp_path / "here"
    with (
        ImageBufferRig(make_deployment, root) as buffer,
        PageSession("docs/how-to/store-and-replay-images.md", buffer.camera, here) as page,
        PageSession("docs/reference/image-buffer.md") as reference,
    ):
        name, driver, stream = buffer.camera.detector_name, str(free_port()), str(free_port())
        page.places = {
            "/data/buffer": str(root),
            "6379": buffer.redis.address.rpartition(":")[2],
            "8090": driver,
            "9100": stream,
            "REPLAY-CAM1.json": str(buffer.replayed.config_path),
            "CAM1.json": str(buffer.camera.config_path),
            "1999": "1009",
        }
        page.start("std_buffer_writer", "ready")
        assert buffer.source.wait_for_subscribers(1, 20)
        buffer.store([Image(image_id, pixels_of(image_id)) for image_id in range(1000, 1010)])
        for program, *arguments in page.commands("std_buffer_reader"):
            buffer.replayed.run(console_script(program), *arguments, ready="ready", cwd=here)
        names: dict[str, Any] = {}
        consumer, replay = page.take("zmq"), page.take("websockets")
        # The consumer is another program, which is ready before the replay starts.
        before, receive = consumer.split("image = ")
        exec(before, names)
        exec(replay, {})
        exec("image = " + receive, names)
        assert capsys.readouterr().out.endswith(f"1000 {pixels_of(1000).mean()}\n")
        names["consumer"].context.destroy(linger=0)
        reference.places = page.places | {"CAM1": name}
        reference.python("ImageBuffer", {})
        assert capsys.readouterr().out.count("\n") == 11
