"""The code of the how-to pages works as described."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from bluesky.plans import count
from ophyd.sim import SynAxis
from support.data.raw_files import stream, write_run
from support.peers.udp_detectors import free_udp_ports
from support.processes.deployment import Deployment, free_port, make_config
from support.processes.page_session import PageSession
from support.processes.real_driver import RealDriver
from support.processes.servers import wait_for_connections
from support.processes.stream_readers import StreamReader

from stddaq.cli import main as stddaq
from stddaq.cli.costs import Costs
from stddaq.client import DriverClient
from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq_ophyd import StdDaqDetector
from stddaq_ophyd.plans import fly, fly_scan, tomography

CALLED_BY_BLUESKY = ("read", "describe", "describe_collect")
ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"


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


def test_images_are_recorded_as_described(
    deployment: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, url = deployment.start_driver()
    deployment.start_writers()
    deployment.run(deployment.stddaq, "simulate", deployment.config_path, "--rate", 200, ready="ready")
    with PageSession("docs/how-to/record-images.md") as page:
        page.places = {
            "ws://127.0.0.1:8080": url,
            "/tmp/run1": str(tmp_path),
            "n_image=1000": "n_image=100",
        }
        page.python("DriverClient", {})
    assert capsys.readouterr().out == "100\n"


def test_files_are_read_and_exported_as_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path, stream(range(30)))
    assert stddaq(["aggregate", str(tmp_path)]) == 0
    with PageSession("docs/how-to/read-the-files.md") as page:
        page.places = {"/tmp/run1": str(tmp_path), "5, 10:30": "1, 1:3", "\n    ...": "\n    n = rows.stop"}
        names = page.python("run.images[10:20]", {})
        page.python("blocks()", names)
        page.python("run.follow", names)
        assert names["n"] == 30
        for command in page.commands("stddaq export"):
            assert stddaq(command[1:]) == 0
            assert Path(command[-1]).exists()
        names = page.python("h5py.File", {})
    assert names["good"].all()
    assert len(names["rows"]) == 30


def test_a_configuration_is_changed_as_described(
    deployment: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with PageSession("docs/how-to/change-a-configuration.md", deployment, tmp_path / "here") as page:
        (entry,) = json.loads(f"{{{page.take('stddaq-rest')}}}")["services"]
        words = shlex.split(entry.replace("/data", str(tmp_path)))
        service = deployment.start(words[0], *words[1:], "--port", 0, ready=None)
        url = service.wait_for_line(r"listening on (http://\S+)")[1]
        page.places = {"http://127.0.0.1:5000": url, "curl ": "curl -sS --fail "}
        page.run("curl")
        page.python("ConfigClient", {})
    assert capsys.readouterr().out.startswith("['number_of_writers'] ['std_det_driver', 'std_det_writer'")
    assert json.loads(deployment.config_path.read_text())["number_of_writers"] == 4


def test_images_are_watched_as_described(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    with PageSession("docs/how-to/watch-live.md", deployment) as page:
        ports = {f"{port}": str(free_port()) for port in (20000, 20001)}
        page.places = ports | {"0.0.0.0": "127.0.0.1", "CONFIG": str(deployment.config_path)}
        deployment.write_config(**json.loads(f"{{{page.take('live_stream_configs')}}}"))
        for command in page.commands("std_live_stream"):
            page.start_command(command, ready="ready")
        deployment.run(deployment.stddaq, "simulate", deployment.config_path, "--rate", 50, ready="ready")
        page.python("LiveStreamClient", {})
    assert capsys.readouterr().out.endswith(" (32, 48) uint16\n")


@pytest.mark.slow
def test_a_camera_is_recorded_as_described(
    make_deployment: Callable[..., Deployment], tmp_path: Path
) -> None:
    port, driver_port = str(free_port()), free_port()
    page_text = (REFERENCE.parent / "how-to" / "record-a-pco-camera.md").read_text()
    (service,) = re.findall(r'"services": \["(.*?)"\]', page_text)
    deployment = make_deployment(detector_type="pco", services=[service.replace("9999", port)])
    deployment.env["STDDAQ_URL"] = f"ws://127.0.0.1:{driver_port}"
    config = str(deployment.config_path)
    with PageSession("docs/how-to/record-a-pco-camera.md", deployment, tmp_path / "here") as page:
        page.places = {
            "9999": port,
            "up CONFIG": f"up {config} --port {driver_port}",
            "CONFIG": config,
            "DIRECTORY": str(tmp_path),
        }
        page.start("stddaq up", "all services ready")
        (record,) = page.commands("stddaq record")
        page.start("stddaq simulate-pco", "ready")
        recording = page.start_command(record, None)
        assert recording.wait() == 0, recording.output
    with h5py.File(tmp_path / "fileMeta.h5") as file:
        assert len(file[f"{deployment.detector_name}/metadata"]) == 100  # pyright: ignore


@pytest.mark.slow
def test_a_udp_detector_is_recorded_as_described(
    make_deployment: Callable[..., Deployment], tmp_path: Path
) -> None:
    deployment = make_deployment()
    deployment.env["STDDAQ_URL"] = f"ws://127.0.0.1:{(port := free_port())}"
    with PageSession("docs/how-to/record-a-udp-detector.md", deployment, tmp_path / "here") as page:
        page.places = {
            '"GF-sim"': f'"{deployment.detector_name}", "allowed_roots": ["/"]',
            "50020": str(free_udp_ports(8)),
            "stddaq up gf.json": f"stddaq up gf.json --port {port}",
            "/tmp/run1": str(tmp_path / "run1"),
            "-n 500": "-n 100",
        }
        (tmp_path / "here" / "gf.json").write_text(page.take("start_udp_port"))
        up = page.start("stddaq up", "all services ready")
        # Its images are left out before the converters have subscribed.
        for module in range(8):
            up.wait_for_line(rf"module_id={module},.*n_subscribers=1")
        page.start("stddaq simulate-udp", "ready")
        page.run("stddaq record")
    with h5py.File(tmp_path / "run1" / "fileMaster.h5") as file:
        assert file["entry/data/data"].shape == (100, 280, 528)  # pyright: ignore


def test_the_described_service_subtracts_the_dark_image(deployment: Deployment, tmp_path: Path) -> None:
    config = DetectorConfig.parse(deployment.config)
    here = tmp_path / "here"
    with PageSession("docs/how-to/write-a-processing-service.md", deployment, here) as page:
        page.places = {
            "CONFIG": str(deployment.config_path),
            "std_det_driver": "std_det_driver --port 0",
            "python ": "",
        }
        (here / "subtract_dark.py").write_text(page.take("run_processor"))
        np.save(here / "dark.npy", np.full(config.image_shape, 10, config.dtype))
        processor, *others = page.commands("subtract_dark.py")
        deployment.run(*("python", *processor), ready="ready", cwd=here)
        for command in others:
            page.start_command(command, "ready")
    with ImagePublisher(config) as source, StreamReader(deployment, "subtracted") as reader:
        assert source.wait_for_subscribers(1, 20)
        source.publish(0, np.full(config.image_shape, 12, config.dtype))
        source.publish(1, np.full(config.image_shape, 8, config.dtype))
        values = [set(image.pixels.flat) for image in reader.receive(2)]
    assert values == [{2}, {0}]


def images_are_forwarded(config: DetectorConfig, second: Deployment) -> None:
    """Check that an image of the first server appears on the second one."""
    image = np.arange(np.prod(config.image_shape), dtype=config.dtype).reshape(config.image_shape)
    with ImagePublisher(config) as source, StreamReader(second, "image") as reader:
        assert source.wait_for_subscribers(2, 20)
        source.publish(7, image)
        (received,) = reader.receive(1)
        np.testing.assert_array_equal(received.pixels, image)


def whole_images(make_deployment: Callable[..., Deployment], page: PageSession) -> None:
    """Start the services of the order of whole images."""
    second = make_deployment(sender_sends_full_images=True)
    first = make_deployment(sender_sends_full_images=True, ipc_directory=second.ipc_directory)
    page.places = {"10.0.0.1:9150": f"127.0.0.1:{free_port()}"}
    for server, (program, _, *arguments) in zip(
        (second, first), page.commands("std_data_sync_m"), strict=True
    ):
        server.start(program, *arguments)


@pytest.mark.slow
def test_images_are_forwarded_as_described(
    make_deployment: Callable[..., Deployment], tmp_path: Path
) -> None:
    keys: dict[str, Any] = {"use_all_forwarders": True, "max_number_of_forwarders_spawned": 2}
    second = make_deployment(**keys)
    first = make_deployment(ipc_directory=second.ipc_directory, **keys)
    addresses = {f"10.0.0.1:{port}": f"127.0.0.1:{free_port()}" for port in (9100, 9101)}
    config = DetectorConfig.parse(first.config)
    with PageSession("docs/how-to/forward-to-another-server.md") as page:
        for server, start in ((second, "std_data_sync_stream"), (first, "std_stream_send")):
            page.places = addresses | {"CONFIG": str(server.config_path)}
            for program, _, *arguments in page.commands(start):
                server.start(program, *arguments)
        wait_for_connections(first.services, "n_receivers")
        images_are_forwarded(config, second)
        whole_images(make_deployment, page)


@pytest.mark.slow
def test_plans_run_as_described(
    deployment: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port, here = free_port(), tmp_path / "here"
    deployment.env |= {
        "STDDAQ_URL": f"ws://127.0.0.1:{port}",
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }
    with PageSession("docs/how-to/use-it-from-bluesky.md", deployment, here) as page:
        page.places = {
            "-m --allowed-root": f"--port {port} -m --allowed-root",
            "$PWD": str(here),
            "--rate 100": "--rate 500",
            "8080": str(port),
            'paths="data"': f'paths="{here / "run1"}"',
            '"simulated"': repr(deployment.detector_name),
        }
        (here / "run1").mkdir()
        page.start("stddaq up", "all services ready")
        page.run("ipython -i")
        names = page.python("SimulatedCamera", {})
        page.python("Filler", names)
    assert published_shapes(here / "run1") == [(6, 32, 48), (10, 32, 48), (1000, 32, 48)]
    names["camera"].destroy()
    end_engine(names["RE"])


@pytest.mark.slow
def test_plans_of_ophyd_async_run_as_described(deployment: Deployment, tmp_path: Path) -> None:
    port = free_port()
    deployment.start_up("--port", port, "-m", "--source", "simulate", "--trigger", "--rate", "500")
    with PageSession("docs/how-to/use-it-from-ophyd-async.md") as page:
        page.places = {
            "8080": str(port),
            '"data"': f'"{tmp_path}"',
            '"simulated"': repr(deployment.detector_name),
        }
        names = page.python("AsyncStdDaqDetector", {})
    assert published_shapes(tmp_path) == [(3, 32, 48), (20, 32, 48), (500, 32, 48)]
    engine = names["RE"]
    asyncio.run_coroutine_threadsafe(names["det"].disconnect(), engine.loop).result(60)
    names["camera"].close()
    end_engine(engine)


def test_every_component_and_method_of_the_detector_is_in_the_reference() -> None:
    text = (REFERENCE / "bluesky.md").read_text()
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


def test_a_deployment_is_planned_and_checked_as_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = make_config(detector_name="GF1", allowed_roots=[str(tmp_path)])
    Path("gf1.json").write_text(json.dumps(config))
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    Path("units").mkdir()
    shutil.copytree(ROOT / "services" / "ansible", ".", dirs_exist_ok=True)
    # As measured before, so that the plan does not depend on this machine.
    Costs(**dict.fromkeys(Costs.model_fields, 1.0)).save(Path("costs.json"))
    with PageSession("docs/how-to/deploy-with-ansible.md") as page:
        Path("described.yml").write_text(page.take("microservices"))
        checked = ["deployment", "described.yml", "--configs", ".", "--directory", "units"]
        two = [command[1:] for command in page.commands("--play Writing")]
        planned = [
            command[1:] for part in ("plan", "deployment") for command in page.commands(f"stddaq {part}")
        ]
        for command in (checked, *planned, *two):
            assert stddaq(command) == 0
    assert len(list(Path("units").glob("std_daq-GF1-*.service"))) == 5


@pytest.mark.slow
def test_a_configuration_is_made_as_described(deployment: Deployment, tmp_path: Path) -> None:
    here = tmp_path / "here"
    with PageSession("docs/how-to/make-a-configuration.md", deployment, here) as page:
        page.places = {
            "528x280": f"48x32 --name {deployment.detector_name} --allowed-root /",
            "up gf.json": f"up gf.json --port {free_port()}",
        }
        page.run("init gf.json")
        up = page.start("stddaq up", "all services ready")
        page.run("init --list")
        page.run("completion")
        up.end()
    for name in ("gf", "camera"):
        DetectorConfig.load(str(here / f"{name}.json"))


def test_metadata_for_crystallography_make_an_nxmx_file(
    real_driver: RealDriver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path, stream(range(9)))
    np.save(tmp_path / "mask.npy", np.zeros((2, 3), np.uint32))
    with PageSession("docs/how-to/crystallography.md") as page:
        page.places = {"/data/run1": str(tmp_path)}
        Path("meta.json").write_text(page.take('"scan_axis"'))
        ((_, *command),) = page.commands("stddaq nexus")
        # The run has no driver's account, which has the times.
        times = [f"--set={name}_time=2026-11-27T01:00:00+01:00" for name in ("start", "end")]
        assert stddaq([*command, *times]) == 0
        Path("axes.json").write_text(page.take('"sample_axes"'))
        assert stddaq([*command, "--from", "axes.json", *times, "--overwrite"]) == 0
        bluesky = EngineOfPlans()
        devices = ("mono", "det_z", "beam_x", "beam_y")
        names: dict[str, Any] = dict.fromkeys(devices, SynAxis(name="axis"))
        names["mono"] = SimpleNamespace(energy=SynAxis(name="energy"))
        page.python("engine=RE", names | {"RE": bluesky, "StdDaqDetector": StdDaqDetector, "count": count})
        assert bluesky.commands == ["stage"]
        with DriverClient(real_driver.url) as driver:
            (tmp_path / "run1").mkdir()
            page.places = {"/data/run1": str(tmp_path / "run1")}
            names = page.python("nexus_missing", {"driver": driver})
            driver.stop()
    missing = names["status"].raw["nexus_missing"]
    assert "detector.distance_m" in missing
    assert "beam.energy_kev" not in missing
    assert capsys.readouterr().out.count("file_master.h5: 9 frames of 2x3 uint16\n") == 2


class EngineOfPlans:
    """Stands for a RunEngine, and keeps the first message of the plans that it would run."""

    def __init__(self) -> None:
        self.commands: list[str] = []

    def __call__(self, plan: Any, **_: Any) -> None:
        self.commands.append(next(iter(plan)).command)

    def subscribe(self, func: Any, name: str = "all") -> None:
        """Do nothing."""


def test_runs_of_tomography_make_nxtomo_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, n_images in {"darks": 5, "flats": 7, "bone": 42}.items():
        Path(name).mkdir()
        write_run(Path(name), stream(range(n_images)))
        assert stddaq(["aggregate", name]) == 0
    np.save("angles.npy", np.linspace(0, 180, 42))
    with PageSession("docs/how-to/tomography.md") as page:
        page.places = {"/data": str(tmp_path)}
        bluesky = EngineOfPlans()
        devices = dict.fromkeys(("det", "rotation", "shutter", "stage"), SynAxis(name="axis"))
        page.python("tomography(", devices | {"RE": bluesky, "tomography": tomography})
        assert bluesky.commands == ["subscribe"]
        for part in ("--keys", "dark="):
            for command in page.commands(part):
                assert stddaq(command[1:]) == 0
    assert Path("bone.h5").exists()


@pytest.mark.slow
def test_a_server_is_checked_and_units_are_made_as_described(deployment: Deployment, tmp_path: Path) -> None:
    here = tmp_path / "here"
    with PageSession("docs/how-to/run-it-with-systemd.md", deployment, here) as page:
        page.places = {"sudo ": "", "/etc/systemd/system": "units", "--user daq": "--user daemon"}
        (here / "config.json").write_text(deployment.config_path.read_text())
        (here / "units").mkdir()
        # Whether this machine is prepared does not matter.
        page.run("stddaq doctor", codes=(0, 1))
        page.run("stddaq units")
        assert "std_buffer_writer" in page.run("--only-services")
        assert len(list((here / "units").glob("*.service"))) == 4


def test_services_are_looked_at_as_described(deployment: Deployment, tmp_path: Path) -> None:
    deployment.env["STDDAQ_URL"] = deployment.start_driver()[1]
    deployment.start_writers()
    run = tmp_path / "run"
    run.mkdir()
    write_run(run, stream(range(9)))
    with PageSession("docs/how-to/monitor.md", deployment, tmp_path / "here") as page:
        assert "std_det_writer 1  works" in page.run("stddaq status")
    with PageSession("docs/how-to/find-what-is-wrong.md", deployment) as page:
        page.places = {"config.json": str(deployment.config_path), "RUN/fileMaster.h5": str(run)}
        for command in page.commands("stddaq status"):
            checked = page.start_command(command, None)
            assert checked.wait(30) in (0, 1), checked.output
