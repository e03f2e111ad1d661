"""Shared parts of the tests with arbitrary input: strategies of almost valid input, and checks.

Each test keeps its services for all examples. A service that exited is restarted, so that hypothesis can
find the smallest input that makes it exit.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from support.processes.deployment import Service

LOG_LINE = re.compile(
    r"\[\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}\]\[[\w -]+\]\[v[\w.+]+\]"
    r"\[(debug|info|warning|error)\] [^\x00-\x1f\x7f]*"
)
# Allowance for caches and the allocator. Input that is kept would amount to far more.
GROWTH_LIMIT_KIB = 32 * 1024
LONGER = 40

U64 = st.one_of(
    st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]), st.integers(0, 2**64 - 1)
)
U32 = st.one_of(st.sampled_from([0, 1, 2**31, 2**32 - 1]), st.integers(0, 2**32 - 1))
JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from([2**31, 2**63, 2**64, -1, 10**400]),
        st.floats(),
        st.text(max_size=20),
        # Half of a surrogate pair, control characters, and Unicode line separators.
        st.sampled_from(["\ud800", "\0", "\n[event] injected", "\x1b[2J", "\u2028", "", "x" * 5000]),
    ),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4)
    ),
    max_leaves=8,
)


def displaced_ids() -> st.SearchStrategy[list[int]]:
    """Return ids from 0 on, in an order of arrival in which each but the first is up to 15 ids late."""
    return st.lists(st.integers(0, 15) | st.just(0), max_size=80).map(
        lambda delays: [0, *(i for _, i in sorted((i + delay, i) for i, delay in enumerate(delays, 1)))]
    )


def is_longer() -> bool:
    """Return whether the test is part of `make fuzz`."""
    return settings.get_current_profile_name() == "fuzz"


def examples(n: int) -> settings:
    """Return settings for `n` examples; in the profile of `make fuzz` for many more, which are shrunk."""
    return settings(
        max_examples=n * LONGER if is_longer() else n,
        phases=[Phase.generate, Phase.shrink] if is_longer() else [Phase.generate],
        # All examples share the fixtures of their test on purpose.
        suppress_health_check=[
            HealthCheck.function_scoped_fixture,
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            HealthCheck.filter_too_much,
            HealthCheck.large_base_example,
            HealthCheck.nested_given,
        ],
    )


@st.composite
def mutated(draw: st.DrawFn, valid: st.SearchStrategy[bytes], max_edits: int = 4) -> bytes:
    """Change, remove, insert or cut off some bytes of valid input."""
    content = bytearray(draw(valid))
    for _ in range(draw(st.integers(1, max_edits))):
        place = draw(st.integers(0, len(content)))
        match draw(st.sampled_from(["change", "flip", "insert", "remove", "cut"])):
            case "change":
                content[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
            case "flip":
                if place < len(content):
                    content[place] ^= 1 << draw(st.integers(0, 7))
            case "insert":
                content[place:place] = draw(st.binary(max_size=12))
            case "remove":
                del content[place : place + draw(st.integers(1, 8))]
            case _:
                del content[place:]
    return bytes(content)


def deeply_nested(depth: int) -> str:
    """Return valid JSON that is nested `depth` levels deep."""
    return "[" * depth + "]" * depth


def bsread_messages(valid: Sequence[bytes]) -> st.SearchStrategy[list[bytes]]:
    """Generate parts of almost valid messages: main header, data header, value, timestamp.

    Headers have arbitrary values, most of them with a matching hash; parts are changed, swapped, missing or
    repeated.
    """

    @st.composite
    def almost_valid(draw: st.DrawFn) -> list[bytes]:
        parts = list(valid)
        main, data = json.loads(parts[0]), json.loads(parts[1])
        target = draw(st.sampled_from([main, data, data["channels"][0]]))
        for _ in range(draw(st.integers(0, 2))):
            key = draw(st.sampled_from(sorted(target)) | st.sampled_from(["dh_compression", "status", "x"]))
            target[key] = draw(JSON_VALUES | st.sampled_from(["lz4", "bitshuffle_lz4", "none", "big"]))
        parts[1] = json.dumps(data).encode()
        if "hash" in main and draw(st.integers(0, 9)):
            main["hash"] = hashlib.md5(parts[1]).hexdigest()
        parts[0] = json.dumps(main).encode()
        match draw(st.sampled_from(["as it is", "part", "value", "remove", "repeat", "swap"])):
            case "part":
                place = draw(st.integers(0, 3))
                parts[place] = draw(mutated(st.just(parts[place])))
            case "value":
                parts[2] = draw(st.binary(max_size=60) | st.just(b""))
            case "remove":
                del parts[draw(st.integers(0, 3))]
            case "repeat":
                parts += draw(st.sampled_from([parts[2:], [b""], [b""] * 500]))
            case "swap":
                parts.reverse()
            case _:
                pass
        return parts

    anything = st.lists(st.binary(max_size=40), min_size=1, max_size=6)
    nested = st.sampled_from([900, 990, 100_000]).map(lambda n: [deeply_nested(n).encode(), *valid[1:]])
    return st.one_of(almost_valid(), almost_valid(), anything, nested)


# ZMTP 3.0: greeting with the mechanism NULL, then the command READY with the type of the socket.
ZMTP_GREETING = b"\xff" + b"\0" * 8 + b"\x7f\x03\x00NULL" + b"\0" * 48
_KINDS = (b"PULL", b"PUSH", b"SUB", b"PUB", b"REQ", b"DEALER", b"PAIR", b"NONE")


def zmtp_ready(kind: bytes) -> bytes:
    body = b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind
    return bytes([4, len(body)]) + body


_FRAMES = st.one_of(
    st.binary(max_size=60),
    # Impossible sizes, a message, empty parts, a PING, a bad SUBSCRIBE, an empty command, subscriptions.
    st.sampled_from(
        [
            b"\x02" + b"\xff" * 8,
            b"\x02\x7f" + b"\xff" * 7,
            b"\x00\x03abc",
            b"\x01\x00" * 500,
            b"\x04\x05\x04PING",
            b"\x04\x10\x09SUBSCRIBE" + b"\x00" * 6,
            b"\x04\x00",
            b"\x00\x01\x01",
            b"\x00\x01\x00",
        ]
    ),
)
_HANDSHAKES = st.sampled_from(_KINDS).map(lambda kind: ZMTP_GREETING + zmtp_ready(kind))
ZMTP_CONVERSATIONS = st.tuples(
    st.just(b"") | _HANDSHAKES | mutated(_HANDSHAKES), st.lists(_FRAMES, max_size=4)
).map(lambda parts: parts[0] + b"".join(parts[1]))


def anonymous_kib(pid: int) -> int:
    """Return the anonymous memory of a process in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    assert found, status
    return int(found[1])


class Health:
    """Checks that services survive any input: they run, log readable lines, and use limited memory."""

    def __init__(self, services: Sequence[Service]) -> None:
        """Store the memory of the services, after a normal run, as the reference."""
        self._services = list(services)
        self._before = [anonymous_kib(service.pid) for service in services]

    def check(self) -> None:
        """Fail if a service has exited, written anything except log lines, or grown."""
        for service, before in zip(self._services, self._before, strict=True):
            assert_unharmed(service)
            grown = anonymous_kib(service.pid) - before
            assert grown < GROWTH_LIMIT_KIB, f"{service.command}: {grown} KiB more than before"


def assert_unharmed(service: Service) -> None:
    """Check that the service runs, and has written only log lines and no unexpected error."""
    assert service.returncode is None, service.output
    strange = [line for line in list(service.stdout) if not LOG_LINE.fullmatch(line)]
    assert not strange, strange
    assert not service.stderr, service.stderr
    assert "unexpected" not in "".join(line for line in list(service.stdout) if "][error]" in line), (
        service.output
    )
