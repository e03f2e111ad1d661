"""`ImageBuffer`: the stored images as numpy arrays."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from support.peers.cpp_buffer import CppBuffer
from support.peers.redis_server import RedisServer
from support.processes.deployment import free_port
from support.processes.recording import Image, images_of

from stddaq.client import DamagedImageError, ImageBuffer, ImageBufferError, NotStoredError
from stddaq.client.buffer_files import camera_directory
from stddaq.client.buffer_index import BufferIndex
from stddaq.client.image_buffer import MAX_ATTEMPTS, DamagedRecordError, ImageBufferUnreachableError
from stddaq.wire.image_buffer import BufferedMetadata, image_key
from stddaq.wire.std_daq import image_metadata_pb2 as pb


def images_in(directory: Path, redis: RedisServer) -> list[Image]:
    images = images_of([5, 6, 1000, 2**32])
    CppBuffer(directory / "CAM1", redis.client, "CAM1").store(*images)
    return images


@pytest.mark.external
def test_newest_by_id_range_and_iteration(directory: Path, redis: RedisServer) -> None:
    images = images_in(directory, redis)
    for root in (directory, directory / "CAM1"):
        with ImageBuffer(root, redis.address, "CAM1") as stored:
            assert stored.newest() == 2**32
            assert stored.ids(6, 1000) == [6, 1000]
            assert stored[6].image_id == 6
            for found, image in zip(stored, images, strict=True):
                np.testing.assert_array_equal(found.pixels, image.pixels)
                assert found.metadata.image_id == image.image_id
            with pytest.raises(NotStoredError, match="image 7: expected a stored image, got none"):
                stored[7]


@pytest.mark.external
def test_expired_and_damaged_images(directory: Path, redis: RedisServer) -> None:
    images_in(directory, redis)
    redis.client.delete(image_key("CAM1", 2**32))
    redis.client.set(image_key("CAM1", 5), redis.client.get(image_key("CAM1", 6)))
    (directory / "CAM1" / "0000000" / "1000.dat").write_bytes(b"foreign")
    with ImageBuffer(directory, redis.address, "CAM1") as stored:
        assert stored.newest() == 1000
        assert stored.ids() == [5, 6, 1000]
        with pytest.raises(DamagedRecordError, match="image 5: expected its own record"):
            stored[5]
        with pytest.raises(DamagedImageError, match="got 7 bytes in all"):
            stored[1000]
    with ImageBuffer(directory, redis.address, "CAM2") as empty, pytest.raises(NotStoredError, match="CAM2"):
        empty.newest()


@pytest.mark.external
def test_images_that_are_removed_or_replaced_while_they_are_read(directory: Path, redis: RedisServer) -> None:
    images_in(directory, redis)
    file, name = directory / "CAM1" / "0000000" / "1000.dat", image_key("CAM1", 1000)
    with ImageBuffer(directory, redis.address, "CAM1") as stored:
        iteration = stored.iterate()
        assert next(iteration).image_id == 5
        # As retention does it; the record has been read with those before.
        redis.client.delete(name)
        file.unlink()
        assert [image.image_id for image in iteration] == [6, 2**32]
        CppBuffer(directory / "CAM1", redis.client, "CAM1").store(*images_of([1000]))
        assert [image.image_id for image in stored.iterate(first=7)] == [1000, 2**32]
        file.unlink()
        with pytest.raises(DamagedImageError, match="No such file"):
            list(stored.iterate(first=7))


def test_an_image_that_is_replaced_each_time_it_is_read_is_an_error(
    monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    """As two writers do that store images of the same ids."""
    offsets = itertools.count()

    def replaced(_: BufferIndex, image_id: int) -> BufferedMetadata:
        record = BufferedMetadata(offset=next(offsets), checksum=1)
        record.metadata.image_id, record.metadata.size = image_id, 100
        record.metadata.height, record.metadata.width, record.metadata.dtype = 32, 48, pb.uint16
        record.metadata.compression = pb.blosc2
        return record

    monkeypatch.setattr(BufferIndex, "record", replaced)
    with (
        ImageBuffer(directory, f"tcp://127.0.0.1:{free_port()}", "CAM1") as stored,
        pytest.raises(DamagedImageError, match="image 5: expected an image that is not replaced while it is"),
    ):
        stored[5]
    assert next(offsets) == MAX_ATTEMPTS + 1


@pytest.mark.external
def test_members_of_another_program_do_not_stop_a_search(directory: Path, redis: RedisServer) -> None:
    images_in(directory, redis)
    redis.client.zadd("camera:CAM1:ids", {"3": 2.0**40, "x": 6, "-1": 7, "9" * 5000: 8})
    with ImageBuffer(directory, redis.address, "CAM1") as stored:
        assert stored.ids() == [5, 6, 1000, 2**32]
        assert stored.ids(6) == [6, 1000, 2**32]
        assert stored.newest() == 2**32


@pytest.mark.external
def test_a_database_that_refuses_writes_names_its_reason_and_the_cure(
    redis: RedisServer,
) -> None:
    def refusal() -> str:
        pipeline = index.redis.pipeline(transaction=False)
        pipeline.set("camera:CAM1:1", b"\x08\xff of pipeline (caused) error:")
        with pytest.raises(ImageBufferUnreachableError) as refused, index.reachable():
            pipeline.execute()
        return str(refused.value).removeprefix(f"{redis.address}: expected a Redis database that accepts ")

    with BufferIndex(redis.address, "CAM1") as index:
        redis.client.config_set("maxmemory", 1)
        assert refusal() == (
            "writes, got command not allowed when used memory > 'maxmemory'; "
            "raise its `maxmemory`, or keep images for fewer hours: `--timeout`"
        )
        redis.client.config_set("maxmemory", 0)
        redis.client.replicaof("127.0.0.1", free_port())
        assert refusal() == (
            "writes, got You can't write against a read only replica; "
            "connect to its primary, or make it one: `redis-cli replicaof no one`"
        )


def test_a_database_that_does_not_answer(directory: Path) -> None:
    with (
        ImageBuffer(directory, f"tcp://127.0.0.1:{free_port()}", "CAM1") as stored,
        pytest.raises(
            ImageBufferUnreachableError,
            match=r"expected a Redis database that answers, got .*; is redis-server running",
        ),
    ):
        stored.newest()
    with pytest.raises(ImageBufferError, match="expected tcp://HOST:PORT"):
        ImageBuffer(directory, "127.0.0.1:6379", "CAM1")


def test_either_directory_is_understood(tmp_path: Path) -> None:
    assert camera_directory(tmp_path, "CAM1") == tmp_path / "CAM1"
    (tmp_path / "CAM1").mkdir()
    assert camera_directory(tmp_path, "CAM1") == tmp_path / "CAM1"
    assert camera_directory(tmp_path / "CAM1", "CAM1") == tmp_path / "CAM1"
    moved = tmp_path / "archive"
    (moved / "0000000").mkdir(parents=True)
    assert camera_directory(moved, "CAM1") == moved
