"""Fixtures that all tests share."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from support.data.token import TOKEN
from support.peers.redis_server import RedisServer
from support.processes.deployment import Deployment
from support.processes.preloaded import PATIENT
from support.processes.real_driver import RealDriver
from support.processes.recording import MakeRig, Rig
from support.processes.tiled_server import TiledServer

from stddaq.files.hdf5_calls import hdf5_calls

pytest_plugins = ["support.tools.fault_table"]

# Collecting garbage took a sixth of the time of the tests: all modules and tests are objects that remain.
gc.disable()

# Programs that tests start do no linear algebra, but starting its threads takes a tenth of their start time.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

# No deadline, because examples share the machine with the services of other tests. Every run uses the same
# examples; the profile `fuzz` (`make fuzz`) uses new ones, and more of them (see tests/fuzz).
settings.register_profile("stddaq", deadline=None, derandomize=True, database=None)
settings.register_profile("fuzz", deadline=None, print_blob=True)
settings.load_profile("stddaq")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background jobs with SIGINT ignored. Services would inherit it; tests interrupt them.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers() -> int:
    """Return the number of workers of `-n auto`: most tests wait for their services part of the time.

    With twice as many as cores nothing is faster, but services starve for seconds.
    """
    return (3 * (os.cpu_count() or 1) + 1) // 2


def pytest_collection_finish() -> None:
    """Leave what has been collected so far out of every later collection of garbage."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def hdf5_has_not_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget failures that earlier tests have provoked in this process."""
    monkeypatch.setattr(hdf5_calls, "failed", False)


@pytest.fixture
def make_deployment(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Deployment]]:
    """Return a function that makes deployments of a configuration: `make_deployment(number_of_writers=8)`.

    The test's own process uses the ipc directory of the latest deployment. After the test all services are
    terminated; the test fails if one of them exits with an error or leaves segments or sockets behind.

    In tests outside `faults` the driver keeps writers that stand still.
    """
    patience = {} if request.path.parent.name == "faults" else {PATIENT: "1"}
    with ExitStack() as made:

        def make(**overrides: Any) -> Deployment:
            deployment = Deployment(tmp_path, **overrides)
            deployment.env |= patience
            made.callback(deployment.close)
            monkeypatch.setenv("STDDAQ_IPC_DIR", str(deployment.ipc_directory))
            return deployment

        yield make


@pytest.fixture
def deployment(make_deployment: Callable[..., Deployment]) -> Deployment:
    """Return a deployment of a small GigaFRoST with two writers, without running services."""
    return make_deployment()


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """Return a database of its own."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return an empty directory for the files of runs."""
    path = tmp_path / "files"
    path.mkdir()
    return path


@pytest.fixture
def make_rig(make_deployment: Callable[..., Deployment], directory: Path) -> Iterator[MakeRig]:
    """Return a function that makes rigs of a configuration: `make_rig(number_of_writers=8, driver=["-m"])`.

    The driver runs, and the writers unless `writers=False`; the source is made on first use. A `tolerant`
    driver keeps writers that the test has stopped.
    """
    with ExitStack() as made:

        def make(
            driver: Sequence[object] = (), writers: bool = True, tolerant: bool = False, **overrides: Any
        ) -> Rig:
            rig = made.enter_context(Rig(make_deployment(**overrides), directory))
            rig.start_driver(*driver, tolerant=tolerant)
            return rig.start_writers() if writers else rig

        yield make


@pytest.fixture
def rig(make_rig: MakeRig) -> Rig:
    """Return a rig with two writers and images of 32 x 48 pixels of uint16."""
    return make_rig()


@pytest.fixture
def real_driver(deployment: Deployment) -> RealDriver:
    """Return the driver of stddaq, running with two writers."""
    return RealDriver.start(deployment)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    """Return a file with `TOKEN`."""
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o600)
    return path


@pytest.fixture(scope="session")
def tiled_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TiledServer]:
    """Return a tiled server that may read the files of all tests."""
    directory, adapter = tmp_path_factory.mktemp("tiled"), "stddaq_ophyd.tiled_adapter:CheckedHDF5Adapter"
    with TiledServer(directory, tmp_path_factory.getbasetemp(), adapter) as server:
        yield server
