"""The address of a live stream under its name in Redis, where datahub and cam_server look for it.

The key expires by itself after a crash. A thread keeps it, so that nothing waits for the database.
"""

from __future__ import annotations

import socket
import threading

from stddaq.client.buffer_index import BufferIndex, ImageBufferError, ImageBufferUnreachableError
from stddaq.daemon.log import event, logger
from stddaq.errors import ConfigError
from stddaq.streaming.encoders import StreamType

EXPIRE_S = 30
PERIOD_S = 10.0
_END_TIMEOUT_S = 1.0
_EVERY_INTERFACE = ("*", "0.0.0.0", "[::]")
# Another stream may have taken the name over.
_DELETE_OWN = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"


def key_of(detector_name: str, stream_type: StreamType) -> str:
    """Return the key under which consumers look for a stream of a type."""
    return f"{detector_name}:LIVE-STREAM" if stream_type == "array-1.0" else detector_name


def announced_address(endpoint: str) -> str:
    """Return the address for consumers on other machines: with the name of this one, never `*`."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return f"tcp://{socket.gethostname() if host in _EVERY_INTERFACE else host}:{port}"


class Announcement:
    """Keeps the key until `close`, which removes it if it is still its own."""

    def __init__(self, database: str, key: str, address: str) -> None:
        """`database`: the url of Redis. Raise `ConfigError` if it is not one."""
        try:
            self._index = BufferIndex(database, key)
        except ImageBufferError as error:
            raise ConfigError(f"--announce: {error}") from error
        self._key, self._address = key, address
        self._end = threading.Event()
        self._is_announced: bool | None = None
        self._thread = threading.Thread(target=self._keep, name="announcement", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Remove the key, unless the database does not answer within a second."""
        self._end.set()
        self._thread.join(_END_TIMEOUT_S)

    def _keep(self) -> None:
        while True:
            self._announce()
            if self._end.wait(PERIOD_S):
                break
        try:
            with self._index.reachable():
                self._index.redis.eval(_DELETE_OWN, 1, self._key, self._address)
        except ImageBufferUnreachableError:
            pass  # It has been reported, and the key expires.
        self._index.close()

    def _announce(self) -> None:
        try:
            with self._index.reachable():
                self._index.redis.set(self._key, self._address, ex=EXPIRE_S)
        except ImageBufferUnreachableError as error:
            if self._is_announced is not False:
                logger.warning("%s is not announced: %s", self._key, error)
            self._is_announced = False
            return
        if not self._is_announced:
            event("announced as %s in %s: %s", self._key, self._index.address, self._address)
        self._is_announced = True
