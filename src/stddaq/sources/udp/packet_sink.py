"""The network card of a simulated detector: all packets of an image with few system calls (sendmmsg)."""

from __future__ import annotations

import ctypes
import errno
import os
import socket

import numpy as np
import zmq

from stddaq.config import DetectorConfig
from stddaq.config.modules import GIGAFROST_MODULES, receiver_modules
from stddaq.daemon.log import event
from stddaq.dataplane.metadata import ImageMetadata
from stddaq.errors import ConfigError, EndpointError
from stddaq.sources.image_sink import ImageSink
from stddaq.sources.udp.faults import FaultRates, Faults
from stddaq.sources.udp.headers import headers_of
from stddaq.sources.udp.payloads import payloads_of
from stddaq.text import mismatch
from stddaq.udp.socket_structures import ADDRESS, IOVEC, MESSAGE, addresses

# The kernel takes no more messages in one call (UIO_MAXIOV).
CALL_LIMIT = 1024

_sendmmsg = ctypes.CDLL(None, use_errno=True).sendmmsg
_sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)


class PacketSink(ImageSink):
    """Sends each image as the packets of all modules. Receivers are never waited for."""

    def __init__(
        self, config: DetectorConfig, address: str, rates: FaultRates, seed: int, link_sets: int
    ) -> None:
        """Raise `EndpointError`, `ConfigError` or `GeometryError`.

        `link_sets`: with 2, every second image of a GigaFRoST goes to receivers 8 to 15.
        """
        self.metadata = ImageMetadata()
        self._payloads = payloads = payloads_of(config)
        self._modules = modules = list(payloads.modules)
        n_packets = len(payloads.sizes)
        self._headers = headers_of(config, modules, n_packets)
        self._image = np.zeros(config.image_shape, payloads.dtype)
        self._pixels = np.zeros((len(modules), sum(payloads.sizes)), np.uint8)
        self._faults = Faults(rates, modules, n_packets, seed)
        self._late: list[tuple[bytes, tuple[str, int]]] = []
        self._n_published, self._link_sets = 0, link_sets
        self._address, self._first_port = address, config.start_udp_port
        receivers = receiver_modules(config, modules, link_sets)
        ports = [config.start_udp_port + module for module in receivers]
        if ports[-1] > 65535:
            expected = "a last port of 65535 or less"
            raise ConfigError(mismatch("start_udp_port", expected, f"{ports[-1]}"))
        self.endpoint = f"udp://{address}:{ports[0]}-{ports[-1]}"
        self._memory: list[np.ndarray] = []
        self._messages = [
            self._make_messages(ports[start : start + len(modules)])
            for start in range(0, len(ports), len(modules))
        ]
        self._card = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        # A loop watches the connections of its sink. Packets have none.
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.PAIR)

    def _make_messages(self, ports: list[int]) -> np.ndarray:
        """Return one message for each packet of an image, module by module."""
        sizes, headers = np.array(self._payloads.sizes), self._headers.array
        n_modules, n_packets = headers.shape
        receivers = np.zeros(n_modules, ADDRESS)
        receivers["address"] = list(socket.inet_aton(self._address))
        receivers["family"] = socket.AF_INET
        receivers["port"] = ports
        iovecs = np.zeros((n_modules, n_packets, 2), IOVEC)
        iovecs["base"][..., 0] = addresses(headers.reshape(-1)).reshape(n_modules, n_packets)
        iovecs["bytes"][..., 0] = headers.dtype.itemsize
        starts = np.cumsum(sizes) - sizes
        iovecs["base"][..., 1] = addresses(self._pixels)[:, None] + starts.astype(np.uint64)
        iovecs["bytes"][..., 1] = sizes
        messages = np.zeros((n_modules, n_packets), MESSAGE)
        messages["name"], messages["name_bytes"] = addresses(receivers)[:, None], ADDRESS.itemsize
        messages["iovecs"] = addresses(iovecs.reshape(-1, 2)).reshape(n_modules, n_packets)
        messages["n_iovecs"] = 2
        # The messages point to these arrays.
        self._memory += [receivers, iovecs]
        return messages.reshape(-1)

    def count_subscribers(self) -> int:
        """Return 0, because receivers of packets are not known."""
        return 0

    def begin(self, image_id: int) -> np.ndarray:
        del image_id
        return self._image

    def commit(self, image_id: int) -> int:
        payloads = self._payloads
        if payloads.max_value < np.iinfo(payloads.dtype).max:
            np.minimum(self._image, payloads.max_value, out=self._image)
        for row, module in enumerate(self._modules):
            self._pixels[row] = payloads.of(self._image, module)
        self._headers.fill(image_id, self.metadata)
        late, self._late = self._late, []
        plan = self._faults.next_image()
        link_set = self._n_published % self._link_sets
        self._send(self._messages[link_set][plan.order])
        for number in plan.cut:
            self._card.sendto(self._datagram(number)[:-1], self._receiver(number, link_set))
        for number in plan.misdirected:
            other = (number + len(self._payloads.sizes)) % self._headers.array.size
            self._card.sendto(self._datagram(number), self._receiver(other, link_set))
        self._send_later(late)
        self._late = [(self._datagram(number), self._receiver(number, link_set)) for number in plan.late]
        self._n_published += 1
        return self._n_published

    def _send(self, messages: np.ndarray) -> None:
        for start in range(0, len(messages), CALL_LIMIT):
            part = messages[start : start + CALL_LIMIT]
            n_sent = 0
            while n_sent < len(part):
                n = _sendmmsg(self._card.fileno(), part[n_sent:].ctypes.data, len(part) - n_sent, 0)
                if n < 0:
                    number = ctypes.get_errno()
                    if number == errno.EINTR:
                        continue
                    raise EndpointError(f"{self.endpoint}: cannot be sent to: {os.strerror(number)}")
                n_sent += n

    def _send_later(self, late: list[tuple[bytes, tuple[str, int]]]) -> None:
        for datagram, receiver in late:
            self._card.sendto(datagram, receiver)

    def _datagram(self, number: int) -> bytes:
        module, packet = divmod(number, len(self._payloads.sizes))
        start = sum(self._payloads.sizes[:packet])
        pixels = self._pixels[module, start : start + self._payloads.sizes[packet]]
        return self._headers.array[module, packet].tobytes() + pixels.tobytes()

    def _receiver(self, number: int, link_set: int) -> tuple[str, int]:
        module = self._modules[number // len(self._payloads.sizes)]
        return self._address, self._first_port + module + GIGAFROST_MODULES * link_set

    def close(self) -> None:
        try:
            self._send_later(self._late)
        finally:
            faults = self._faults.counts.items()
            counts = ", ".join(f"{kind}: {n}" for kind, n in faults if n or kind == "sent")
            event("packets of %d images %s", self._n_published, counts)
            self._card.close()
            self.socket.close()
            self._context.term()
