"""Every request to a source is answered, and a refused request changes nothing."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import zmq
from hypothesis import given
from hypothesis import strategies as st
from support.processes.deployment import Deployment, Service, wait_until
from support.processes.sources import start_source
from support.processes.stream_readers import ImageReader
from support.tools.fuzzing import JSON_VALUES, Health, deeply_nested, examples

from stddaq.client.simulator import SimulatorClient
from stddaq.dataplane.connections import open_socket
from stddaq.dataplane.endpoints import software_trigger

COMMANDS = ("trigger", "configure", "rearm", "start", "stop", "status")
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "n_images": st.sampled_from([1, 2, 50, 2**32, 2**32 + 1, 0]) | JSON_VALUES,
    "rate": st.sampled_from([0, 1000, 1e6, 1e-9, 5e-324, 1e-300, -1, float("inf"), float("nan")])
    | JSON_VALUES,
    "burst": st.sampled_from([1, 2**32, 0]) | JSON_VALUES,
    "exposure_time": st.sampled_from([0, 1e6, 1e-300, -1]) | JSON_VALUES,
    "first_id": st.sampled_from([0, 2**24 - 1, 2**24, 2**64 - 1, 2**64]) | JSON_VALUES,
}


@st.composite
def commands(draw: st.DrawFn) -> dict[str, Any]:
    """Generate requests, most of them with the fields of their command."""
    command = draw(st.sampled_from(COMMANDS))
    own = {"trigger": ["n_images"], "configure": ["rate", "burst", "exposure_time"], "rearm": ["first_id"]}
    names = draw(st.lists(st.sampled_from(own.get(command, ["rate"])), unique=True))
    if draw(st.integers(0, 5)) == 0:
        names.append(draw(st.sampled_from(sorted(FIELDS))))
    return {"command": command, **{name: draw(FIELDS[name]) for name in names}}


REQUESTS = st.one_of(
    commands().map(lambda content: json.dumps(content).encode()),
    st.tuples(commands(), st.text(max_size=8), JSON_VALUES).map(
        lambda parts: json.dumps({**parts[0], parts[1]: parts[2]}).encode()
    ),
    JSON_VALUES.map(lambda value: json.dumps({"command": value}).encode()),
    JSON_VALUES.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=40),
    st.sampled_from([900, 985, 20_000]).map(lambda n: deeply_nested(n).encode()),
)
# The first of several parts is the request.
MESSAGES = st.lists(REQUESTS, min_size=1, max_size=3)


@contextmanager
def requester(deployment: Deployment) -> Iterator[zmq.Socket]:
    """Return a DEALER socket, which may send anything, connected to the source's request socket."""
    context = zmq.Context()
    dealer = open_socket(context, zmq.DEALER)
    dealer.connect(software_trigger(deployment.detector_name))
    try:
        yield dealer
    finally:
        context.destroy(linger=0)


def answer_to(dealer: zmq.Socket, *parts: bytes) -> dict[str, Any]:
    """Send a request of these parts and return the answer."""
    dealer.send_multipart([b"", *parts])
    assert dealer.poll(60_000), f"no answer to {parts}"
    empty, answer = dealer.recv_multipart()
    assert empty == b""
    return json.loads(answer)


def start_simulator(deployment: Deployment) -> Service:
    return start_source(deployment, "simulate", "--trigger", "--rate", 1000)


def assert_triggers(deployment: Deployment) -> None:
    """Check that a burst of 20 images arrives as requested."""
    with SimulatorClient(deployment.detector_name) as simulator:
        simulator.stop()
        simulator.configure(rate=1000, burst=20, exposure_time=0.001)
        simulator.rearm(first_id=500)
        with ImageReader(deployment) as reader:
            wait_until(lambda: simulator.status().n_subscribers == 1, what="the subscription")
            # A new subscriber may still receive older messages.
            while reader.receive_one(0.2):
                pass
            burst = simulator.trigger()
            assert (burst.first_id, burst.n_images) == (500, 20)
            images = reader.receive(20)
            assert [image.image_id for image in images] == list(range(500, 520))
            assert all(image.is_held for image in images)
        wait_until(lambda: simulator.status().n_subscribers == 0, what="the end of the subscription")


def test_any_request_is_answered_and_the_source_triggers_afterwards(deployment: Deployment):
    source = start_simulator(deployment)
    assert_triggers(deployment)
    health = Health([source])
    with requester(deployment) as dealer:

        @examples(30)
        @given(
            st.lists(MESSAGES, min_size=1, max_size=10),
            st.lists(st.binary(min_size=1, max_size=20), max_size=3),
        )
        def requests_are_answered(requests: list[list[bytes]], not_a_request: list[bytes]) -> None:
            nonlocal source, health
            if source.returncode is not None:
                source = start_simulator(deployment)
                health = Health([source])
            for parts in requests:
                answer = answer_to(dealer, *parts)
                assert answer["status"] in ("ok", "error")
                if answer["status"] == "error":
                    assert answer["reason"].isprintable()
                    assert len(answer["reason"]) < 2000
            if not_a_request:
                dealer.send_multipart(
                    [b"x", *not_a_request]
                )  # A request without an envelope cannot be answered.
            assert answer_to(dealer, b'{"command": "stop"}')["status"] == "ok"
            health.check()

        requests_are_answered()
    assert_triggers(deployment)
    health.check()


def test_a_request_of_several_parts_is_answered(deployment: Deployment):
    """The source exited because it answered before it had read the last part."""
    source = start_simulator(deployment)
    with requester(deployment) as dealer:
        assert answer_to(dealer, b'{"command": "status"}', b"more")["status"] == "error"
        assert answer_to(dealer, b'{"command": "status"}')["status"] == "ok"
    assert source.returncode is None


def test_a_very_low_rate_has_no_effect_after_it_was_changed(
    make_deployment: Callable[..., Deployment],
):
    """The next image stayed scheduled for the time that the low rate gave it, years ahead."""
    deployment = make_deployment()
    start_source(deployment, "simulate", "--rate", 1000)
    with SimulatorClient(deployment.detector_name) as simulator, ImageReader(deployment) as reader:
        reader.receive(5)
        for rate in (1e-9, 5e-324, 0.01):
            simulator.configure(rate=rate)
            simulator.configure(rate=1000)
            reader.receive(50)


def test_a_zmtp_1_peer_without_envelopes_does_not_silence_other_clients(deployment: Deployment):
    """After such messages libzmq's REP socket received no request of any client."""
    start_simulator(deployment)
    path = software_trigger(deployment.detector_name).removeprefix("ipc://")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as plain:
        plain.connect(path)
        plain.sendall(b"\x01\x00" * 500)  # An identity, then messages of one empty part each.
        assert_triggers(deployment)
    assert_triggers(deployment)
