"""The Python code of the how-to pages works as described."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support.data.raw_files import stream, write_run
from support.processes.deployment import Deployment, free_port, make_config
from support.processes.live_streams import start_live_stream
from support.processes.stream_readers import StreamReader

from stddaq.cli import main as stddaq
from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq_ophyd import StdDaqDetector
from stddaq_ophyd.plans import fly, fly_scan, tomography

CALLED_BY_BLUESKY = ("read", "describe", "describe_collect")
HOW_TO = Path(__file__).parents[2] / "docs" / "how-to"


def python_of(page: str, **replaced: str) -> str:
    """Return the Python blocks of a page, with the values that a reader would insert."""
    blocks = re.findall(r"^```python\n(.*?)^```", (HOW_TO / page).read_text(), re.MULTILINE | re.DOTALL)
    block = "\n".join(blocks)
    for old, new in replaced.items():
        assert old in block
        block = block.replace(old, new)
    return block


def published_shapes(directory: Path) -> list[tuple[int, ...]]:
    """Return the shapes of the images of each plan."""
    shapes = []
    for path in sorted(directory.glob("det_0000?_Published.h5")):
        with h5py.File(path) as file:
            images = file["/entry/data/data"]
            assert isinstance(images, h5py.Dataset)
            shapes.append(images.shape)
    return shapes


def end_engine(engine: Any) -> None:
    """End the thread of a RunEngine."""
    engine.loop.call_soon_threadsafe(engine.loop.stop)
    engine._th.join()
    engine.loop.close()


def test_images_are_recorded_and_read_as_described(
    deployment: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, url = deployment.start_driver()
    deployment.start_writers()
    deployment.run(deployment.stddaq, "simulate", deployment.config_path, "--rate", 200, ready="ready")

    places = {"ws://127.0.0.1:8080": url, "/tmp/run1": str(tmp_path), "n_image=1000": "n_image=100"}
    exec(python_of("record-images.md", **places), {})
    assert capsys.readouterr().out == "100\n"

    names: dict[str, Any] = {}
    read = python_of("read-the-files.md", **{"/tmp/run1/file": f"{tmp_path}/scan"})
    exec(read + "    shape = images.shape\n", names)
    assert names["shape"] == (
        100,
        *(deployment.config[f"image_pixel_{side}"] for side in ("height", "width")),
    )
    assert names["good"].all()


def test_a_configuration_is_changed_as_described(
    deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    service = deployment.start("stddaq-rest", "--port", 0, "--allow-control", ready=None)
    url = service.wait_for_line(r"listening on (http://\S+)")[1]
    exec(python_of("change-a-configuration.md", **{"http://127.0.0.1:5000": url}), {})
    assert capsys.readouterr().out.startswith("['number_of_writers'] ['std_det_driver', 'std_det_writer'")
    assert json.loads(deployment.config_path.read_text())["number_of_writers"] == 4


def test_images_are_watched_as_described(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    stream = start_live_stream(deployment)
    deployment.run(deployment.stddaq, "simulate", deployment.config_path, "--rate", 50, ready="ready")
    exec(python_of("watch-live.md", **{"tcp://127.0.0.1:20000": stream.address}), {})
    assert capsys.readouterr().out.endswith(" (32, 48) uint16\n")


def test_a_camera_is_recorded_as_described(
    make_deployment: Callable[..., Deployment], tmp_path: Path
) -> None:
    page = (HOW_TO / "record-a-pco-camera.md").read_text()
    port, driver_port = free_port(), free_port()
    (service,) = re.findall(r'"services": \["(.*?)"\]', page)
    up, record, simulate = (
        command.replace("9999", str(port)).split()[1:]
        for command in re.findall(r"^```\n(stddaq .*)\n```", page, re.MULTILINE)
    )
    deployment = make_deployment(detector_type="pco", services=[service.replace("9999", str(port))])

    def filled(command: list[str]) -> list[object]:
        places = {"CONFIG": deployment.config_path, "DIRECTORY": tmp_path}
        return [deployment.stddaq, *(places.get(word, word) for word in command)]

    deployment.run(*filled(up), "--port", driver_port, ready="all services ready")
    deployment.run(*filled(simulate), ready="ready")
    recording = deployment.run(*filled(record), "--url", f"ws://127.0.0.1:{driver_port}")
    assert recording.wait(30) == 0, recording.output
    with h5py.File(tmp_path / "fileMeta.h5") as file:
        assert len(file[f"{deployment.detector_name}/metadata"]) == 100  # pyright: ignore


def test_the_described_service_subtracts_the_dark_image(deployment: Deployment, tmp_path: Path) -> None:
    config = DetectorConfig.parse(deployment.config)
    program, dark = tmp_path / "subtract_dark.py", tmp_path / "dark.npy"
    program.write_text(python_of("write-a-processing-service.md"))
    np.save(dark, np.full(config.image_shape, 10, config.dtype))
    deployment.run(sys.executable, program, deployment.config_path, "--dark", dark, ready="ready")
    with ImagePublisher(config) as source, StreamReader(deployment, "subtracted") as reader:
        assert source.wait_for_subscribers(1, 20)
        source.publish(0, np.full(config.image_shape, 12, config.dtype))
        source.publish(1, np.full(config.image_shape, 8, config.dtype))
        values = [set(image.pixels.flat) for image in reader.receive(2)]
    assert values == [{2}, {0}]


@pytest.mark.slow
def test_plans_run_as_described(
    deployment: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    deployment.run(
        *(deployment.stddaq, "up", deployment.config_path, "--port", port, "-m"),
        *("--source", "simulate", "--trigger", "--rate", "500"),
        ready="all services ready",
    )
    names: dict[str, Any] = {}
    places = {"8080": str(port), "/tmp/run1": str(tmp_path), '"simulated"': repr(deployment.detector_name)}
    exec(python_of("use-it-from-bluesky.md", **places), names)
    assert published_shapes(tmp_path) == [(6, 32, 48), (10, 32, 48), (1000, 32, 48)]
    names["camera"].destroy()
    end_engine(names["RE"])


def test_plans_of_ophyd_async_run_as_described(deployment: Deployment, tmp_path: Path) -> None:
    port = free_port()
    deployment.run(
        *(deployment.stddaq, "up", deployment.config_path, "--port", port, "-m"),
        *("--source", "simulate", "--trigger", "--rate", "500"),
        ready="all services ready",
    )
    names: dict[str, Any] = {}
    places = {"8080": str(port), "/tmp/run1": str(tmp_path), '"simulated"': repr(deployment.detector_name)}
    exec(python_of("use-it-from-ophyd-async.md", **places), names)
    assert published_shapes(tmp_path) == [(3, 32, 48), (20, 32, 48), (500, 32, 48)]
    engine = names["RE"]
    asyncio.run_coroutine_threadsafe(names["det"].disconnect(), engine.loop).result(10)
    names["camera"].close()
    end_engine(engine)


def test_every_component_and_method_of_the_detector_is_in_the_reference() -> None:
    text = (HOW_TO.parent / "reference" / "bluesky.md").read_text()
    methods = [
        name
        for base in StdDaqDetector.__mro__
        if base.__module__.startswith("stddaq_ophyd")
        for name, member in vars(base).items()
        if inspect.isfunction(member) and not name.startswith("_") and name not in CALLED_BY_BLUESKY
    ]
    for name in (*methods, *StdDaqDetector.component_names):
        assert re.search(rf"\b{name}\b", text), name
    for plan in (fly, fly_scan, tomography):
        for parameter in inspect.signature(plan).parameters:
            assert parameter in text, parameter


def test_the_described_deployment_is_valid(tmp_path: Path) -> None:
    (block,) = re.findall(
        r"^```yaml\n(.*?)^```", (HOW_TO / "deploy-with-ansible.md").read_text(), re.MULTILINE | re.DOTALL
    )
    (tmp_path / "deployment.yml").write_text(block)
    (tmp_path / "units").mkdir()
    config = make_config(detector_name="GF1", allowed_roots=[str(tmp_path)])
    (tmp_path / "gf1.json").write_text(json.dumps(config))
    arguments = ["--configs", str(tmp_path), "--directory", str(tmp_path / "units")]
    assert stddaq(["deployment", str(tmp_path / "deployment.yml"), *arguments]) == 0
    assert len(list((tmp_path / "units").glob("*.service"))) == 5


def test_a_configuration_is_made_as_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (HOW_TO / "make-a-configuration.md").read_text()
    commands = re.findall(r"^stddaq (init .*)$", page, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        assert stddaq(command.split()) == 0
    for name in ("gf", "camera"):
        DetectorConfig.load(f"{name}.json")


def test_metadata_for_crystallography_make_an_nxmx_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (HOW_TO / "crystallography.md").read_text()
    files = re.findall(r"^```json\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(files) == 2
    for number, content in enumerate(files):
        (tmp_path / f"{number}.json").write_text(content)
    write_run(tmp_path, stream(range(9)))
    np.save(tmp_path / "mask.npy", np.zeros((2, 3), np.uint32))
    arguments = ["nexus", str(tmp_path), "--definition", "NXmx", "--from", str(tmp_path / "0.json")]
    # The run has no driver's account, which has the times.
    times = [f"--set={name}_time=2026-11-27T01:00:00+01:00" for name in ("start", "end")]
    assert stddaq([*arguments, *times]) == 0
    assert stddaq([*arguments, "--from", str(tmp_path / "1.json"), *times, "--overwrite"]) == 0
    assert capsys.readouterr().out.count("file_master.h5: 9 frames of 2x3 uint16\n") == 2
