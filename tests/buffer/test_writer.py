"""`std_buffer_writer`: files and keys, restarts, and what cannot be stored."""

from __future__ import annotations

import resource
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import closing

import numpy as np
import pytest
from support.peers.cpp_buffer import CppBuffer
from support.processes import threads_ahead
from support.processes.deployment import Deployment, free_port, wait_until
from support.processes.image_buffers import ImageBufferRig
from support.processes.recording import DAMAGED, Image, image_of, images_of
from support.processes.sources import refusal

from stddaq.buffer import writer as writer_service
from stddaq.buffer.stored_files import StoredFiles
from stddaq.client.image_buffer import ImageBuffer
from stddaq.wire.image_buffer import image_key

FAULT = pytest.mark.fault
external = pytest.mark.external


def cpp_of(buffer: ImageBufferRig) -> CppBuffer:
    return CppBuffer(buffer.files, buffer.redis.client, buffer.camera.detector_name)


def assert_stored(buffer: ImageBufferRig, images: list[Image]) -> None:
    """Compare the stored images, read as a program of std_daq reads them, and as a client does."""
    cpp = cpp_of(buffer)
    with ImageBuffer(buffer.root, buffer.redis.address, buffer.camera.detector_name) as stored:
        for image in images:
            np.testing.assert_array_equal(cpp.read(image.image_id), image.pixels)
            np.testing.assert_array_equal(stored[image.image_id].pixels, image.pixels)


@external
def test_files_keys_and_offsets_continue_through_a_restart(buffer: ImageBufferRig) -> None:
    before = images_of([0, 1, 999, 1000, 1_234_567])
    after = [*images_of([1_234_568, 2**24 - 1, 2**32]), image_of(2**32 + 5, status=DAMAGED)]
    buffer.source.metadata.gf.scan_id = 3
    writer = buffer.start_writer()
    buffer.store(before)
    assert writer.end() == 0
    wait_until(lambda: buffer.source.count_subscribers() == 0, what="the writer has left")
    buffer.start_writer("--timeout", 2)
    buffer.store(after)
    assert_stored(buffer, [*before, *after])
    found = sorted(path.relative_to(buffer.files).as_posix() for path in buffer.files.rglob("*.dat"))
    assert found == [
        "0000000/0000.dat",
        "0000000/1000.dat",
        "1000000/1234000.dat",
        "16000000/16777000.dat",
        "4294000000/4294967000.dat",
    ]
    assert buffer.ids() == [image.image_id for image in [*before, *after]]
    key = image_key(buffer.camera.detector_name, 2**32)
    assert 7100 < buffer.redis.client.ttl(key) <= 7200
    for image in [*before, *after]:
        record = buffer.record(image.image_id)
        assert (record.metadata.status, record.metadata.gf.scan_id) == (image.status, 3)
        assert (record.metadata.sequence, record.metadata.number) == (0, 0) or image.status == DAMAGED
    # The offset of the first image after the restart is the end of what was there.
    first = buffer.record(1_234_567)
    assert buffer.record(1_234_568).offset == first.metadata.size
    assert (first.offset, buffer.record(0).offset) == (0, 0)
    assert buffer.record(1).offset == buffer.record(0).metadata.size


@external
def test_the_newest_image_of_an_id_wins(buffer: ImageBufferRig) -> None:
    writer = buffer.start_writer()
    buffer.store(images_of([5, 6, 7]))
    newer = images_of([5, 6], salt=1)
    buffer.publish(newer)
    buffer.store(images_of([8]))
    assert_stored(buffer, [*newer, *images_of([7, 8])])
    writer.wait_for_count("n_replaced_images", 2)
    assert len([line for line in writer.stdout if "new images replace stored ones" in line]) == 1


@external
def test_an_id_that_has_an_image_can_be_refused(buffer: ImageBufferRig) -> None:
    writer = buffer.start_writer("--refuse-existing")
    older = images_of([5, 6, 7])
    buffer.store(older)
    buffer.publish(images_of([5, 6], salt=1))
    buffer.store(images_of([8]))
    assert_stored(buffer, [*older, *images_of([8])])
    writer.wait_for_count("n_not_stored_images", 2)


@external
def test_the_thread_that_announces_may_run_ahead_at_the_start(buffer: ImageBufferRig) -> None:
    module = writer_service.__name__
    options = ("--root_dir", buffer.root, "--db_address", buffer.redis.address, "--keep", 4)
    program = (sys.executable, "-P", threads_ahead.__file__, module, *options, buffer.camera.config_path)
    buffer.camera.run(*program, ready="ready")
    assert buffer.source.wait_for_subscribers(1, 60)
    buffer.store(images_of([1, 2]))
    assert_stored(buffer, images_of([1, 2]))


@external
@FAULT(
    fault="Redis ends, and starts again",
    state="std_buffer_writer stores images",
    promise="the images are stored meanwhile, and announced when Redis is back",
)
def test_images_are_announced_when_redis_is_back(buffer: ImageBufferRig, seen: Callable[[str], None]) -> None:
    writer = buffer.start_writer()
    buffer.store(images_of([1, 2]))
    buffer.redis.kill()
    buffer.publish(images_of(range(3, 900)))
    writer.wait_for_count("n_stored_images", 899)
    writer.wait_for_line(f"stored images wait to be announced: {buffer.redis.address}: expected a Redis")
    buffer.redis.start()
    buffer.wait_for_ids(range(3, 900))
    assert_stored(buffer, images_of([3, 500, 899]))
    seen("897 images were stored without Redis, and announced after its start")


@external
@FAULT(
    fault="the disk is full, and has room again",
    state="std_buffer_writer stores images",
    promise="images that do not fit are counted and not announced; later ones are stored at right offsets",
)
def test_images_that_cannot_be_written_are_not_announced(
    buffer: ImageBufferRig, seen: Callable[[str], None]
) -> None:
    writer = buffer.start_writer()
    buffer.store(images_of([1, 2]))
    end = buffer.record(2).offset + buffer.record(2).metadata.size
    # The next image ends behind this limit.
    resource.prlimit(writer.pid, resource.RLIMIT_FSIZE, (end + 10, resource.RLIM_INFINITY))
    buffer.publish(images_of([3, 4]))
    writer.wait_for_count("n_not_stored_images", 2)
    writer.wait_for_line("images cannot be stored: image 3: File too large")
    resource.prlimit(writer.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    buffer.store(images_of([5, 6]))
    writer.wait_for_line("images can be stored again")
    assert buffer.ids() == [1, 2, 5, 6]
    assert buffer.record(5).offset == end
    assert_stored(buffer, images_of([1, 2, 5, 6]))
    seen("2 images counted as not stored, the two after them at right offsets")


@external
@FAULT(
    fault="the writer is stopped until its source has reused the slots",
    state="std_buffer_writer stores images",
    promise="overwritten images are counted, and never stored",
)
def test_overwritten_images_are_not_stored(buffer: ImageBufferRig, seen: Callable[[str], None]) -> None:
    writer = buffer.start_writer()
    buffer.store(images_of([0]))
    writer.send(signal.SIGSTOP)
    images = images_of(range(1, 1501))
    buffer.publish(images)
    writer.send(signal.SIGCONT)
    buffer.wait_for_ids([1500])
    stored = [image for image in images if image.image_id in set(buffer.ids())]
    assert 0 < len(stored) <= 1000
    assert_stored(buffer, stored)
    writer.wait_for_count("n_overwritten_images", 1500 - len(stored))
    seen("all stored images have their own pixels, the others are counted")


@external
@FAULT(
    fault="the file that is being written is removed",
    state="std_buffer_writer stores images",
    promise="it continues in a new file within a second, and says so",
)
def test_a_removed_file_is_made_again(buffer: ImageBufferRig, seen: Callable[[str], None]) -> None:
    writer = buffer.start_writer()
    buffer.store(images_of([1]))
    (buffer.files / "0000000" / "0000.dat").unlink()
    writer.wait_for_line("was removed with its images, continuing in a new file")
    buffer.store(images_of([2]))
    assert_stored(buffer, images_of([2]))
    assert buffer.record(2).offset == 0
    seen("named in the log; the images after it are stored")


@external
def test_there_is_one_writer_for_a_camera(buffer: ImageBufferRig) -> None:
    buffer.start_writer()
    options = ("--root_dir", buffer.root, "--db_address", buffer.redis.address)
    second = buffer.camera.start("std_buffer_writer", *options, ready=None)
    assert second.wait() == 2
    assert "expected no other writer, got std_buffer_writer in it" in second.stderr[0]


@external
def test_there_is_one_writer_after_the_directory_was_removed(buffer: ImageBufferRig) -> None:
    first = buffer.start_writer()
    buffer.store(images_of([1]))
    shutil.rmtree(buffer.files)
    first.wait_for_line("was removed with its images, continuing in a new file")
    buffer.store(images_of([2]))
    options = ("--root_dir", buffer.root, "--db_address", buffer.redis.address)
    second = buffer.camera.start("std_buffer_writer", *options, ready=None)
    assert second.wait() == 2
    assert "expected no other writer, got std_buffer_writer in it" in second.stderr[0]
    shutil.rmtree(buffer.files)
    with closing(StoredFiles(buffer.files)):
        buffer.publish(images_of([1003]))
        first.wait_for_line("image 1003: another std_buffer_writer stores images there")
    buffer.store(images_of([1004]))
    assert_stored(buffer, images_of([1004]))


def test_refusals_of_addresses_and_times(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    root = ("--root_dir", deployment.ipc_directory)

    def refused(address: str, *args: object) -> str:
        arguments = (*root, "--db_address", address, *args, deployment.config_path)
        return refusal(capsys, writer_service.main, *arguments)

    unreachable = refused(f"redis://user:secret@127.0.0.1:{port}/3")
    assert f"--db_address: redis://127.0.0.1:{port}/3: expected a Redis database that answers" in unreachable
    assert "secret" not in unreachable
    assert "expected tcp://HOST:PORT or redis://" in refused("http://localhost")
    assert "images whose keys have expired" in refused(f"tcp://127.0.0.1:{port}", "--keep", 2, "-t", 1)
