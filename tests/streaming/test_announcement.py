"""The address of a live stream under its name in Redis, as datahub and cam_server read it."""

from __future__ import annotations

import json
import socket

import pytest
import zmq
from support.peers.redis_server import RedisServer
from support.processes.deployment import Deployment
from support.processes.live_streams import publish, started

from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.streaming.announcement import EXPIRE_S, announced_address

pytestmark = pytest.mark.external


def test_consumer_finds_the_stream_by_its_name_until_the_end(
    deployment: Deployment, publisher: ImagePublisher, redis: RedisServer
) -> None:
    name = deployment.detector_name
    stream = started(deployment, publisher, "--announce", redis.address.replace("tcp:", "redis:"))
    stream.process.wait_for_line(rf"announced as {name}:LIVE-STREAM in redis://.*: {stream.address}")
    found = redis.client.get(f"{name}:LIVE-STREAM").decode()
    assert 0 < redis.client.ttl(f"{name}:LIVE-STREAM") <= EXPIRE_S
    with zmq.Context() as context, context.socket(zmq.SUB) as subscriber:
        subscriber.subscribe(b"")
        subscriber.connect(found)
        stream.process.wait_for_line(" subscribed")
        publish(publisher, deployment, range(3, 4))
        assert subscriber.poll(60_000)
        assert json.loads(subscriber.recv_multipart()[0])["frame"] == 3
    assert stream.process.end() == 0
    assert redis.client.keys("*") == []


def test_name_that_another_stream_has_taken_over_is_left(
    deployment: Deployment, publisher: ImagePublisher, redis: RedisServer
) -> None:
    stream = started(deployment, publisher, "-t", "bsread", "--announce", redis.address)
    stream.process.wait_for_line("announced as")
    redis.client.set(deployment.detector_name, "tcp://elsewhere:1")
    assert stream.process.end() == 0
    assert redis.client.get(deployment.detector_name) == b"tcp://elsewhere:1"


def test_database_that_is_away_is_reported_once_and_disturbs_nothing(
    deployment: Deployment, publisher: ImagePublisher, redis: RedisServer
) -> None:
    redis.kill()
    stream = started(deployment, publisher, "--announce", redis.address)
    stream.process.wait_for_line(r"is not announced: .*a Redis database that answers")
    redis.start()
    stream.process.wait_for_line("announced as")
    redis.kill()
    assert stream.process.end() == 0
    assert sum("is not announced" in line for line in stream.process.stdout) == 1


def test_wrong_database_is_refused(deployment: Deployment) -> None:
    address = "tcp://127.0.0.1:0"
    deployment.write_config(live_stream_configs={address: {"type": "forward", "config": []}})
    stream = deployment.start("std_live_stream", address, "--announce", "http://there", ready=None)
    assert stream.wait() == 2
    assert "--announce: address of the database: expected tcp://HOST:PORT" in stream.stderr[0]


@pytest.mark.parametrize("host", ["*", "0.0.0.0", "[::]"])
def test_consumers_get_the_name_of_this_machine(host: str) -> None:
    assert announced_address(f"tcp://{host}:20000") == f"tcp://{socket.gethostname()}:20000"


def test_address_of_one_interface_is_announced_as_it_is() -> None:
    assert announced_address("tcp://10.0.0.7:20000") == "tcp://10.0.0.7:20000"
