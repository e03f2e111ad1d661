"""Commands to the driver, and the type of mistake in frames that are not commands."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stddaq.wire.driver_messages import (
    CommandError,
    ErrorType,
    PlainCommand,
    StartCommand,
    parse_command,
)


def refused(frame: str | bytes) -> tuple[str, str]:
    """Return type and reason of the error, and check that the reason is one line."""
    with pytest.raises(CommandError) as refusal:
        parse_command(frame)
    reason = str(refusal.value)
    assert len(reason.splitlines()) == 1
    return refusal.value.error, reason


def start(**fields: Any) -> str:
    return json.dumps({"command": "start", "path": "/data"} | fields)


def test_start_with_only_a_path_has_the_specified_defaults() -> None:
    command = parse_command('{"command": "start", "path": "/data"}')
    assert isinstance(command, StartCommand)
    assert dataclasses.asdict(command) == {
        "command": "start",
        "path": "/data",
        "file_prefix": "file",
        "n_image": 16777215,
        "writer_id": 0,
        "start_id": 0,
        "overwrite": False,
        "strict": False,
        "end_on_restart": False,
        "first_image_timeout": None,
        "nexus": None,
        "metadata": {},
    }


@pytest.mark.parametrize("name", ["stop", "status", "last_result"])
def test_simple_commands_need_no_fields_and_ignore_others(name: str) -> None:
    assert parse_command(json.dumps({"command": name, "path": 5})) == PlainCommand(command=name)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("frame", "error", "words"),
    [
        ("", "invalid_json", "expected ... got no JSON"),
        ("start", "invalid_json", "expected ... got no JSON"),
        ("{", "invalid_json", "expected ... got no JSON"),
        ("[" * 100_000, "invalid_json", "expected ... got no JSON"),
        ('{"command": ' + "9" * 5000 + "}", "invalid_json", "expected ... got no JSON"),
        ("[]", "invalid_message", "expected ... got []"),
        ("5", "invalid_message", "expected ... got 5"),
        ("null", "invalid_message", "expected ... got null"),
        ('"start"', "invalid_message", 'expected ... got "start"'),
        ("[" + "1," * 10_000_000 + "1]", "invalid_message", "expected ... got [1, 1"),
        (b'{"command": "stop"}', "invalid_message", "expected ... got a binary frame"),
        (b"\xff", "invalid_message", "expected ... got a binary frame"),
        ("{}", "missing_field", "command: expected ... got nothing"),
        ('{"command": 7}', "invalid_field", "command: expected ... got 7"),
        ('{"command": null}', "invalid_field", "command: expected ... got null"),
        ('{"command": ["start"]}', "invalid_field", 'command: expected ... got ["start"]'),
        (
            '{"command": "go"}',
            "unknown_command",
            'command: expected one of start, check, annotate, stop, status, last_result, repair, got "go"',
        ),
        ('{"command": "START"}', "unknown_command", 'command: expected ... got "START"'),
        ('{"command": "a\\nb"}', "unknown_command", 'command: expected ... got "a\\nb"'),
        ('{"command": "start"}', "missing_field", "path: expected ... got nothing"),
        (start(path=5), "invalid_field", "path: expected ... got 5"),
        (start(path=None), "invalid_field", "path: expected ... got null"),
        (start(path=""), "invalid_field", 'path: expected ... got ""'),
        (start(path="data"), "invalid_field", "absolute path"),
        (start(path="/a\0b"), "invalid_field", "path: expected"),
        (start(n_image="10"), "invalid_field", 'n_image: expected an integer, got "10"'),
        (start(n_image=-1), "invalid_field", "n_image: expected ... got -1"),
        (start(n_image=1.5), "invalid_field", "n_image: expected ... got 1.5"),
        (start(n_image=True), "invalid_field", "n_image: expected ... got true"),
        (start(n_image=2**63), "invalid_field", "n_image: expected"),
        (start(writer_id=-1), "invalid_field", "writer_id: expected ... got -1"),
        (start(writer_id=2**31), "invalid_field", "writer_id: expected"),
        (start(start_id=-5), "invalid_field", "start_id: expected ... got -5"),
        (start(start_id=2**64), "invalid_field", "start_id: expected"),
        (start(file_prefix=5), "invalid_field", "file_prefix: expected ... got 5"),
        (start(file_prefix=""), "invalid_field", "file_prefix: expected"),
        (start(file_prefix="../x"), "invalid_field", "file_prefix: expected"),
        (start(file_prefix="a/b"), "invalid_field", "file_prefix: expected"),
        (start(file_prefix="a\0b"), "invalid_field", "file_prefix: expected"),
        (start(file_prefix="x" * 231), "invalid_field", "file_prefix: expected"),
        (start(file_prefix="ä" * 116), "invalid_field", "file_prefix: expected"),
        ('{"command": "start", "path": "/a\\ud800"}', "invalid_field", "path: expected"),
        (
            '{"command": "start", "path": "/a", "file_prefix": "\\ud800"}',
            "invalid_field",
            "file_prefix: expected",
        ),
        (start(overwrite=1), "invalid_field", "overwrite: expected ... got 1"),
        (start(strict="yes"), "invalid_field", 'strict: expected ... got "yes"'),
        (start(end_on_restart=1), "invalid_field", "end_on_restart: expected ... got 1"),
        (start(first_image_timeout=0), "invalid_field", "first_image_timeout: expected ... got 0"),
        (
            start(nexus={"beam": {"energy_kev": -1}}),
            "invalid_field",
            "nexus.beam.energy_kev: expected ... got -1",
        ),
        (start(nexus={"beam": {"energy": 1}}), "unknown_field", "nexus.beam.energy: unknown field"),
        (start(nexus={"definition": "NXsas"}), "invalid_field", "nexus.definition: expected ... got"),
        (start(nexus={"sample": {"name": "\ud800"}}), "invalid_field", "nexus.sample.name: expected"),
        (start(nexus={"detector": {"mask_file": "/a.npy"}}), "invalid_field", "nexus: expected no"),
        (
            '{"command": "start", "path": "/a", "first_image_timeout": NaN}',
            "invalid_field",
            "first_image_timeout",
        ),
        (start(n_images=5), "unknown_field", "n_images: unknown field; expected one of command, path,"),
        (start(**{"a\nb": 5}), "unknown_field", "unknown field"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_wrong_frame_is_refused_with_type_and_reason(frame: str | bytes, error: str, words: str) -> None:
    found, reason = refused(frame)
    assert found == error
    assert all(part in reason for part in words.split(" ... "))
    assert len(reason) < 400


def test_ten_megabytes_of_one_field_make_a_short_reason() -> None:
    error, reason = refused(start(path="x" * 10_000_000))
    assert error == "invalid_field"
    assert len(reason) < 300


absolute_paths = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")).map(
    lambda t: "/" + t
)
prefixes = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1, max_size=50
).filter(lambda prefix: not prefix.startswith("."))


@given(
    absolute_paths,
    prefixes,
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**31 - 1),
    st.integers(0, 2**64 - 1),
    st.booleans(),
    st.none() | st.floats(1e-6, 1e9),
)
def test_valid_start_survives_a_round_trip(
    path: str,
    file_prefix: str,
    n_image: int,
    writer_id: int,
    start_id: int,
    overwrite: bool,
    first_image_timeout: float | None,
) -> None:
    command = StartCommand(
        path=path,
        file_prefix=file_prefix,
        n_image=n_image,
        writer_id=writer_id,
        start_id=start_id,
        overwrite=overwrite,
        first_image_timeout=first_image_timeout,
    )
    assert parse_command(json.dumps(dataclasses.asdict(command))) == command


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
objects = st.dictionaries(
    st.sampled_from((*StartCommand.__dataclass_fields__, "n_images")) | st.text(), values, max_size=5
)
commands = st.sampled_from(("start", "stop", "status", "last_result"))


@given(
    st.text()
    | st.binary()
    | values.map(json.dumps)
    | objects.map(json.dumps)
    | st.builds(lambda fields, command: json.dumps(fields | {"command": command}), objects, commands)
)
def test_any_frame_is_a_command_or_a_typed_error_in_one_line(frame: str | bytes) -> None:
    try:
        parse_command(frame)
    except CommandError as error:
        assert error.error in get_args(ErrorType)  # noqa: PT017 - either way is right
        assert len(str(error).splitlines()) == 1  # noqa: PT017
        json.dumps({"reason": str(error)}).encode()
