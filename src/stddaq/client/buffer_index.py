"""The Redis database of an image buffer, as its readers see it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from stddaq.closing import Closing
from stddaq.errors import StdDaqError
from stddaq.text import mismatch
from stddaq.wire.image_buffer import MAX_ID, BufferedMetadata, ids_key, image_key

if TYPE_CHECKING:
    from redis import Redis

TIMEOUT_S = 1.0
# Ids per question. A question about 1000 ids takes 1 to 2 ms.
BATCH_IDS = 1000
# After a batch of which no key exists, which is common in a set whose ids never expire.
LARGE_BATCH_IDS = 10_000
_ADDRESS = r"(?:tcp|redis)://(?:[^\s@/]*@)?(\[[^\s\]]+\]|[^\s:@/\[\]]+):(\d{1,5})(/\d*)?"


class ImageBufferError(StdDaqError):
    """Base of the errors of image buffers."""


class ImageBufferUnreachableError(ImageBufferError, ConnectionError):
    """The database cannot be reached, or does not answer as Redis."""


class DamagedRecordError(ImageBufferError, ValueError):
    """The value of a key in the database is not that of an image."""


class BufferIndex(Closing):
    """The ids and records of one camera.

    Attributes:
        camera: its name.
        address: of the database, without a password.
    """

    def __init__(self, address: str, camera: str) -> None:
        """`address` is `tcp://HOST:PORT` or `redis://[user:password@]HOST:PORT[/db]`.

        Raise `ImageBufferError` for another address, and without the package `redis`. Does not connect.
        """
        found = re.fullmatch(_ADDRESS, address, re.ASCII)
        if found is None or int(found[2]) > 65535:
            expected = "tcp://HOST:PORT or redis://[user:password@]HOST:PORT[/db]"
            raise ImageBufferError(mismatch("address of the database", expected, repr(without_user(address))))
        self.camera, self.address = camera, without_user(address)
        self.redis = _client(address)

    def check(self) -> None:
        """Raise `ImageBufferUnreachableError` unless the database answers."""
        with self.reachable():
            if not self.redis.ping():
                raise ImageBufferUnreachableError(mismatch(self.address, "PONG", "another answer"))

    @contextlib.contextmanager
    def reachable(self) -> Iterator[None]:
        """Turn the errors of the client of Redis into `ImageBufferUnreachableError`, with advice."""
        from redis.exceptions import RedisError

        try:
            yield
        except (RedisError, OSError) as error:
            if isinstance(error, StdDaqError):
                raise
            # A pipeline prefixes the command with its value, which may be binary.
            reason = re.sub(
                r"Command # \d+ \(.*\) of pipeline caused error: ", "", str(error), flags=re.DOTALL
            )
            text = " ".join(reason.split()) or type(error).__name__
            expected, advice = _advice(error)
            raise ImageBufferUnreachableError(
                mismatch(self.address, expected, text.removesuffix("."), advice)
            ) from error

    def time(self) -> float:
        """Return the time of the database in s. Unlike the clocks of servers, its users share it."""
        with self.reachable():
            now: Any = self.redis.time()
        return now[0] + now[1] * 1e-6

    def ids(self, first: int, last: int = MAX_ID, limit: int = BATCH_IDS) -> list[int]:
        """Return up to `limit` ids of the set from `first` to `last`. The keys of some may have expired."""
        with self.reachable():
            found: Any = self.redis.zrangebyscore(
                ids_key(self.camera), first, last, 0, limit, withscores=True
            )
        return _integers(found)

    def ids_down(self, last: int, limit: int = BATCH_IDS) -> list[int]:
        """Return up to `limit` ids of the set from `last` downwards, like `ids`."""
        with self.reachable():
            found: Any = self.redis.zrevrangebyscore(ids_key(self.camera), last, 0, 0, limit, withscores=True)
        return _integers(found)

    def values(self, ids: Sequence[int]) -> list[bytes | None]:
        """Return the value of each id, or None if its key has expired."""
        if not ids:
            return []
        with self.reachable():
            found: Any = self.redis.mget([image_key(self.camera, image_id) for image_id in ids])
        return found

    def record(self, image_id: int) -> BufferedMetadata | None:
        """Return the record of an image, or None if it is not stored."""
        (value,) = self.values([image_id])
        return None if value is None else parse_record(value, image_id)

    def newest(self) -> int | None:
        """Return the highest id whose image is stored; None if there is none."""
        last, limit = MAX_ID, BATCH_IDS
        while ids := self.ids_down(last, limit):
            for image_id, value in zip(ids, self.values(ids), strict=True):
                if value is not None:
                    return image_id
            last, limit = ids[-1] - 1, LARGE_BATCH_IDS
        return None

    def close(self) -> None:
        """Disconnect."""
        with contextlib.suppress(OSError):
            self.redis.close()


def parse_record(value: bytes, image_id: int) -> BufferedMetadata:
    """Return the record in the value of a key. Raise `DamagedRecordError` if it is not of this image."""
    try:
        record = BufferedMetadata.FromString(value)
    except DecodeError as error:
        raise DamagedRecordError(
            mismatch(f"image {image_id}", "a BufferedMetadata in the database", "another value")
        ) from error
    if record.metadata.image_id != image_id:
        expected = f"its own record in the database, of image {image_id}"
        raise DamagedRecordError(
            mismatch(f"image {image_id}", expected, f"that of {record.metadata.image_id}")
        )
    return record


def without_user(address: str) -> str:
    """Return an address without user and password, for messages."""
    return re.sub(r"//.*@", "//", address)


def _client(address: str) -> Redis:
    try:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError as error:
        advice = "pip install 'stddaq[buffer]'"
        raise ImageBufferError(
            mismatch("image buffer", "the Python package redis", "no such package", advice)
        ) from error
    return Redis.from_url(
        re.sub(r"^tcp:", "redis:", address),
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        # Callers decide when to try again.
        retry=Retry(NoBackoff(), 0),
        # Every database that speaks the protocol of Redis understands this version.
        protocol=2,
    )


def _advice(error: Exception) -> tuple[str, str]:
    """Return what was expected of the database, and what to do about its error, which may be nothing."""
    from redis import exceptions

    answers, accepts = "a Redis database that answers", "a Redis database that accepts writes"
    match error:
        case exceptions.ReadOnlyError():
            return accepts, "connect to its primary, or make it one: `redis-cli replicaof no one`"
        case exceptions.OutOfMemoryError():
            return accepts, "raise its `maxmemory`, or keep images for fewer hours: `--timeout`"
        case exceptions.ResponseError() if "MISCONF" in str(error):
            return accepts, "it cannot save to its disk: free space there, or see its log"
        case exceptions.AuthenticationError() | exceptions.NoPermissionError():
            return answers, "put a user and its password into the address, redis://USER:PASSWORD@HOST:PORT"
        case exceptions.BusyLoadingError():
            return answers, "it starts: wait until it has loaded its data"
        case exceptions.ConnectionError() | exceptions.TimeoutError() | OSError():
            return answers, "is redis-server running there?"
    return answers, ""


def _integers(members: Sequence[tuple[bytes, float]]) -> list[int]:
    """Return the ids. A member with another score, of another program, would not end a search in order."""
    return [int(score) for member, score in members if score.is_integer() and member == b"%d" % int(score)]
