"""What a receiver does not accept: counted, and never in the ring buffer."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
import zmq
from support.processes.recording import pixels_of
from support.processes.servers import MakeServers, wait_for_connections
from support.processes.stream_readers import StreamReader

from stddaq.dataplane.metadata import ImageMetadata
from stddaq.dataplane.ring_buffer import RingBuffer

CONTENT = pixels_of(1).tobytes()


def message(image_id: int, **fields: int) -> bytes:
    values = {"height": 32, "width": 48, "size": 3072, "dtype": 2, "status": 1, **fields}
    return ImageMetadata(image_id=image_id, **values).SerializeToString()  # pyright: ignore


@pytest.mark.slow
def test_parts_that_do_not_fit_are_counted_and_never_written(make_servers: MakeServers) -> None:
    servers = make_servers()
    servers.start_sync()
    bad_messages = [
        [message(1), CONTENT[:-1]],
        [message(2), CONTENT + b"\0"],
        [message(3), b""],
        [message(4)],
        [message(5), CONTENT, b"third"],
        [b"\xff", CONTENT],
        # Fields that this version does not know, beyond the 512 bytes of C++ services.
        [message(6) + b"\xfa\x3e\xf4\x03" + bytes(500), CONTENT],
        [message(7, height=31), CONTENT],
        [message(8, compression=1), CONTENT],
        [message(9, status=77), CONTENT],
    ]
    with zmq.Context() as context, closing(context.socket(zmq.XPUB)) as sender:
        sender.linger = 0
        sender.bind(servers.addresses[0])
        receiver = servers.start_receiver(0)
        assert sender.poll(60_000)
        assert sender.recv() == b"\1"
        with StreamReader(servers.second) as reader, RingBuffer(reader.config, "image") as ring:
            wait_for_connections([receiver], "n_senders")
            for frames in bad_messages:
                sender.send_multipart(frames)
            sender.send_multipart([message(20), pixels_of(20).tobytes()])
            (image,) = reader.receive(1)
            assert image.image_id == 20
            assert np.array_equal(image.pixels, pixels_of(20))
            assert not any(np.any(ring.image(image_id)) for image_id in range(1, 10))
        receiver.wait_for_count("n_malformed", len(bad_messages))
    receiver.wait_for_line("parts are not accepted: ")
