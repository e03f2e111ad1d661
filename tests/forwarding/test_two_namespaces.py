"""A run between two network namespaces, over a slow cable that loses packets: the account is exact."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.processes.deployment import wait_until
from support.processes.machine import assert_within
from support.processes.namespaces import Network
from support.processes.recording import Rig, images_of, pixels_of
from support.processes.servers import MakeServers, Servers, wait_for_connections
from support.processes.stream_readers import StreamReader


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as network:
        yield network


class ForwardedRun:
    """A run on the second server, of images that the first one publishes.

    Attributes:
        lost: ids that cannot have come.
        unnamed: those of them that no synchroniser lists, because none was there.
    """

    def __init__(self, servers: Servers, reader: StreamReader) -> None:
        self._servers, self._reader = servers, reader
        self._next_id = 1
        self._synchronisers = [servers.sync]
        self.lost: set[int] = set()
        self.unnamed: set[int] = set()

    def publish(self, n_images: int) -> list[int]:
        """Publish images, and return their ids."""
        ids = list(range(self._next_id, self._next_id + n_images))
        self._next_id += n_images
        for image in images_of(ids):
            self._servers.source.publish(image.image_id, image.pixels, image.status)
        return ids

    def lose(self, ids: list[int]) -> None:
        """Expect that these images do not come."""
        self.lost.update(ids)

    def replace_sync(self, rig: Rig) -> None:
        """Kill the synchroniser, publish images, and start it again."""
        # What the reader has received may still be on its way to the driver.
        rig.wait_for_count(self._next_id - 1 - len(self.lost))
        # So may be the line of what was lost: lines come once a period.
        self.wait_until_listed()
        self._servers.sync.kill()
        self._reader.wait_for_publisher(is_there=False)
        self.unnamed.update(ids := self.publish(10))
        self.lose(ids)
        self._synchronisers.append(self._servers.start_sync())
        self._reader.wait_for_publisher()
        self.assert_all_come([])

    def assert_all_come(self, before: list[int]) -> None:
        """Publish images once all services are connected. They and those of `before` come, in order."""
        servers = self._servers
        servers.wait_for_pairs()
        wait_for_connections(list(servers.receivers.values()), "n_senders")
        expected = [*before, *self.publish(10)]
        images = self._reader.receive(len(expected))
        assert [image.image_id for image in images] == expected
        assert all(np.array_equal(image.pixels, pixels_of(image.image_id)) for image in images)

    def wait_until_listed(self) -> None:
        """Wait until the synchronisers have listed what was lost while one was there."""
        wait_until(lambda: self.listed() >= self.lost - self.unnamed, what="lines of the synchroniser")

    def listed(self) -> set[int]:
        """Return the ids in the lines of the synchronisers."""
        lines = [line for sync in self._synchronisers for line in sync.stdout[:]]
        found = (re.search(r"images ([\d, -]+): no", line) for line in lines)
        return {image_id for match in found if match for image_id in _ids(match[1])}


def _ids(text: str) -> Iterator[int]:
    for part in text.split(", "):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def lose_the_cable(run: ForwardedRun, servers: Servers, network: Network) -> None:
    """Cut the cable, and join it again. All services have named it within 2 s."""
    network.cut()
    cut_at = time.monotonic()
    ends = [*servers.senders.values(), *servers.receivers.values()]
    ends += [servers.metadata, servers.sync] if servers.metadata else []
    for service in ends:
        service.wait_for_line("a (sender|receiver) has disconnected", timeout=30)
    assert_within(time.monotonic() - cut_at, 2.0)
    run.lose(run.publish(10))
    network.mend()
    run.assert_all_come([])


def lose_a_process(run: ForwardedRun, servers: Servers, what: str) -> None:
    """Kill a process, publish images, and start it again."""
    {
        "receiver": servers.receivers[1],
        "sender": servers.senders[1],
        "metadata": servers.metadata,
    }[what].kill()  # pyright: ignore[reportOptionalMemberAccess]
    ids = run.publish(10)
    if what == "metadata":
        lost = ids
        servers.start_metadata()
    else:
        # A pair has a part of every image, or every other image.
        lost = [image_id for image_id in ids if image_id % 2] if servers.metadata else ids
        getattr(servers, f"start_{what}")(1)
    run.lose(lost)
    run.assert_all_come([image_id for image_id in ids if image_id not in lost])


@pytest.mark.slow
@pytest.mark.fault(
    fault="forwarding over a slow cable that loses packets: it is cut, then a process is killed ({mode})",
    state="a run records on the second server",
    promise="the cut is named on both sides within 2 s; what the first server published and the second "
    "did not record is listed by id, and no more",
)
@pytest.mark.parametrize(
    ("mode", "key", "killed"),
    [
        ("parts", "use_all_forwarders", ["receiver", "sender"]),
        ("whole images", "sender_sends_full_images", ["receiver", "metadata"]),
    ],
    ids=["parts", "whole"],
)
def test_what_a_cut_cable_and_killed_processes_cost_is_listed(
    make_servers: MakeServers,
    network: Network,
    directory: Path,
    seen: Callable[[str], None],
    mode: str,
    key: str,
    killed: list[str],
) -> None:
    del mode
    config: dict[str, Any] = {"max_number_of_forwarders_spawned": 2, key: True}
    servers = make_servers(network, **config)
    network.disturb()
    servers.start()
    with Rig(servers.second, directory) as rig, StreamReader(servers.second) as reader:
        rig.start_driver().start_writers()
        rig.client.start(directory)
        rig.client.wait_until_ready(60)
        run = ForwardedRun(servers, reader)
        run.assert_all_come([])
        run.assert_all_come(run.publish(60))
        assert network.n_lost_packets
        lose_the_cable(run, servers, network)
        for what in killed:
            lose_a_process(run, servers, what)
        run.replace_sync(rig)
        run.wait_until_listed()
        account = rig.end(stop=True)
    assert run.listed() - run.unnamed == run.lost - run.unnamed
    skipped = {image_id for first, last in account["skipped"] for image_id in range(first, last + 1)}
    assert skipped == run.lost
    assert account["n_good"] == account["last_id"] - len(skipped)
    seen(f"{account['n_good']} images recorded, {len(skipped)} listed by id")
