"""Requests to the preview service as topics."""

from __future__ import annotations

import pytest

from stddaq.wire.preview_requests import Area, Region, Request, Still, View, frame_of, request_of, topic

REQUESTS: list[Request] = [
    View(),
    View("max", "jpeg", Area(1, 2, 3, 4)),
    Region("circle", Area(0, 0, 9, 9)),
    Still(2**40, 2**64 - 1, "pixels", Area(5, 6, 7, 8)),
]


@pytest.mark.parametrize("request_", REQUESTS)
def test_request_is_read_from_its_topic(request_: Request) -> None:
    assert request_of(topic(request_)) == request_
    assert frame_of(memoryview(topic(request_) + b"frame")) == (topic(request_), b"frame")


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"view\n",
        topic(View())[:-1],
        topic(View()) * 2,
        b"\xff\n",
        topic(View()).replace(b"mean", b"sum"),
    ],
)
def test_other_topics_are_no_requests(wrong: bytes) -> None:
    assert request_of(wrong) is None


@pytest.mark.parametrize("wrong", [b"", b"view mean", b" " * 1000 + b"\n"])
def test_message_without_topic_is_refused(wrong: bytes) -> None:
    with pytest.raises(ValueError, match="no topic"):
        frame_of(memoryview(wrong))
