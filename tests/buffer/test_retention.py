"""Old files are removed with the keys and ids of their images, except for those of replays."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.peers.cpp_buffer import CppBuffer
from support.peers.redis_server import RedisServer
from support.processes.recording import images_of

from stddaq.buffer import retention as retention_module
from stddaq.buffer.announcer import Announcer
from stddaq.buffer.leases import IDLE_S, LEASE_S, Lease
from stddaq.buffer.retention import Retention
from stddaq.buffer.stored_files import StoredFiles
from stddaq.client.buffer_index import BufferIndex
from stddaq.daemon.log import logger
from stddaq.wire.image_buffer import file_name, ids_key, image_key

pytestmark = pytest.mark.external
NOW = 1_800_000_000.0


class Stored:
    """Four files of two images each, one hour apart; the last is the newest."""

    def __init__(self, redis: RedisServer, directory: Path) -> None:
        self.redis, self.directory = redis, directory
        self.ids = [0, 1, 1000, 1001, 2000, 2001, 1_000_000, 1_000_001]
        CppBuffer(directory, redis.client, "CAM1").store(*images_of(self.ids))
        for age, image_id in zip((4, 3, 2, 1), self.ids[::2], strict=True):
            os.utime(directory / file_name(image_id), (NOW, NOW - age * 3600))
        self.index = BufferIndex(redis.address, "CAM1")
        self.files = StoredFiles(directory)

    def left(self) -> list[int]:
        """Return the ids that are left, after a check that keys, set and files agree."""
        client = self.redis.client
        ids = [int(i) for i in client.zrange(ids_key("CAM1"), 0, -1)]
        for image_id in self.ids:
            assert client.exists(image_key("CAM1", image_id)) == (image_id in ids)
            assert (self.directory / file_name(image_id)).exists() == (image_id in ids)
        return ids


@pytest.fixture
def stored(redis: RedisServer, directory: Path) -> Iterator[Stored]:
    found = Stored(redis, directory)
    yield found
    found.index.close()
    found.files.close()


def retention(stored: Stored, waiting: Collection[str] = (), **limits: float) -> Retention:
    return Retention(stored.index, stored.files, lambda: waiting, clock=lambda: NOW, **limits)


def test_files_are_kept_for_a_time(stored: Stored) -> None:
    other = stored.directory / "0000000" / "notes.txt"
    other.write_text("of a person")
    removing = retention(stored, keep_s=2.5 * 3600)
    removing.attend()
    assert stored.left() == stored.ids[4:]
    assert removing.n_removed == 2
    assert other.exists()


def test_the_oldest_files_are_removed_above_the_limit(stored: Stored) -> None:
    n_bytes = sum(path.stat().st_size for path in stored.directory.rglob("*.dat"))
    retention(stored, limit_bytes=n_bytes - 1).attend()
    assert stored.left() == stored.ids[2:]
    retention(stored, limit_bytes=0).attend()
    assert stored.left() == []
    assert list(stored.directory.iterdir()) == []


def test_the_open_file_stays(stored: Stored) -> None:
    stored.files.append(1002, b"chunk")
    retention(stored, limit_bytes=0).attend()
    assert stored.left() == [1000, 1001]


def test_what_is_replayed_stays_until_the_replay_ends(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The clock of the servers and that of the database differ.
    now, in_database = [NOW], [NOW - 1e6]
    monkeypatch.setattr(stored.index, "time", lambda: in_database[0])
    lease = Lease(stored.index, clock=lambda: now[0])
    lease.take(1001, 2000)
    removing = retention(stored, limit_bytes=0)
    removing.attend()
    assert stored.left() == [1000, 1001, 2000, 2001]
    lease.use(2000, 2000)
    now[0] += LEASE_S / 2
    in_database[0] += LEASE_S / 2
    lease.attend()
    removing.attend()
    assert stored.left() == [2000, 2001]
    # After the last image.
    lease.use(2001, 2000)
    now[0] += LEASE_S / 2
    lease.attend()
    removing.attend()
    assert stored.left() == []
    lease.end()


def test_a_lease_ends_with_its_reader_and_without_requests(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [NOW - LEASE_S - 1]
    monkeypatch.setattr(stored.index, "time", lambda: now[0])
    Lease(stored.index, clock=lambda: now[0]).take(0, 1)
    now[0] = NOW
    retention(stored, keep_s=3.5 * 3600).attend()
    assert stored.left() == stored.ids[2:]
    now[0] = NOW - IDLE_S - 1
    idle = Lease(stored.index, clock=lambda: now[0])
    idle.take(1000, 1001)
    now[0] = NOW
    idle.attend()
    retention(stored, keep_s=2.5 * 3600).attend()
    assert stored.left() == stored.ids[4:]
    # It goes on after all.
    idle.use(2000, 2001)
    idle.attend()
    retention(stored, limit_bytes=0).attend()
    assert stored.left() == [2000, 2001]


def test_files_stay_whose_images_are_not_announced_yet(stored: Stored) -> None:
    announced = stored.redis.client.get(image_key("CAM1", 1000))
    stored.redis.kill()
    announcer = Announcer(stored.index, 3600)
    announcer.start()
    try:
        announcer.add(1000, announced)
        needed = announcer.waiting_files()
    finally:
        announcer.close(0)
    stored.redis.start()
    retention(stored, needed, limit_bytes=0).attend()
    left = [path.relative_to(stored.directory) for path in stored.directory.rglob("*.dat")]
    assert list(map(str, left)) == [file_name(1000)]


def test_nothing_is_removed_while_the_database_is_away(
    stored: Stored, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A service that an earlier test ran in this process has its own handler only.
    monkeypatch.setattr(logger, "propagate", True)
    stored.redis.kill()
    removing = retention(stored, limit_bytes=0)
    removing.attend()
    removing.attend()
    assert len(list(stored.directory.rglob("*.dat"))) == 4
    assert len([r for r in caplog.records if "old files cannot be removed" in r.message]) == 1


def while_removing(stored: Stored, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Call `act` once, when retention removes its first file."""
    ids, acts = stored.index.ids, [act]

    def ids_after_act(first: int, last: int, limit: int) -> Sequence[int]:
        found = ids(first, last, limit)
        if acts:
            acts.pop()()
        return found

    monkeypatch.setattr(stored.index, "ids", ids_after_act)


@pytest.mark.parametrize("image_id", [2, 1002, 1_000_002])
def test_a_file_that_the_writer_opens_meanwhile_stays(
    stored: Stored, monkeypatch: pytest.MonkeyPatch, image_id: int
) -> None:
    while_removing(stored, monkeypatch, lambda: stored.files.append(image_id, b"chunk"))
    retention(stored, limit_bytes=0).attend()
    left = [path.relative_to(stored.directory) for path in stored.directory.rglob("*.dat")]
    assert list(map(str, left)) == [file_name(image_id)]


@pytest.mark.parametrize("ids", [(0, 1), (2000, 2001)])
def test_what_a_replay_that_starts_meanwhile_needs_stays(
    stored: Stored, monkeypatch: pytest.MonkeyPatch, ids: tuple[int, int]
) -> None:
    lease = Lease(stored.index)
    while_removing(stored, monkeypatch, lambda: lease.take(*ids))
    removing = retention(stored, limit_bytes=0)
    # A file that is being removed when a lease is taken has to wait for the next pass.
    removing.attend()
    removing.attend()
    assert stored.left() == list(ids)


def test_leases_that_expired_without_the_database_are_renewed_before_files_are_removed(
    stored: Stored,
) -> None:
    removing = retention(stored, limit_bytes=0)
    with stored.redis.stopped():
        removing.attend()
    removing.attend()
    assert stored.left() == stored.ids
    Lease(stored.index).take(1000, 1001)
    removing.attend()
    assert stored.left() == [1000, 1001]


def test_a_file_that_cannot_be_removed_does_not_keep_the_others(
    stored: Stored, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logger, "propagate", True)
    remove = stored.files.remove

    def refuse_first(name: str, needed: Callable[[], Collection[str]]) -> bool:
        if name == file_name(0):
            raise PermissionError(1, "Operation not permitted")
        return remove(name, needed)

    monkeypatch.setattr(stored.files, "remove", refuse_first)
    removing = retention(stored, limit_bytes=0)
    removing.attend()
    removing.attend()
    left = [path.relative_to(stored.directory) for path in stored.directory.rglob("*.dat")]
    assert list(map(str, left)) == [file_name(0)]
    assert [r.message for r in caplog.records] == [
        "old files cannot be removed: [Errno 1] Operation not permitted"
    ]


def test_much_is_removed_in_several_passes(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    # Announcements wait during a pass.
    monkeypatch.setattr(retention_module, "PASS_S", -1.0)
    assert retention(stored, limit_bytes=0).attend()
    assert stored.left() == stored.ids
    monkeypatch.undo()
    assert not retention(stored, limit_bytes=0).attend()
    assert stored.left() == []


def test_the_writer_opens_other_files_while_one_is_removed(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink, is_removing, go_on = Path.unlink, threading.Event(), threading.Event()

    def slow_unlink(path: Path, missing_ok: bool = False) -> None:
        is_removing.set()
        assert go_on.wait(60)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", slow_unlink)
    with ThreadPoolExecutor() as pool:
        removed = pool.submit(stored.files.remove, file_name(1000), tuple)
        assert is_removing.wait(60)
        assert stored.files.append(5000, b"chunk") == 0
        # Its old images go first.
        appended = pool.submit(stored.files.append, 1002, b"chunk")
        go_on.set()
        assert removed.result(60)
        assert appended.result(60) == 0
    assert (stored.directory / file_name(1002)).read_bytes() == b"chunk"
