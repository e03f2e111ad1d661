"""The publishing socket of a live stream: every subscriber has a queue of its own, bounded in bytes.

An image is queued for a subscriber or dropped and counted, for that subscriber alone; nothing ever waits.
A PUB socket of libzmq would drop as well, but in silence, which is why this speaks ZMTP itself
(`stddaq.wire.zmtp`) over plain sockets.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from itertools import islice

from stddaq.daemon import log
from stddaq.errors import EndpointError
from stddaq.wire.zmtp import Buffer, PublisherSession, ZmtpError, frames

# Per subscriber: eight images of 4 megapixels, a tenth of a second of a fast stream. One image always fits.
MAX_QUEUED_BYTES = 64 * 2**20
# Small images and answers to pings; more than this is a peer that only asks.
MAX_QUEUED_BUFFERS = 500_000
MAX_SUBSCRIBERS = 64
HANDSHAKE_TIMEOUT_S = 10.0
# A host that vanished without a word is noticed within a minute or so.
KEEPALIVE_S, KEEPALIVE_PROBES = 30, 4
_BACKLOG = 100
_GONE = "is gone"
_GATHERED = 64
_RECEIVED_BYTES = 65536


class ImageBuffers:
    """Buffers for copies of images, used again when the last subscriber has got its image."""

    def __init__(self, n_bytes: int) -> None:
        self._n_bytes = n_bytes
        self._n_kept = max(2, MAX_QUEUED_BYTES // n_bytes)
        self._free: list[memoryview] = []

    def take(self) -> memoryview:
        """A buffer of `n_bytes` with any content."""
        return self._free.pop() if self._free else memoryview(bytearray(self._n_bytes))

    def give_back(self, buffer: memoryview) -> None:
        """Nobody reads the buffer any more."""
        if len(self._free) < self._n_kept:
            self._free.append(buffer)


class _Message:
    """One message on its way to several subscribers. Gives its image buffer back after the last."""

    __slots__ = ("_image", "_n_users", "_pool", "n_bytes", "wire")

    def __init__(self, parts: Sequence[Buffer], image: memoryview | None, pool: ImageBuffers) -> None:
        self.wire = [memoryview(buffer) for buffer in frames(parts)]
        self.n_bytes = sum(buffer.nbytes for buffer in self.wire)
        self._image, self._pool = image, pool
        self._n_users = 1

    def use(self) -> None:
        self._n_users += 1

    def release(self) -> None:
        self._n_users -= 1
        if not self._n_users and self._image is not None:
            self._pool.give_back(self._image)


class _Subscriber:
    """One connection. `n_sent` and `n_dropped` count messages since it was made."""

    def __init__(self, connection: socket.socket, peer: str) -> None:
        self.connection, self.peer = connection, peer
        self.session = PublisherSession()
        self.since = time.monotonic()
        self.n_sent = self.n_dropped = 0
        self._buffers: deque[tuple[memoryview, _Message | None]] = deque()
        self._n_queued_bytes = 0
        self._answer(self.session.opening())

    @property
    def has_more(self) -> bool:
        """Whether something waits for the connection to take it."""
        return bool(self._buffers)

    def offer(self, message: _Message) -> bool:
        """Queue a message, or drop it when too much waits already. Returns whether it was queued."""
        if self._n_queued_bytes and self._n_queued_bytes + message.n_bytes > MAX_QUEUED_BYTES:
            self.n_dropped += 1
            return False
        message.use()
        self._n_queued_bytes += message.n_bytes
        last = len(message.wire) - 1
        for position, buffer in enumerate(message.wire):
            self._buffers.append((buffer, message if position == last else None))
        self.flush()
        return True

    def read(self) -> None:
        """Take in what the subscriber says. Raises `OSError` when it is gone, `ZmtpError`."""
        with contextlib.suppress(BlockingIOError):
            data = self.connection.recv(_RECEIVED_BYTES)
            if not data:
                raise ConnectionResetError
            self._answer(self.session.receive(data))

    def _answer(self, answer: bytes) -> None:
        if answer:
            # At the end of the queue, where a message ends.
            self._buffers.append((memoryview(answer), None))
            if len(self._buffers) > MAX_QUEUED_BUFFERS:
                raise ZmtpError("found pings whose answers are not taken")
            self.flush()

    def flush(self) -> None:
        """Send as much as the connection takes now. Raises `OSError` when it is gone."""
        buffers, connection = self._buffers, self.connection
        while buffers:
            try:
                n_sent = connection.sendmsg([buffer for buffer, _ in islice(buffers, _GATHERED)])
            except BlockingIOError:
                return
            self._take_off(n_sent)

    def _take_off(self, n_bytes: int) -> None:
        buffers = self._buffers
        while n_bytes:
            buffer, message = buffers[0]
            if n_bytes < buffer.nbytes:
                buffers[0] = (buffer[n_bytes:], message)
                return
            n_bytes -= buffer.nbytes
            buffers.popleft()
            if message is not None:
                self.n_sent += 1
                self._n_queued_bytes -= message.n_bytes
                message.release()

    def close(self) -> None:
        for _, message in self._buffers:
            if message is not None:
                message.release()
        self._buffers.clear()
        self.connection.close()


class Subscribers:
    """Listens at an address, and sends messages to whoever has subscribed there.

    Attributes:
        endpoint: where it listens, with the port that the system chose for port 0.
        port: of the endpoint.
        n_subscribed: subscribers that get messages.
        n_dropped: messages that a subscriber did not get because it had too many waiting; one for each
            message and subscriber.
    """

    def __init__(self, address: str, pool: ImageBuffers) -> None:
        """Listen at `address`, `tcp://host:port`; `*` is every interface. Raises `EndpointError`."""
        self._pool = pool
        self._listener = _listen(address)
        self.port: int = self._listener.getsockname()[1]
        self.endpoint = f"{address.rpartition(':')[0]}:{self.port}"
        self.n_subscribed = self.n_dropped = 0
        self._all: dict[int, _Subscriber] = {}
        self._listens = True
        self._epoll = select.epoll()
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)

    def fileno(self) -> int:
        """Readable when `attend` has something to do."""
        return self._epoll.fileno()

    def send(self, parts: Sequence[Buffer], image: memoryview | None = None) -> bool:
        """Send one message to all subscribers. Returns whether there is one who gets it.

        `image` is the buffer of the pool that the parts use.
        """
        message, is_sent = _Message(parts, image, self._pool), False
        for subscriber in list(self._all.values()):
            if not subscriber.session.topics or not subscriber.session.wants(parts[0]):
                continue
            had_more = subscriber.has_more
            try:
                if subscriber.offer(message):
                    is_sent = True
                else:
                    self.n_dropped += 1
            except OSError:
                self._remove(subscriber, _GONE)
                continue
            if subscriber.has_more != had_more:
                self._await(subscriber)
        message.release()
        return is_sent

    def attend(self, timeout: float = 0.0) -> None:
        """Do what can be done by now: new connections, subscriptions, queued messages.

        Waits up to `timeout` seconds for the first of these.
        """
        for fd, _ in self._epoll.poll(timeout):
            if fd == self._listener.fileno():
                self._accept()
            elif (subscriber := self._all.get(fd)) is not None:
                self._serve(subscriber)

    def drop_silent(self) -> None:
        """Close connections that have not introduced themselves in time."""
        now = time.monotonic()
        for subscriber in list(self._all.values()):
            if not subscriber.session.is_open and now - subscriber.since > HANDSHAKE_TIMEOUT_S:
                self._remove(subscriber, f"said nothing for {HANDSHAKE_TIMEOUT_S:g} s")

    def _serve(self, subscriber: _Subscriber) -> None:
        had_topics = bool(subscriber.session.topics)
        try:
            subscriber.read()
            subscriber.flush()
        except ZmtpError as error:
            self._remove(subscriber, f"is no subscriber: {error}")
            return
        except OSError:
            self._remove(subscriber, _GONE)
            return
        self._await(subscriber)
        self._count()
        if not had_topics and subscriber.session.topics:
            log.event("%s subscribed", subscriber.peer)

    def _accept(self) -> None:
        while len(self._all) < MAX_SUBSCRIBERS:
            try:
                connection, address = self._listener.accept()
            except OSError:
                return
            try:
                subscriber = _Subscriber(_prepared(connection), f"{address[0]}:{address[1]}")
            except OSError:
                connection.close()
                continue
            self._all[connection.fileno()] = subscriber
            self._epoll.register(connection.fileno(), select.EPOLLIN)
            self._await(subscriber)
        # More of them wait in the system's queue until one of ours leaves.
        self._listens = False
        self._epoll.unregister(self._listener.fileno())
        log.logger.warning("%d subscribers, no more are admitted", MAX_SUBSCRIBERS)

    def _await(self, subscriber: _Subscriber) -> None:
        events = select.EPOLLIN | (select.EPOLLOUT if subscriber.has_more else 0)
        self._epoll.modify(subscriber.connection.fileno(), events)

    def _remove(self, subscriber: _Subscriber, why: str) -> None:
        fd = subscriber.connection.fileno()
        self._epoll.unregister(fd)
        del self._all[fd]
        if not self._listens:
            self._epoll.register(self._listener.fileno(), select.EPOLLIN)
            self._listens = True
        subscriber.close()
        self._count()
        # Whoever only looks whether somebody listens here, as supervisors do, has missed nothing.
        is_knock = why == _GONE and not subscriber.session.has_spoken
        tell = log.logger.debug if is_knock else log.event
        tell(
            "%s %s; %d images sent, %d dropped", subscriber.peer, why, subscriber.n_sent, subscriber.n_dropped
        )

    def _count(self) -> None:
        self.n_subscribed = sum(bool(subscriber.session.topics) for subscriber in self._all.values())

    def close(self) -> None:
        """Close all connections; what waits for slow subscribers is lost."""
        for subscriber in self._all.values():
            subscriber.close()
        self._all.clear()
        self._listener.close()
        self._epoll.close()


def _listen(address: str) -> socket.socket:
    scheme, _, place = address.partition("://")
    host, _, port = place.rpartition(":")
    if scheme != "tcp" or not host or not port.isdecimal() or int(port) > 65535:
        raise EndpointError(f"stream_address: found {address}, allowed is tcp://HOST:PORT")
    host = host.strip("[]")
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            None if host == "*" else host,
            int(port),
            type=socket.SOCK_STREAM,
            family=socket.AF_INET if host == "*" else socket.AF_UNSPEC,
            flags=socket.AI_PASSIVE,
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise EndpointError(f"{address}: cannot be bound: {error.strerror}") from error
    listener.setblocking(False)
    return listener


def _prepared(connection: socket.socket) -> socket.socket:
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_S // KEEPALIVE_PROBES)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    return connection
