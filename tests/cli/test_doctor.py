"""`stddaq doctor`: what it finds on a server that lacks something, and that its commands mend it."""

from __future__ import annotations

import errno
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.processes.deployment import make_config

from stddaq.cli import main as stddaq
from stddaq.cli import server_checks
from stddaq.cli.findings import Finding, Server
from stddaq.cli.ring_space import rings_bytes
from stddaq.cli.server_checks import check_server, write_speed
from stddaq.config import DetectorConfig
from stddaq.udp.batch_socket import SOCKET_BUFFER_BYTES

USER = 12345
UDP_CONFIG = {
    "detector_type": "eiger",
    "n_modules": 1,
    "image_pixel_height": 256,
    "image_pixel_width": 512,
    "module_positions": {},
}


def find(name: str, root: Path, uid: int = USER, rate: float | None = None, **keys: Any) -> Finding:
    """Return the finding of a check."""
    config = DetectorConfig.parse(make_config(**{"allowed_roots": [], **UDP_CONFIG} | keys))
    (finding,) = [one for one in check_server(config, Server(uid, root), rate) if one.name.startswith(name)]
    return finding


CHECKED = (
    *("keys", "shared memory", "huge pages", "network buffers", "packet size", "interrupts", "sockets"),
    *("ring buffers of C++ services", "RemoveIPC"),
)


def test_a_misspelt_key_is_named_with_the_right_one_and_keys_of_other_services_are_not(root: Path) -> None:
    stream = {"type": "forward", "config": [], "sockt": "push"}
    content = make_config(gpfs_block_size=4, live_stream_configs={"tcp://127.0.0.1:1": stream})
    content["number_of_writer"] = content.pop("number_of_writers")
    (finding,) = [
        one
        for one in check_server(DetectorConfig.parse(content), Server(0, root), None)
        if one.name == "keys"
    ]
    assert finding.state == "advice"
    assert finding.found == "ignored: number_of_writer, live_stream_configs.tcp://127.0.0.1:1.sockt"
    assert finding.expected == "number_of_writers, socket, unless another service reads it"


@pytest.mark.parametrize("name", CHECKED)
def test_server_that_is_prepared(name: str, root: Path) -> None:
    assert find(name, root).state == "ok"


@pytest.mark.parametrize(
    ("name", "path", "text", "state", "cure"),
    [
        (
            *("network buffers", "proc/sys/net/core/rmem_max", "212992", "missing"),
            f"sysctl -w net.core.rmem_max={SOCKET_BUFFER_BYTES}",
        ),
        ("packet size", "sys/class/net/eth1/mtu", "1500", "advice", "ip link set dev eth1 mtu 9000"),
        ("interrupts", "proc/17/comm", "irqbalance", "advice", "systemctl disable --now irqbalance"),
        (
            *("huge pages", "proc/mounts", "tmpfs /dev/shm tmpfs rw 0 0", "advice"),
            "mount -o remount,huge=within_size /dev/shm",
        ),
        (
            *("ring buffers of C++", "proc/sys/fs/protected_regular", "2", "advice"),
            "sysctl -w fs.protected_regular=0",
        ),
    ],
)
def test_setting_that_is_missing(name: str, path: str, text: str, state: str, cure: str, root: Path) -> None:
    (root / path).write_text(f"{text}\n")
    finding = find(name, root, switch_user_active=True)
    assert (finding.state, finding.cure) == (state, cure)


def test_network_concerns_only_detectors_that_send_packets(root: Path) -> None:
    (root / "proc/sys/net/core/rmem_max").write_text("1\n")
    config = DetectorConfig.parse(make_config(detector_type="pco"))
    names = [finding.name for finding in check_server(config, Server(USER, root), None)]
    assert "network buffers" not in names


def test_shared_memory_counts_all_rings_and_those_of_the_detector_itself(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DetectorConfig.parse(make_config(**UDP_CONFIG, services=["std_data_compress_blosc2 -t 1"]))
    # The ring of images, the same compressed, and 1000 frames; each is rounded up to 2 MiB.
    frames = 1000 * 256 * 512 * 2
    images = config.n_slots * config.image_bytes
    assert 2 * images + frames <= rings_bytes(config) < 2 * images + frames + 4 * 2**21

    def statvfs(free: int) -> Callable[[object], os.statvfs_result]:
        return lambda _: os.statvfs_result((4096, 4096, 2**18, free // 4096, free // 4096, 0, 0, 0, 0, 255))

    needed = rings_bytes(config)
    keys = {"services": ["std_data_compress_blosc2 -t 1"], "detector_name": config.detector_name}
    monkeypatch.setattr(os, "statvfs", statvfs(needed - 10 * 2**20))
    finding = find("shared memory", root, **keys)
    assert finding.state == "missing"
    # What is too little is added to the size of 1 GiB.
    assert finding.cure == "mount -o remount,size=1034M /dev/shm"

    ring = root / "dev/shm" / f"{config.detector_name}-image"
    with ring.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 11 * 2**20)
    assert find("shared memory", root, **keys).state == "ok"


def test_a_simulated_detector_may_have_a_size_that_none_sends(root: Path) -> None:
    keys = {"detector_type": "gigafrost", "image_pixel_height": 128, "image_pixel_width": 128}
    names = [
        finding.name
        for finding in check_server(
            DetectorConfig.parse(make_config(**keys, allowed_roots=[])), Server(USER, root), None
        )
    ]
    assert "shared memory" in names
    assert "network buffers" not in names


def test_rings_larger_than_the_memory_need_another_configuration(root: Path) -> None:
    finding = find("shared memory", root, ram_buffer_gb=65_536)
    assert (finding.state, finding.cure) == ("missing", "")
    assert "a smaller ram_buffer_gb" in finding.expected


@pytest.mark.parametrize(
    ("files", "uid", "state"),
    [
        ({"etc/systemd/logind.conf": "[Login]\n#RemoveIPC=yes\n"}, USER, "missing"),
        ({"etc/systemd/logind.conf": "[Login]\n#RemoveIPC=yes\n"}, 0, "ok"),
        ({"usr/lib/systemd/logind.conf.d/90-a.conf": "[Login]\nRemoveIPC = Yes\n"}, USER, "missing"),
        (
            {
                "usr/lib/systemd/logind.conf.d/90-a.conf": "[Login]\nRemoveIPC=yes\n",
                "etc/systemd/logind.conf.d/95-b.conf": "[Login]\nRemoveIPC=no\n",
            },
            *(USER, "ok"),
        ),
        # A file in /etc replaces that of the same name in /usr/lib.
        (
            {
                "usr/lib/systemd/logind.conf.d/90-a.conf": "[Login]\nRemoveIPC=yes\n",
                "etc/systemd/logind.conf.d/90-a.conf": "[Login]\n",
            },
            *(USER, "ok"),
        ),
    ],
)
def test_remove_ipc(files: dict[str, str], uid: int, state: str, root: Path) -> None:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    assert find("RemoveIPC", root, uid=uid).state == state


def test_command_for_remove_ipc_mends_it(root: Path) -> None:
    (root / "etc/systemd/logind.conf").write_text("[Login]\n")
    cure = find("RemoveIPC", root).cure
    # Below the test's directory, and without systemd.
    mended = cure.replace("/etc/", f"{root}/etc/").replace("systemctl", "true")
    subprocess.run(["sh", "-c", mended], check=True, timeout=30)
    assert find("RemoveIPC", root).state == "ok"


def test_command_for_a_directory_makes_it(root: Path, tmp_path: Path) -> None:
    directory = tmp_path / "it's data"
    finding = find("directory", root, uid=os.geteuid(), allowed_roots=[str(directory)])
    assert (finding.state, finding.found) == ("missing", "does not exist")
    subprocess.run(["sh", "-c", finding.cure], check=True, timeout=30)
    assert find("directory", root, uid=os.geteuid(), allowed_roots=[str(directory)]).state == "ok"


@pytest.mark.parametrize(("mode", "state"), [(0o755, "missing"), (0o757, "ok"), (0o756, "missing")])
def test_directory_of_another_user(mode: int, state: str, root: Path, tmp_path: Path) -> None:
    directory = tmp_path / "data"
    directory.mkdir()
    directory.chmod(mode)
    finding = find("directory", root, allowed_roots=[str(directory)])
    assert finding.state == state
    if state == "missing":
        assert finding.cure == f"setfacl -m u:{USER}:rwx {shlex.quote(str(directory))}"


@pytest.mark.parametrize(("mode", "state"), [(0o700, "missing"), (0o711, "ok")])
def test_installation_in_a_directory_of_another_user(
    mode: int, state: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The parents of pytest's directories are closed to others.
    with tempfile.TemporaryDirectory(prefix="sd-", dir="/tmp") as directory:
        Path(directory).chmod(mode)
        monkeypatch.setattr(sys, "executable", f"{directory}/python")
        finding = find("installation", root)
        assert finding.state == state
        assert state == "ok" or finding.found.startswith(f"{directory} has owner")
        assert find("installation", root, uid=os.geteuid()).state == "ok"


def test_file_in_the_place_of_a_directory(root: Path, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    finding = find("directory", root, allowed_roots=[str(tmp_path / "data")])
    assert (finding.state, finding.found) == ("missing", "not a directory")


def test_command_for_open_files_raises_the_limit() -> None:
    script = "ulimit -n 4096; exec {} -c '{}'"
    code = "import resource; from stddaq.cli.server_checks import _descriptors as d; print(d().cure)"
    shown = subprocess.run(
        ["sh", "-c", script.format(sys.executable, code)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    cure = shown.stdout.strip()
    assert cure == 'prlimit --pid "$$" --nofile=65536:65536'
    raised = ["sh", "-c", f"ulimit -n 4096; {cure} && ulimit -Hn"]
    done = subprocess.run(raised, check=False, capture_output=True, text=True, timeout=60)
    # Only root may raise it, and not in every container.
    assert done.stdout.strip() == "65536" or "Operation not permitted" in done.stderr


def test_rate_measures_the_disk(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o777)
    monkeypatch.setattr(server_checks, "write_speed", lambda *_: 1e6)
    uid = os.geteuid()
    image_bytes = 256 * 512 * 2
    slow = find("disk", root, uid=uid, rate=2e6 / image_bytes, allowed_roots=[str(data)])
    assert (slow.state, slow.expected) == ("advice", "2 MB/s")
    fast = find("disk", root, uid=uid, rate=0.5e6 / image_bytes, allowed_roots=[str(data)])
    assert (fast.state, fast.found.split(",")[0]) == ("ok", "1 MB/s")


def test_measurement_ends_and_leaves_nothing(tmp_path: Path) -> None:
    times = iter([0.0, 0.1, 0.2, 5.0, 5.0])
    assert write_speed(tmp_path, 2**40, lambda: next(times)) == pytest.approx(2 * 4 * 2**20 / 5.0)
    assert write_speed(tmp_path, 1) > 0
    assert list(tmp_path.iterdir()) == []


def test_storage_without_files_without_a_name_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_file = os.open

    def refuse_nameless(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return open_file(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refuse_nameless)
    assert write_speed(tmp_path, 1) > 0
    assert list(tmp_path.iterdir()) == []


def test_command_shows_findings_and_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = [Finding("a", "ok", "1"), Finding("b", "advice", "2", "3", "mend it")]
    monkeypatch.setattr(server_checks, "check_server", lambda *_: findings)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(make_config()))
    assert stddaq(["doctor", str(path)]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert shown == [["ok", "a:", "1"], ["advice", "b:", "2"], ["expected:", "3"], ["$", "mend", "it"]]

    findings.append(Finding("c", "missing", "4", "5"))
    assert stddaq(["doctor", str(path), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed[2] == {
        **{"name": "c", "state": "missing", "found": "4", "expected": "5", "cure": ""},
        "is_for_all": True,
    }


def test_mend_runs_the_commands_that_are_right_on_every_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mended, other = tmp_path / "mended", tmp_path / "other"

    def check(*_: object) -> list[Finding]:
        is_mended = mended.exists()
        return [
            Finding(
                "a",
                "ok" if is_mended else "missing",
                "there" if is_mended else "not there",
                "",
                f"touch {mended}",
            ),
            Finding("b", "advice", "2", "3", f"touch {other}", is_for_all=False),
            Finding("c", "advice", "4", "5", "echo no such thing >&2; exit 3"),
        ]

    monkeypatch.setattr(server_checks, "check_server", check)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(make_config()))
    assert stddaq(["doctor", str(path), "--mend"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "mended   a: not there"
    assert lines[1] == "failed   c: echo no such thing >&2; exit 3: no such thing"
    assert lines[2] == "ok       a: there"
    assert not other.exists()
    # The second time there is nothing to mend.
    assert stddaq(["doctor", str(path), "--mend"]) == 0
    assert "mended" not in capsys.readouterr().out


def test_with_switch_user_active_the_services_run_as_root(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(make_config(allowed_roots=[str(tmp_path)], switch_user_active=True)))
    stddaq(["doctor", str(path), "--user", "daemon", "--json"])
    found = {finding["name"]: finding["found"] for finding in json.loads(capsys.readouterr().out)}
    assert found[f"directory {tmp_path}"] == "root may create files"


def test_this_machine_can_be_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(make_config(allowed_roots=[str(tmp_path)])))
    assert stddaq(["doctor", str(path), "--json"]) in (0, 1)
    states = {finding["name"]: finding["state"] for finding in json.loads(capsys.readouterr().out)}
    assert states[f"directory {tmp_path}"] == "ok"
    assert states["clock"] in ("ok", "advice")
