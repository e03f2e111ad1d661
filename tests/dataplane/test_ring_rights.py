"""Who may attach to a ring buffer, and who removes it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.processes.deployment import SHM_DIRECTORY
from support.processes.rings import MakeConfig, other_process, segments

from stddaq.dataplane.ring_buffer import RingBuffer
from stddaq.errors import GeometryError

PROTECTED_REGULAR = Path("/proc/sys/fs/protected_regular")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("segment", ["-image", "-image-cursor"])
def test_segment_of_another_user_is_refused_by_name_unless_it_has_the_configured_group(
    make: MakeConfig, monkeypatch: pytest.MonkeyPatch, segment: str
) -> None:
    config = make()
    path = SHM_DIRECTORY / f"{config.detector_name}{segment}"
    path.touch(0o777)
    os.chown(path, 12345, 23456)
    with pytest.raises(
        GeometryError, match=f"{path}: expected owner 0 or root, got owner 12345, group 23456"
    ):
        RingBuffer(config, "image")
    assert segments(config) == [segment]
    monkeypatch.setenv("STDDAQ_SHM_GROUP", "23456")
    with RingBuffer(config, "image"):
        assert (SHM_DIRECTORY / f"{config.detector_name}-image").stat().st_gid == 23456
    for path in SHM_DIRECTORY.glob(f"{config.detector_name}*"):
        path.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_without_rights_is_refused_with_owner_and_mode(make: MakeConfig) -> None:
    config = make()
    with RingBuffer(config, "image") as ring:
        (SHM_DIRECTORY / f"{ring.name}-cursor").chmod(0o600)
        os.seteuid(12345)
        try:
            with pytest.raises(GeometryError) as refused:
                RingBuffer(config, "image")
        finally:
            os.seteuid(0)
        assert str(refused.value).startswith(
            f"shared memory /dev/shm/{ring.name}-cursor: expected that user 12345 may read and write it, "
            "got owner 0, group 0, mode 600"
        )
        assert ring.is_current()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_leaves_the_segments_of_another_user_to_their_owner(
    make: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STDDAQ_SHM_MODE", "777")
    config = make()
    ring = RingBuffer(config, "image")
    os.seteuid(12345)
    try:
        with RingBuffer(config, "image"):
            ring.close()
    finally:
        os.seteuid(0)
    assert segments(config) == ["-image", "-image-cursor"]
    with RingBuffer(config, "image"):
        pass
    assert segments(config) == []


def may_set_protected_regular() -> bool:
    return os.geteuid() == 0 and os.access(PROTECTED_REGULAR, os.W_OK)


@pytest.mark.skipif(not may_set_protected_regular(), reason="only root can set fs.protected_regular")
@pytest.mark.parametrize("value", ["1", "2"])
def test_root_attaches_to_the_ring_of_a_user_where_the_kernel_protects_files_in_shared_directories(
    make: MakeConfig, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("STDDAQ_SHM_GROUP", "23456")
    config = make()
    with other_process("hold", config, "image"):
        for name in segments(config):
            os.chown(SHM_DIRECTORY / f"{config.detector_name}{name}", 12345, 23456)
        before = PROTECTED_REGULAR.read_text()
        PROTECTED_REGULAR.write_text(value)
        try:
            with pytest.raises(PermissionError):
                os.open(SHM_DIRECTORY / f"{config.detector_name}-image", os.O_RDWR | os.O_CREAT)
            with RingBuffer(config, "image"):
                pass
        finally:
            PROTECTED_REGULAR.write_text(before)


def test_mode_is_configurable_and_the_cursor_is_closed_to_those_who_may_not_write(
    make: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make()

    def modes() -> list[int]:
        with RingBuffer(config, "image"):
            return [
                (SHM_DIRECTORY / f"{config.detector_name}{name}").stat().st_mode & 0o777
                for name in segments(config)
            ]

    before = os.umask(0o022)
    try:
        assert modes() == [0o755, 0o700]
        monkeypatch.setenv("STDDAQ_SHM_MODE", "664")
        assert modes() == [0o664, 0o660]
    finally:
        os.umask(before)
    for wrong in ("4", "888", "rw"):
        monkeypatch.setenv("STDDAQ_SHM_MODE", wrong)
        with pytest.raises(GeometryError, match="expected an octal mode from 600 to 777"):
            RingBuffer(config, "image")
    monkeypatch.delenv("STDDAQ_SHM_MODE")
    monkeypatch.setenv("STDDAQ_SHM_GROUP", "no-such-group")
    with pytest.raises(GeometryError, match="STDDAQ_SHM_GROUP: expected a group of this system"):
        RingBuffer(config, "image")
    assert segments(config) == []
