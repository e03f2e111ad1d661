"""Fixtures of `stddaq up`, a whole deployment in one command, and of a server for `stddaq doctor`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.peers.network_card import NetworkCard
from support.processes.deployment import Deployment, Service, free_port

from stddaq.udp.batch_socket import SOCKET_BUFFER_BYTES


class Up:
    """A running `stddaq up`."""

    def __init__(self, deployment: Deployment, *args: object, patient: bool = True) -> None:
        """Unless `patient`, it kills services that do not end within 4 s."""
        self.deployment = deployment
        self.port = free_port()
        self.url = f"ws://127.0.0.1:{self.port}"
        self.process: Service
        if patient:
            self.process = deployment.start_up("--port", self.port, *args)
        else:
            command = (deployment.stddaq, "up", deployment.config_path, "--port", self.port, *args)
            self.process = deployment.run(*command, ready="all services ready")

    def record(self, *args: object) -> Service:
        """Start `stddaq record`."""
        return self.deployment.run(self.deployment.stddaq, "record", *args, "--url", self.url)


class Services:
    """The services of `stddaq up -m` without it: as forks, they are ready in a tenth of the time."""

    def __init__(self, deployment: Deployment, *simulate: object) -> None:
        """`simulate` are options of `stddaq simulate`."""
        self.deployment = deployment
        _, self.url = deployment.start_driver("-m")
        deployment.start_writers()
        deployment.start("std_det_meta_writer_gf")
        deployment.run(deployment.stddaq, "simulate", deployment.config_path, *simulate, ready="ready")

    def record(self, *args: object) -> Service:
        """Start `stddaq record`."""
        return self.deployment.run(self.deployment.stddaq, "record", *args, "--url", self.url)


StartServices = Callable[..., Services]


@pytest.fixture
def services(deployment: Deployment) -> StartServices:
    """Return a function that starts the services of a deployment, with options of `stddaq simulate`."""
    return lambda *simulate: Services(deployment, *simulate)


@pytest.fixture
def up(deployment: Deployment) -> Callable[..., Up]:
    """Return a function that starts `stddaq up` with further options and waits until it is ready."""
    return lambda *args: Up(deployment, *args)


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NetworkCard:
    """Return the network card of `root`."""
    card = NetworkCard(tmp_path / "server", tmp_path / "ethtool")
    monkeypatch.setenv("PATH", str(card.programs), prepend=os.pathsep)
    return card


@pytest.fixture
def root(card: NetworkCard, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file system of a server that is prepared."""
    monkeypatch.setenv("STDDAQ_IPC_DIR", "/tmp")
    for path, text in {
        "proc/mounts": "tmpfs /dev/shm tmpfs rw,size=1g,huge=within_size 0 0",
        "sys/kernel/mm/transparent_hugepage/shmem_enabled": "always within_size advise [never] deny force",
        "proc/sys/net/core/rmem_max": f"{SOCKET_BUFFER_BYTES}",
        "proc/sys/fs/protected_regular": "0",
        "sys/class/net/lo/mtu": "65536",
        "proc/17/comm": "systemd",
        "etc/systemd/logind.conf": "[Login]\nRemoveIPC=no",
    }.items():
        card.write(path, text)
    (card.root / "run/systemd/system").mkdir(parents=True)
    (card.root / "dev/shm").mkdir(parents=True)
    return card.root
