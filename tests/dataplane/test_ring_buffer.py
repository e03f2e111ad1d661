"""The ring buffer: the layout shared with C++ services, its creation and removal, its one source."""

from __future__ import annotations

import mmap
import os
import shutil
import threading
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from support.processes.deployment import SHM_DIRECTORY, wait_until
from support.processes.rings import MakeConfig, RingProcess, make_cpp_ring, other_process, put, segments

from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.dataplane.ring_buffer import RingBuffer
from stddaq.dataplane.ring_layout import RingGeometry
from stddaq.errors import EndpointError, GeometryError
from stddaq.text import bytes_text

MIB = 2**20
CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc")


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
            assert (SHM_DIRECTORY / ring.name).stat().st_size == size


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_segment_has_mode_0777_before_umask(make: MakeConfig, umask: int) -> None:
    before = os.umask(umask)
    try:
        with RingBuffer(make(), "image") as ring:
            assert (SHM_DIRECTORY / ring.name).stat().st_mode & 0o777 == 0o777 & ~umask
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
        assert ring.offsets([image_id]) == [start]
        with (SHM_DIRECTORY / ring.name).open("rb") as segment:
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


def test_services_that_end_at_once_leave_no_ring_when_one_is_slow(
    make: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make()
    slow, other = RingBuffer(config, "image"), RingBuffer(config, "image")
    is_closing, other_waits, may_close = threading.Event(), threading.Event(), threading.Event()
    close, lock = slow._ring.close, other._cursor.lock

    def close_slowly() -> None:
        is_closing.set()
        may_close.wait(20)
        close()

    def lock_and_note(*args: Any, **kwargs: Any) -> bool:
        if not (is_locked := lock(*args, **kwargs)):
            other_waits.set()
        return is_locked

    monkeypatch.setattr(slow._ring, "close", close_slowly)
    monkeypatch.setattr(other._cursor, "lock", lock_and_note)
    services = [threading.Thread(target=ring.close) for ring in (slow, other)]
    services[0].start()
    assert is_closing.wait(20)
    services[1].start()
    # Unless it waits, it finds the ring in use and leaves it behind.
    wait_until(lambda: other_waits.is_set() or not services[1].is_alive(), 20, "the other service")
    may_close.set()
    for service in services:
        service.join(20)
    assert segments(config) == []


def test_ring_is_not_removed_while_another_process_maps_it(make: MakeConfig) -> None:
    config = make()
    ring = RingBuffer(config, "image")
    with other_process("map", config, SHM_DIRECTORY / ring.name):
        ring.close()
        assert "-image" in segments(config)
    # The next stddaq service to close the ring finds no other user.
    RingBuffer(config, "image").close()
    assert "-image-cursor" not in segments(config)
    (SHM_DIRECTORY / ring.name).unlink(missing_ok=True)


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="only root can make PID namespaces"
)
def test_ring_is_not_removed_while_a_process_outside_the_container_maps_it(make: MakeConfig) -> None:
    config = make()
    path = SHM_DIRECTORY / f"{config.detector_name}-image"
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
            memory[ring.offsets([3])[0]] = 0
        assert ring.is_written(3)
        assert not ring.is_written(4)
        assert ring.is_written(1003)
    path.unlink()


def test_memory_of_ring_and_cursor_is_reserved_when_they_are_made(make: MakeConfig) -> None:
    with RingBuffer(make(), "image") as ring:
        for path in (SHM_DIRECTORY / ring.name, SHM_DIRECTORY / f"{ring.name}-cursor"):
            assert path.stat().st_blocks * 512 >= path.stat().st_size


def test_ring_of_a_cpp_service_gets_the_memory_that_it_lacks(make: MakeConfig) -> None:
    config = make()
    path = make_cpp_ring(config)
    with RingBuffer(config, "image"):
        assert path.stat().st_blocks * 512 >= path.stat().st_size
    path.unlink()


def test_smaller_ring_of_a_cpp_service_is_grown_and_keeps_its_pixels(make: MakeConfig) -> None:
    config = make()
    path = SHM_DIRECTORY / f"{config.detector_name}-image"
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
        GeometryError, match=rf"room for {bytes_text(expected)} .*got [0-9.]+ [kMGT]?B free in /dev/shm"
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
        (SHM_DIRECTORY / ring.name).unlink()
        assert not ring.is_current()
        with RingBuffer(config, "blosc2") as other:
            assert other.is_current()


@pytest.mark.parametrize("removed", ["-image", "-image-cursor"])
def test_ring_that_was_made_again_does_not_hold_the_images_of_the_removed_one(
    make: MakeConfig, removed: str
) -> None:
    config = make()
    with RingBuffer(config, "image", as_source=True) as source:
        (SHM_DIRECTORY / f"{config.detector_name}{removed}").unlink()
        with RingBuffer(config, "image") as reader:
            sequence = put(source, 3)
            assert source.holds(3, sequence)
            assert not reader.holds(3, sequence)
    assert segments(config) == []


def test_image_that_was_begun_in_a_removed_ring_is_not_held_by_the_new_one(make: MakeConfig) -> None:
    with ImagePublisher(make()) as publisher, RingBuffer(make(), "image") as reader:
        publisher.begin(4)
        (SHM_DIRECTORY / reader.name).unlink()
        wait_until(lambda: publisher.count_subscribers() == 0 and (SHM_DIRECTORY / reader.name).exists())
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
        size = (SHM_DIRECTORY / ring.name).stat().st_size
        sequence = put(ring, 1)
        with pytest.raises(GeometryError) as refused:
            RingBuffer(other, "image")
        assert str(RingGeometry.of(other)) in str(refused.value)
        assert str(size) in str(refused.value)
        assert len(str(refused.value).splitlines()) == 1
        assert (SHM_DIRECTORY / ring.name).stat().st_size == size
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
        assert (SHM_DIRECTORY / ring.name).stat().st_size == RingGeometry.of(other).segment_bytes
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
    path = SHM_DIRECTORY / f"{make().detector_name}-image"
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


def test_of_several_images_the_ring_holds_those_that_were_not_overwritten(make: MakeConfig) -> None:
    config = make()
    with RingBuffer(config, "image") as ring:
        ids = [1, 2, 3, config.n_slots + 2]
        sequences = [put(ring, image_id) for image_id in ids]
        ring.begin(3)
        assert ring.held([*ids, 4], [*sequences, sequences[-1] + 1]) == [True, False, False, True, False]
        assert ring.held([], []) == []
