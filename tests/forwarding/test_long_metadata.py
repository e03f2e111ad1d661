"""Metadata near the 512 bytes that C++ services can read: what stddaq adds never costs an image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.processes.recording import images_of, pixels_of
from support.processes.servers import MakeServers, Servers
from support.processes.stream_readers import StreamReader

from stddaq.forwarding.messages import MAX_METADATA_BYTES

LENGTHS = range(400, MAX_METADATA_BYTES)
LAST_ID = 1000


def forwarded_ids(servers: Servers, reader: StreamReader, salt: int) -> list[int]:
    """Publish images whose ids are the lengths of their names. Return the ids that arrive."""
    for image_id in LENGTHS:
        servers.source.metadata.pco.bsread_name = "x" * image_id
        servers.source.publish(image_id, pixels_of(image_id, salt=salt))
    servers.source.metadata.pco.bsread_name = ""
    servers.source.publish(LAST_ID, pixels_of(LAST_ID, salt=salt))
    found: list[int] = []
    while LAST_ID not in found:
        (image,) = reader.receive(1)
        assert image.is_held
        assert np.array_equal(image.pixels, pixels_of(image.image_id, salt=salt))
        assert len(image.metadata.pco.bsread_name) == image.image_id % LAST_ID
        found.append(image.image_id)
    return found[:-1]


@pytest.mark.parametrize("whole", [False, True])
def test_a_restart_and_the_marks_of_a_receiver_cost_no_image_with_a_long_name(
    make_servers: MakeServers, whole: bool
) -> None:
    pairs: dict[str, Any] = {"max_number_of_forwarders_spawned": 1, "sender_sends_full_images": whole}
    servers = make_servers(detector_type="pco", **pairs)
    servers.start()
    with StreamReader(servers.second) as reader:
        # From here on, the numbers of all images have two bytes.
        servers.publish(images_of(range(1, 200)))
        reader.receive(199)
        before = forwarded_ids(servers, reader, salt=0)
        after = forwarded_ids(servers, reader, salt=1)
    assert before == after == list(range(LENGTHS.start, before[-1] + 1))
    # Nothing is lost but what no sender could send.
    n_refused = len(LENGTHS) - len(before)
    servers.senders[0].wait_for_count("n_failed", 2 * n_refused)
    assert "n_malformed=1" not in servers.sync.output + servers.receivers[0].output
