"""The socket of a live stream: sends messages to viewers, each at its own speed.

A message is queued for a viewer, or dropped and counted for that viewer alone; sending never blocks. libzmq's
sockets do not count what they drop, so this module speaks ZMTP itself (`stddaq.wire.zmtp`).
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Sequence

from stddaq.daemon import log
from stddaq.streaming import listener
from stddaq.streaming.viewer_queue import ImageBuffers, QueuedMessage, ViewerQueue
from stddaq.wire.zmtp import PUB, PUSH, Buffer, PublisherSession, SocketKind, ZmtpError

MAX_VIEWERS = 64
HANDSHAKE_TIMEOUT_S = 10.0
# A viewer that has not subscribed within this time is disconnected when others wait.
SUBSCRIPTION_TIMEOUT_S = 1.0
_DISCONNECTED = "disconnected"
_RECEIVE_BYTES = 65536


class Viewer:
    """One connection: its socket, its protocol and its queue."""

    def __init__(self, connection: socket.socket, peer: str, kind: SocketKind) -> None:
        """`peer` names the viewer in the log. Raise `OSError` if the connection is closed already."""
        self.connection, self.peer = connection, peer
        self.session, self.queue = PublisherSession(kind), ViewerQueue()
        self.connected_at = time.monotonic()
        self.queue.answer(self.session.opening())
        self.flush()

    def offer(self, message: QueuedMessage) -> bool:
        """Queue a message and send what the connection takes. Return False if it was dropped."""
        if not self.queue.offer(message):
            return False
        self.flush()
        return True

    def receive(self) -> None:
        """Process input of the viewer. Raise `OSError` if it has disconnected, or `ZmtpError`."""
        with contextlib.suppress(BlockingIOError):
            data = self.connection.recv(_RECEIVE_BYTES)
            if not data:
                raise ConnectionResetError
            self.queue.answer(self.session.receive(data))
        self.flush()

    def flush(self) -> None:
        """Send as much as the connection takes now. Raise `OSError` if the viewer has disconnected."""
        queue, connection = self.queue, self.connection
        while not queue.is_empty:
            try:
                n_bytes = connection.sendmsg(queue.next_buffers())
            except BlockingIOError:
                return
            queue.advance(n_bytes)

    def close(self) -> None:
        """Close the connection. Queued messages are not sent."""
        self.queue.clear()
        self.connection.close()


class Viewers:
    """Listens at an address and sends messages to all viewers that have subscribed.

    As a PUSH socket it sends each message to one of them: the next one for which no other message waits.

    Attributes:
        endpoint: the address, with the port that the system chose for port 0.
        port: its port.
        n_subscribed: viewers that have subscribed.
        n_dropped: messages that were dropped because a viewer was slow, counted for each viewer.
        n_left: viewers that had subscribed and are not connected any more.
    """

    def __init__(
        self, address: str, pool: ImageBuffers, kind: SocketKind = PUB, limit: int | None = None
    ) -> None:
        """Listen at `tcp://HOST:PORT`; the host `*` is every interface. Raise `EndpointError`.

        At most `limit` viewers are connected at the same time; None: `MAX_VIEWERS`.
        """
        self._pool, self._kind, self._limit = pool, kind, limit
        self._listener = listener.listen(address)
        self.port: int = self._listener.getsockname()[1]
        self.endpoint = f"{address.rpartition(':')[0]}:{self.port}"
        self.n_subscribed = self.n_dropped = self.n_left = 0
        self._viewers: dict[int, Viewer] = {}
        self._is_accepting = True
        self._epoll = select.epoll()
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)

    def fileno(self) -> int:
        """Return a descriptor that is readable when `attend` has something to do."""
        return self._epoll.fileno()

    @property
    def is_ready(self) -> bool:
        """Whether a viewer has received every message that was sent to it, and can receive the next one."""
        return any(viewer.session.topics and viewer.queue.is_empty for viewer in self._viewers.values())

    def use(self, kind: SocketKind) -> None:
        """Be a socket of this kind from now on. Viewers of the other kind are disconnected."""
        if kind is not self._kind:
            self._kind = kind
            for viewer in list(self._viewers.values()):
                self._remove(viewer, f"is disconnected, because the socket becomes {kind.name}")

    def send(self, parts: Sequence[Buffer], image: memoryview | None = None) -> bool:
        """Send a message. Return whether at least one viewer receives it.

        `image` is the buffer of the pool that the parts use.
        """
        message = QueuedMessage(parts, image, self._pool)
        is_sent = self._deal(message) if self._kind is PUSH else self._publish(message, parts[0])
        message.release()
        return is_sent

    def _publish(self, message: QueuedMessage, first_part: Buffer) -> bool:
        """Send a message to all viewers that want it."""
        is_sent = False
        for viewer in list(self._viewers.values()):
            if viewer.session.topics and viewer.session.wants(first_part) and self._offer(viewer, message):
                is_sent = True
        return is_sent

    def _deal(self, message: QueuedMessage) -> bool:
        """Send a message to the next viewer that has received the one before."""
        if not self.n_subscribed:
            return False
        for fd, viewer in list(self._viewers.items()):
            if viewer.session.topics and viewer.queue.is_empty and self._offer(viewer, message):
                self._viewers[fd] = self._viewers.pop(fd)  # Others come before it next time.
                return True
        self.n_dropped += 1
        return False

    def _offer(self, viewer: Viewer, message: QueuedMessage) -> bool:
        """Send a message to a viewer, or drop and count it. A viewer that has disconnected is removed."""
        was_empty = viewer.queue.is_empty
        try:
            is_queued = viewer.offer(message)
        except OSError:
            self._remove(viewer, _DISCONNECTED)
            return False
        if not is_queued:
            self.n_dropped += 1
        if viewer.queue.is_empty != was_empty:
            self._poll(viewer)
        return is_queued

    def attend(self, timeout: float = 0.0) -> None:
        """Accept connections, process subscriptions and send queued messages, without blocking.

        Wait up to `timeout` seconds for the first of these.
        """
        for fd, _ in self._epoll.poll(timeout):
            if fd == self._listener.fileno():
                self._accept()
            elif (viewer := self._viewers.get(fd)) is not None:
                self._serve(viewer)

    def close_silent(self) -> None:
        """Close connections that have not completed the handshake in time.

        When there are too many and others wait, also close those without a subscription.
        """
        now = time.monotonic()
        for viewer in list(self._viewers.values()):
            if not viewer.session.is_open and now - viewer.connected_at > HANDSHAKE_TIMEOUT_S:
                self._remove(viewer, f"did not complete the handshake within {HANDSHAKE_TIMEOUT_S:g} s")

        if not self._is_accepting and _is_readable(self._listener):
            for viewer in list(self._viewers.values()):
                if not viewer.session.topics and now - viewer.connected_at > SUBSCRIPTION_TIMEOUT_S:
                    self._remove(viewer, "has not subscribed, and others wait to be accepted")

    def _serve(self, viewer: Viewer) -> None:
        had_subscribed = bool(viewer.session.topics)
        try:
            viewer.receive()
        except ZmtpError as error:
            self._remove(viewer, f"is not a ZMTP peer of {self._kind.name}: {error}")
            return
        except OSError:
            self._remove(viewer, _DISCONNECTED)
            return
        self._poll(viewer)
        self._count_subscribed()
        if not had_subscribed and viewer.session.topics:
            log.event("%s %s", viewer.peer, "connected" if self._kind is PUSH else "subscribed")

    def _accept(self) -> None:
        limit = self._limit or MAX_VIEWERS
        while len(self._viewers) < limit:
            try:
                connection, address = self._listener.accept()
            except OSError:
                return
            try:
                listener.prepare(connection)
                viewer = Viewer(connection, f"{address[0]}:{address[1]}", self._kind)
            except OSError:
                connection.close()
                continue
            self._viewers[connection.fileno()] = viewer
            self._epoll.register(connection.fileno(), select.EPOLLIN)
            self._poll(viewer)
        # Further connections wait in the backlog of the system until one closes.
        self._is_accepting = False
        self._epoll.unregister(self._listener.fileno())
        if self._limit is None:
            log.logger.warning("%d viewers are connected: no more are accepted until one leaves", limit)

    def _poll(self, viewer: Viewer) -> None:
        """Poll the connection for input, and for output if messages are queued."""
        events = select.EPOLLIN | (0 if viewer.queue.is_empty else select.EPOLLOUT)
        self._epoll.modify(viewer.connection.fileno(), events)

    def _remove(self, viewer: Viewer, reason: str) -> None:
        fd = viewer.connection.fileno()
        self._epoll.unregister(fd)
        del self._viewers[fd]
        if not self._is_accepting:
            self._epoll.register(self._listener.fileno(), select.EPOLLIN)
            self._is_accepting = True
        viewer.close()
        self.n_left += bool(viewer.session.topics)
        self._count_subscribed()
        # Supervisors connect only to check that the stream listens, which is not worth a line.
        is_probe = reason == _DISCONNECTED and not viewer.session.has_received
        report = log.logger.debug if is_probe else log.event
        n_sent, n_dropped = viewer.queue.n_sent, viewer.queue.n_dropped
        report("%s %s; %d images sent, %d dropped", viewer.peer, reason, n_sent, n_dropped)

    def _count_subscribed(self) -> None:
        self.n_subscribed = sum(bool(viewer.session.topics) for viewer in self._viewers.values())

    def close(self) -> None:
        """Close all connections. Messages queued for slow viewers are not sent."""
        for viewer in self._viewers.values():
            viewer.close()
        self._viewers.clear()
        self._listener.close()
        self._epoll.close()


def _is_readable(listener: socket.socket) -> bool:
    """Whether a connection waits to be accepted."""
    poller = select.poll()
    poller.register(listener, select.POLLIN)
    return bool(poller.poll(0))
