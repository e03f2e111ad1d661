"""README and tutorials work as described."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any

import pytest
from support.processes.deployment import Deployment, free_port, wait_until
from support.processes.page_session import PageSession


def end_engine(engine: Any) -> None:
    """End the thread of a RunEngine."""
    engine.loop.call_soon_threadsafe(engine.loop.stop)
    engine._th.join()
    engine.loop.close()


def accepts(port: int) -> bool:
    """Return whether a server listens."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@pytest.mark.slow
def test_readme(
    deployment: Deployment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    port, here = free_port(), tmp_path / "here"
    deployment.env["STDDAQ_URL"] = f"ws://127.0.0.1:{port}"
    with PageSession("README.md", deployment, here) as page:
        page.places = {
            "-m --allowed-root $PWD": f"--port {port} -m --allowed-root {here}",
            "8080": str(port),
            "--rate 100": "--rate 200",
        }
        monkeypatch.chdir(here)
        page.start("stddaq up", "all services ready")
        assert "500 images" in page.run("stddaq record").replace("  ", " ")
        page.python("DriverClient", {})
        assert "'n_good': 500" in capsys.readouterr().out
        page.python("open_run", {})
        assert float(capsys.readouterr().out) > 0
        names = page.python("RunEngine", {})
    assert (here / "data" / "det_00001_Published.h5").exists()
    names["det"].destroy()
    end_engine(names["RE"])


@pytest.mark.slow
def test_first_run(deployment: Deployment, tmp_path: Path) -> None:
    port, here = free_port(), tmp_path / "here"
    deployment.env["STDDAQ_URL"] = f"ws://127.0.0.1:{port}"
    with PageSession("docs/tutorials/first-run.md", deployment, here) as page:
        page.places = {
            "demo.json -m": f"demo.json --port {port} -m",
            "--rate 100": "--rate 200",
            "/tmp/run1": str(here / "run1"),
        }
        (here / "demo").mkdir()
        (here / "demo" / "demo.json").write_text(deployment.config_path.read_text())
        page.start("stddaq up", "all services ready")
        assert "500" in page.run("stddaq record")


@pytest.mark.slow
def test_bluesky_scan(
    deployment: Deployment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    port, tiled_port, here = free_port(), free_port(), tmp_path / "here"
    with PageSession("docs/tutorials/bluesky-scan.md", deployment, here) as page:
        page.places = {
            "-m --allowed-root $PWD": f"--port {port} -m --allowed-root {here}",
            "8080": str(port),
            '"simulated"': repr(deployment.detector_name),
            "--api-key secret": f"--api-key secret --port {tiled_port}",
            "8000": str(tiled_port),
        }
        monkeypatch.chdir(here)
        page.start("stddaq up", "all services ready")
        deployment.env["TMPDIR"] = str(tmp_path)  # of tiled's storage
        tiled = page.start("tiled serve", None)
        wait_until(lambda: accepts(tiled_port) or tiled.returncode is not None, 100, "tiled")
        names: dict[str, Any] = {}
        for part in ("SimulatedCamera", "TiledWriter", "RE(scan", "print(images.shape)"):
            page.python(part, names)
        assert capsys.readouterr().out.startswith("(5, 2, 32, 48)\n")
        assert "det_00001" in page.run("stddaq info")
        names["client"].context.http_client.close()
        tiled.end(timeout=100)
    names["camera"].destroy()
    names["det"].destroy()
    end_engine(names["RE"])
