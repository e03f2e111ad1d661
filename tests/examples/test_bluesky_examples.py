"""The Bluesky examples run unchanged."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from support.processes.deployment import Deployment, free_port
from support.processes.tiled_server import API_KEY, TiledServer

from stddaq.config import DetectorConfig
from stddaq.sources.simulated.scenes import Scene

# The tests start several slow programs.
pytestmark = pytest.mark.timeout(200)

ROOT = Path(__file__).parents[2]
# An environment with nothing but the package and its extra `bluesky`, which `make test-all` creates.
CLEAN = Path(sys.prefix) / "clean" / "bin" / "python"


@pytest.fixture
def clean_python() -> Path:
    """The Python of the environment in which slow examples run."""
    assert CLEAN.exists(), f"{CLEAN}: missing; `make test-all` creates it, or sh .ci/make-clean {sys.prefix}"
    return CLEAN


@pytest.fixture
def port(deployment: Deployment) -> int:
    """Return the port of a driver whose simulated detector waits for a trigger."""
    port = free_port()
    deployment.start_up("--port", port, "-m", "--source", "simulate", "--trigger", "--rate", "100")
    return port


def run_example(deployment: Deployment, python: Path, name: str, *args: object) -> list[str]:
    """Run an example to its end. Return its output."""
    example = deployment.run(python, ROOT / "examples" / name, *args)
    assert example.wait(timeout=100) == 0, example.output
    return example.stdout


# Each has an extra of its own.
OTHER_EXTRAS = ("use-it-from-bec.md", "use-it-from-ophyd-async.md")


def imports_of(text: str) -> set[str]:
    """Return the lines of a program or a page that import something."""
    return set(re.findall(r"^(?:import \w|from \w\S* import ).*", text, re.MULTILINE))


@pytest.mark.external
def test_the_extra_has_all_that_examples_and_pages_import(clean_python: Path):
    examples = (ROOT / "examples").glob("*.py")
    pages = [path for path in (ROOT / "docs/how-to").glob("*.md") if path.name not in OTHER_EXTRAS]
    lines = set[str]().union(*(imports_of(path.read_text()) for path in (*examples, *pages)))
    assert {"from bluesky_tiled_plugins import TiledWriter", "from event_model import Filler"} <= lines
    lines.discard("from __future__ import annotations")
    # Of process_run.py and live_flat_field.py, whose pages say what to install.
    lines -= {line for line in lines if re.search("distributed|dranspose", line)}
    done = subprocess.run([clean_python, "-c", "\n".join(sorted(lines))], stderr=subprocess.PIPE, check=False)
    assert done.returncode == 0, done.stderr.decode()
    # The page starts them.
    for command in (("ipython", "--version"), ("tiled", "serve", "catalog", "--help")):
        program, *arguments = command
        subprocess.run([clean_python.with_name(program), *arguments], stdout=subprocess.PIPE, check=True)


@pytest.mark.external
def test_counting_flying_and_reading_by_handler(
    deployment: Deployment, clean_python: Path, port: int, directory: Path
):
    arguments = (deployment.config_path, directory, "--url", f"ws://127.0.0.1:{port}")
    scene = Scene.of(DetectorConfig.parse(deployment.config), "rings")
    means = [scene.image(image_id).mean() for image_id in range(10)]

    counted = run_example(deployment, clean_python, "count.py", *arguments)
    assert any("det_mean" in line for line in counted)
    shown = [np.fromstring(line.partition("[")[2].rstrip("]"), sep=" ") for line in counted[-5:]]
    np.testing.assert_allclose(np.ravel(shown), means)

    for spec, file in (("STDDAQ_RAW", "det_00001_0.h5"), ("STDDAQ_PUBLISHED", "det_00001_Published.h5")):
        read = run_example(
            deployment, clean_python, "read_with_handler.py", spec, directory / file, "--images-per-event", 2
        )
        assert read[4] == f"point 4: shape (2, 32, 48), mean {np.mean(means[8:]):.2f}"
        assert len(read) == 5

    flown = run_example(deployment, clean_python, "fly_scan.py", *arguments, "-n", 100)
    assert "images 0 to 100 are readable" in flown or any("to 100 are readable" in line for line in flown)
    with h5py.File(directory / "det_00002_Published.h5") as file:
        images = file["entry/data/data"]
        assert isinstance(images, h5py.Dataset)
        np.testing.assert_array_equal(images[99], scene.image(109))


@pytest.mark.external
def test_tomography_ends_in_a_plot(
    deployment: Deployment, clean_python: Path, tiled_server: TiledServer, directory: Path, tmp_path: Path
):
    port = free_port()
    deployment.start_up("--port", port, "-m")
    plot = tmp_path / "tomography.png"
    printed = run_example(
        deployment,
        clean_python,
        "tomography.py",
        *(deployment.config_path, directory, tiled_server.url, plot),
        *("--api-key", API_KEY, "--url", f"ws://127.0.0.1:{port}", "-n", 20),
    )
    assert printed[-1] == f"{plot}: 20 projections"
    with Image.open(plot) as drawn:
        # The slice on the right shows bright rods in a darker background.
        pixels = np.asarray(drawn.convert("L"), float)[60:-60, -380:-40]
    assert pixels.std() > 20


@pytest.mark.slow
def test_a_session_starts_with_devices_and_a_run_engine(deployment: Deployment, port: int, directory: Path):
    deployment.env |= {
        "STDDAQ_CONFIG": str(deployment.config_path),
        "STDDAQ_URL": f"ws://127.0.0.1:{port}",
        "STDDAQ_DATA": str(directory),
        "IPYTHONDIR": str(directory / "ipython"),
    }
    program = (
        f"%run {ROOT / 'examples/ipython_startup.py'}\n"
        "det.stage().wait(60)\ndet.trigger().wait(60)\nprint(det.read()['det_n_images']['value'])\n"
        "det.unstage().wait(60)\nRE(scan([det], motor, 0, 1, 2))\ndet.summary()"
    )
    session = deployment.run(sys.executable, "-m", "IPython", "--colors=NoColor", "-c", program)
    assert session.wait(timeout=100) == 0, session.output
    assert "1" in session.stdout
    assert "files            " in session.output
    assert len(list(directory.glob("det_0000?_Published.h5"))) == 1, session.output
