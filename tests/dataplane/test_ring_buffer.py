"""The ring buffer: the layout shared with C++ services, its creation and removal, and verdicts on images."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.processes import ring_processes
from support.processes.deployment import make_config, wait_until

from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.dataplane.ring_buffer import RingBuffer, RingGeometry
from stddaq.errors import EndpointError, GeometryError

SHM = Path("/dev/shm")
MIB = 2**20
CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc")
PROTECTED_REGULAR = Path("/proc/sys/fs/protected_regular")
MakeConfig = Callable[..., DetectorConfig]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeConfig]:
    """Return a function that makes configurations of one detector, whose segments are removed at the end."""
    name = make_config()["detector_name"]

    def make(**overrides: Any) -> DetectorConfig:
        return DetectorConfig.parse(make_config(detector_name=name, **overrides))

    yield make
    left = sorted(SHM.glob(f"{name}*"))
    for path in left:
        path.unlink()
    assert left == []


class RingProcess:
    """A process of `support.processes.ring_processes`, which exits at the end of the block."""

    def __init__(
        self, role: str, config: DetectorConfig, *arguments: object, within: Sequence[str] = ()
    ) -> None:
        """`within`: a command that runs the process."""
        configuration = () if role == "map" else (config.model_dump_json(),)
        command = (ring_processes.__file__, role, *configuration, *map(str, arguments))
        self._process = subprocess.Popen(
            (*within, sys.executable, *command), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def wait_until_ready(self) -> RingProcess:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"
        return self

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)

    def __enter__(self) -> RingProcess:
        return self

    def __exit__(self, *_: object) -> None:
        # Close the pipes, which makes the process exit, and wait for it.
        self._process.__exit__(None, None, None)


def other_process(role: str, config: DetectorConfig, *arguments: object) -> RingProcess:
    return RingProcess(role, config, *arguments).wait_until_ready()


def segments(config: DetectorConfig) -> list[str]:
    return sorted(
        path.name.removeprefix(config.detector_name) for path in SHM.glob(f"{config.detector_name}*")
    )


def put(ring: RingBuffer, image_id: int) -> int:
    """Write an image without pixels. Returns its sequence number."""
    ring.begin(image_id)
    return ring.commit(image_id)


def make_cpp_ring(config: DetectorConfig) -> Path:
    """Make a ring as a C++ source does: no cursor, no lock."""
    path = SHM / f"{config.detector_name}-image"
    path.touch(0o777)
    os.truncate(path, RingGeometry.of(config).segment_bytes)
    return path


# Layout


@pytest.mark.parametrize(
    ("suffix", "name"),
    [
        ("image", "-image"),
        ("filter", "-image"),
        ("h5bitshuffle-lz4", "-h5bitshuffle-lz4"),
        ("blosc2", "-blosc2"),
    ],
)
def test_segment_is_named_after_detector_and_suffix(make: MakeConfig, suffix: str, name: str) -> None:
    config = make()
    with RingBuffer(config, suffix):
        assert segments(config) == [name, f"{name}-cursor"]


@pytest.mark.parametrize(
    ("height", "width", "ram_buffer_gb", "n_slots", "size"),
    [
        (1, 1, None, 1000, 2 * MIB),
        (32, 48, None, 1000, 4 * MIB),  # 3 072 000 bytes
        (1024, 1, None, 1000, 2 * MIB),  # 2 048 000 bytes, just below 2 MiB
        (1049, 1, None, 1000, 4 * MIB),  # 2 098 000 bytes, just above
        (1024, 1024, None, 1000, 2000 * MIB),  # a multiple already
        (1000, 1000, 2, 1073, 2048 * MIB),
        (2016, 2016, 16, 2113, 16380 * MIB),
    ],
)
def test_segment_has_the_specified_size(
    make: MakeConfig, height: int, width: int, ram_buffer_gb: int | None, n_slots: int, size: int
) -> None:
    config = make(image_pixel_height=height, image_pixel_width=width, ram_buffer_gb=ram_buffer_gb)
    geometry = RingGeometry.of(config)
    assert geometry.n_slots == n_slots
    assert geometry.segment_bytes == size
    if size <= 4 * MIB:  # Its memory is reserved at once.
        with RingBuffer(config, "image") as ring:
            assert (SHM / ring.name).stat().st_size == size


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_segment_has_mode_0777_before_umask(make: MakeConfig, umask: int) -> None:
    before = os.umask(umask)
    try:
        with RingBuffer(make(), "image") as ring:
            assert (SHM / ring.name).stat().st_mode & 0o777 == 0o777 & ~umask
    finally:
        os.umask(before)


@pytest.mark.parametrize("image_id", [0, 1, 999, 1000, 12345, 2**24 - 1, 2**64 - 1])
def test_image_lies_in_slot_id_modulo_number_of_slots_without_a_header(
    make: MakeConfig, image_id: int
) -> None:
    config = make()
    with RingBuffer(config, "image") as ring:
        ring.image(image_id)[:] = 0xBEEF
        start = image_id % 1000 * config.image_bytes
        assert ring.offset(image_id) == start
        with (SHM / ring.name).open("rb") as segment:
            segment.seek(start)
            assert segment.read(config.image_bytes) == b"\xef\xbe" * (32 * 48)
            assert not segment.read(1).strip(b"\0")


def test_pixels_are_little_endian_and_row_major(make: MakeConfig) -> None:
    config = make()
    with RingBuffer(config, "image") as ring:
        image = np.arange(32 * 48, dtype="<u2").reshape(32, 48)
        ring.image(5)[:] = image
        assert bytes(ring.slot(5)) == image.tobytes()


# Creation and removal


def test_the_first_service_creates_the_ring_and_the_last_one_removes_it(make: MakeConfig) -> None:
    config = make()
    first = RingBuffer(config, "image")
    with other_process("hold", config, "image"):
        first.image(7)[:] = 7
        first.close()
        assert segments(config) == ["-image", "-image-cursor"]
        with RingBuffer(config, "image") as third:
            assert (third.image(7) == 7).all()
        assert segments(config) == ["-image", "-image-cursor"]
    assert segments(config) == []


def test_ring_is_not_removed_while_another_process_maps_it(make: MakeConfig) -> None:
    config = make()
    ring = RingBuffer(config, "image")
    with other_process("map", config, SHM / ring.name):
        ring.close()
        assert "-image" in segments(config)
    # The next stddaq service to close the ring finds no other user.
    RingBuffer(config, "image").close()
    assert "-image-cursor" not in segments(config)
    (SHM / ring.name).unlink(missing_ok=True)


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="only root can make PID namespaces"
)
def test_ring_is_not_removed_while_a_process_outside_the_container_maps_it(make: MakeConfig) -> None:
    config = make()
    path = SHM / f"{config.detector_name}-image"
    with RingProcess("hold", config, "image", within=CONTAINER) as service:
        service.wait_until_ready()
        with other_process("map", config, path):
            service.__exit__()
            assert segments(config) == ["-image"]
    RingBuffer(config, "image").close()
    assert segments(config) == []


def test_ring_of_a_cpp_service_is_never_removed(make: MakeConfig) -> None:
    config = make()
    path = make_cpp_ring(config)
    with RingBuffer(config, "image"):
        pass
    assert segments(config) == ["-image"]
    path.unlink()


def test_slot_of_a_cpp_ring_is_written_once_its_source_has_written_it(make: MakeConfig) -> None:
    config = make(image_pixel_width=2048)  # An image fills whole pages.
    path = make_cpp_ring(config)
    with RingBuffer(config, "image") as ring:
        assert not ring.is_written(3)
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            memory[ring.offset(3)] = 0
        assert ring.is_written(3)
        assert not ring.is_written(4)
        assert ring.is_written(1003)
    path.unlink()


def test_memory_of_ring_and_cursor_is_reserved_when_they_are_made(make: MakeConfig) -> None:
    with RingBuffer(make(), "image") as ring:
        for path in (SHM / ring.name, SHM / f"{ring.name}-cursor"):
            assert path.stat().st_blocks * 512 >= path.stat().st_size


def test_ring_of_a_cpp_service_gets_the_memory_that_it_lacks(make: MakeConfig) -> None:
    config = make()
    path = make_cpp_ring(config)
    with RingBuffer(config, "image"):
        assert path.stat().st_blocks * 512 >= path.stat().st_size
    path.unlink()


def test_smaller_ring_of_a_cpp_service_is_grown_and_keeps_its_pixels(make: MakeConfig) -> None:
    config = make()
    path = SHM / f"{config.detector_name}-image"
    path.write_bytes(b"\7" * (10 * config.image_bytes))
    with other_process("map", config, path), RingBuffer(config, "image") as ring:
        assert path.stat().st_size == 4 * MIB
        assert bytes(ring.slot(9)) == b"\7" * config.image_bytes
        assert not any(ring.slot(10))
    path.unlink()


def test_segment_that_does_not_fit_is_refused_with_both_sizes_and_leaves_nothing(make: MakeConfig) -> None:
    config = make(ram_buffer_gb=2**16)
    expected = RingGeometry.of(config).segment_bytes
    with pytest.raises(
        GeometryError, match=rf"room for {expected} bytes .*got [0-9]+ bytes free in /dev/shm"
    ):
        RingBuffer(config, "image")
    assert segments(config) == []


def test_a_view_of_a_slot_survives_the_end_of_the_ring(make: MakeConfig) -> None:
    with RingBuffer(make(), "image") as ring:
        ring.image(1)[:] = 11
        image = ring.image(1)
    assert (image == 11).all()


def test_services_notice_that_their_ring_was_removed(make: MakeConfig) -> None:
    config = make()
    with RingBuffer(config, "image") as ring:
        assert ring.is_current()
        (SHM / ring.name).unlink()
        assert not ring.is_current()
        with RingBuffer(config, "blosc2") as other:
            assert other.is_current()


@pytest.mark.parametrize("removed", ["-image", "-image-cursor"])
def test_ring_that_was_made_again_does_not_hold_the_images_of_the_removed_one(
    make: MakeConfig, removed: str
) -> None:
    config = make()
    with RingBuffer(config, "image", as_source=True) as source:
        (SHM / f"{config.detector_name}{removed}").unlink()
        with RingBuffer(config, "image") as reader:
            sequence = put(source, 3)
            assert source.holds(3, sequence)
            assert not reader.holds(3, sequence)
    assert segments(config) == []


def test_image_that_was_begun_in_a_removed_ring_is_not_held_by_the_new_one(make: MakeConfig) -> None:
    with ImagePublisher(make()) as publisher, RingBuffer(make(), "image") as reader:
        publisher.begin(4)
        (SHM / reader.name).unlink()
        wait_until(lambda: publisher.count_subscribers() == 0 and (SHM / reader.name).exists())
        sequence = publisher.commit(4)
        with RingBuffer(make(), "image") as new:
            assert not new.holds(4, sequence)
            publisher.begin(5)
            assert new.holds(5, publisher.commit(5))


# One source


def test_second_source_is_refused_with_the_process_that_is_the_first(make: MakeConfig) -> None:
    config = make()
    with RingBuffer(config, "image", as_source=True) as first:
        sequence = put(first, 1)
        expected = f"expected no other source, got process {os.getpid()} of user {os.geteuid()}"
        with pytest.raises(EndpointError, match=expected):
            RingBuffer(config, "image", as_source=True)
        assert first.holds(1, sequence)
    with RingBuffer(config, "image", as_source=True):
        pass


def test_source_that_was_killed_has_no_place_any_more(make: MakeConfig) -> None:
    config = make()
    with other_process("lap", config, "image", "/dev/null") as source:
        with pytest.raises(EndpointError, match=r"ring_processes\.py"):
            RingBuffer(config, "image", as_source=True)
        source.kill()
    with RingBuffer(config, "image", as_source=True):
        pass


# Rights


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("segment", ["-image", "-image-cursor"])
def test_segment_of_another_user_is_refused_by_name_unless_it_has_the_configured_group(
    make: MakeConfig, monkeypatch: pytest.MonkeyPatch, segment: str
) -> None:
    config = make()
    path = SHM / f"{config.detector_name}{segment}"
    path.touch(0o777)
    os.chown(path, 12345, 23456)
    with pytest.raises(
        GeometryError, match=f"{path}: expected owner 0 or root, got owner 12345, group 23456"
    ):
        RingBuffer(config, "image")
    assert segments(config) == [segment]
    monkeypatch.setenv("STDDAQ_SHM_GROUP", "23456")
    with RingBuffer(config, "image"):
        assert (SHM / f"{config.detector_name}-image").stat().st_gid == 23456
    for path in SHM.glob(f"{config.detector_name}*"):
        path.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_without_rights_is_refused_with_owner_and_mode(make: MakeConfig) -> None:
    config = make()
    with RingBuffer(config, "image") as ring:
        (SHM / f"{ring.name}-cursor").chmod(0o600)
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
            os.chown(SHM / f"{config.detector_name}{name}", 12345, 23456)
        before = PROTECTED_REGULAR.read_text()
        PROTECTED_REGULAR.write_text(value)
        try:
            with pytest.raises(PermissionError):
                os.open(SHM / f"{config.detector_name}-image", os.O_RDWR | os.O_CREAT)
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
                (SHM / f"{config.detector_name}{name}").stat().st_mode & 0o777 for name in segments(config)
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


# Geometry


@pytest.mark.parametrize(
    "overrides",
    [
        {"image_pixel_height": 64},
        {"image_pixel_height": 48, "image_pixel_width": 32},  # as many bytes
        {"image_pixel_height": 33},  # the same segment size after rounding
        {"ram_buffer_gb": 1},
        {"detector_type": "eiger", "bit_depth": 8, "image_pixel_width": 96},  # as many bytes
        {"detector_type": "jungfrau-converted"},
    ],
    ids=str,
)
def test_second_geometry_is_refused_while_the_first_is_in_use_and_changes_nothing(
    make: MakeConfig, overrides: dict[str, Any]
) -> None:
    config, other = make(), make(**overrides)
    with RingBuffer(config, "image") as ring, other_process("hold", config, "image"):
        size = (SHM / ring.name).stat().st_size
        sequence = put(ring, 1)
        with pytest.raises(GeometryError) as refused:
            RingBuffer(other, "image")
        assert str(RingGeometry.of(other)) in str(refused.value)
        assert str(size) in str(refused.value)
        assert len(str(refused.value).splitlines()) == 1
        assert (SHM / ring.name).stat().st_size == size
        assert ring.holds(1, sequence)
        assert ring.is_current()


def test_larger_ring_of_a_cpp_service_in_use_is_refused_by_its_size(make: MakeConfig) -> None:
    config = make(image_pixel_height=640)
    path = make_cpp_ring(config)
    size = path.stat().st_size
    with other_process("map", config, path), pytest.raises(GeometryError, match=f"got {size} bytes"):
        RingBuffer(make(), "image")
    assert path.stat().st_size == size
    assert segments(config) == ["-image"]
    path.unlink()


@pytest.mark.parametrize("overrides", [{"image_pixel_height": 640}, {"image_pixel_height": 33}], ids=str)
def test_ring_left_by_a_killed_service_with_another_geometry_is_replaced(
    make: MakeConfig, overrides: dict[str, Any]
) -> None:
    config, other = make(), make(**overrides)
    with other_process("hold", config, "image") as service:
        service.kill()
    assert segments(config) == ["-image", "-image-cursor"]

    with RingBuffer(other, "image") as ring:
        assert (SHM / ring.name).stat().st_size == RingGeometry.of(other).segment_bytes
        sequence = put(ring, 4)
        assert ring.holds(4, sequence)


def test_ring_left_by_a_killed_service_is_used_again(make: MakeConfig) -> None:
    config = make()
    with other_process("hold", config, "image") as service:
        service.kill()
    with RingBuffer(config, "image") as ring:
        assert ring.is_current()
    assert segments(config) == []


def test_a_segment_that_cannot_be_opened_is_an_error_with_the_reason(make: MakeConfig) -> None:
    path = SHM / f"{make().detector_name}-image"
    path.symlink_to("/nowhere")
    with pytest.raises(GeometryError, match=r"-image: expected a regular file"):
        RingBuffer(make(), "image")
    path.unlink()


def test_many_services_that_start_at_once_share_one_ring(make: MakeConfig) -> None:
    config = make()
    with ExitStack() as started:
        services = [started.enter_context(RingProcess("hold", config, "image")) for _ in range(4)]
        for service in services:
            service.wait_until_ready()
        with RingBuffer(config, "image") as ring:
            assert ring.is_current()
    assert segments(config) == []


# Verdicts


def test_image_is_not_trusted_while_it_is_being_written(make: MakeConfig) -> None:
    with RingBuffer(make(), "image") as ring:
        sequence = put(ring, 5)
        assert ring.holds(5, sequence)
        ring.begin(1005)
        assert not ring.holds(5, sequence)
        later = ring.commit(1005)
        assert not ring.holds(5, sequence)
        assert ring.holds(1005, later)


def test_the_next_source_reuses_no_sequence_number(make: MakeConfig) -> None:
    config = make()
    with RingBuffer(config, "image") as first:
        sequences = [put(first, i) for i in range(10)]
    with RingBuffer(config, "image") as second:
        assert not any(second.holds(i, sequence) for i, sequence in enumerate(sequences))
        assert put(second, 0) > sequences[-1]


def test_sequence_continues_when_a_source_is_restarted_on_a_ring_in_use(make: MakeConfig) -> None:
    config = make()
    with RingBuffer(config, "image") as reader:
        with RingBuffer(config, "image") as source:
            sequence = put(source, 8)
        assert reader.holds(8, sequence)
        with RingBuffer(config, "image") as restarted:
            assert put(restarted, 8) == sequence + 1
        assert not reader.holds(8, sequence)


@pytest.fixture(scope="module")
def shared_ring() -> Iterator[RingBuffer]:
    with RingBuffer(DetectorConfig.parse(make_config(image_pixel_height=1)), "image") as ring:
        yield ring


# Few slots, so that images share them; ids have gaps and restarts.
image_ids = st.builds(lambda lap, slot: lap * 1000 + slot, st.integers(0, 5), st.integers(0, 3))


@settings(max_examples=200)
@given(st.lists(st.tuples(image_ids, st.booleans()), max_size=40))
def test_ring_holds_exactly_the_last_image_committed_to_each_slot(
    shared_ring: RingBuffer, steps: list[tuple[int, bool]]
) -> None:
    """Steps are (image id, whether it is committed). The reference is a dictionary by slot."""
    announced: list[tuple[int, int]] = []
    in_slot: dict[int, int] = {}
    for image_id, is_completed in steps:
        shared_ring.begin(image_id)
        in_slot[image_id % 1000] = 0
        if is_completed:
            sequence = shared_ring.commit(image_id)
            announced.append((image_id, sequence))
            in_slot[image_id % 1000] = sequence
        for earlier_id, sequence in announced:
            assert shared_ring.holds(earlier_id, sequence) == (in_slot[earlier_id % 1000] == sequence)
    assert len({sequence for _, sequence in announced}) == len(announced)


def test_reader_that_is_lapped_never_accepts_a_torn_image(make: MakeConfig, tmp_path: Path) -> None:
    """Another process fills one slot with k, k + 1, ... without a pause, while the reader copies it."""
    config = make(image_pixel_height=512, image_pixel_width=512)
    announcements = tmp_path / "announcements"
    accepted = lapped = 0
    with other_process("lap", config, "image", announcements), RingBuffer(config, "image") as ring:
        n_slots, deadline = ring.geometry.n_slots, time.monotonic() + 30
        while accepted < 200 or lapped < 20:
            assert time.monotonic() < deadline, f"{accepted} accepted, {lapped} found lapped"
            k, sequence = np.fromfile(announcements, "<u8", 2).tolist()
            image_id = k * n_slots
            if not ring.holds(image_id, sequence):
                lapped += 1
                continue
            copy = ring.image(image_id).copy()
            if ring.holds(image_id, sequence):
                accepted += 1
                assert (copy == k % 65536).all(), (
                    f"image {image_id} was accepted with pixels of another image"
                )
            else:
                lapped += 1
