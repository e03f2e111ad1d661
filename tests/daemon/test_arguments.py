"""Argument types and the parser's one-line refusals."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from stddaq.daemon.arguments import (
    ArgumentParser,
    IntegerRange,
    NumberRange,
    Seconds,
    bitshuffle_block,
    existing_directory,
    ipv4_address,
    port_number,
    stream_address,
    suffix,
)

ArgumentType = Callable[[str], object]


@pytest.mark.parametrize(
    ("argument_type", "text", "value"),
    [
        (suffix, "h5bitshuffle-lz4", "h5bitshuffle-lz4"),
        (port_number, "0", 0),
        (port_number, "65535", 65535),
        (IntegerRange(2, 4), "004", 4),
        (NumberRange(0, 10, "Hz"), "0", 0.0),
        (NumberRange(0, 10, "Hz"), "1e1", 10.0),
        (Seconds(), "0.001", 0.001),
        (Seconds(3600), "3600", 3600.0),
        (bitshuffle_block, "0", 0),
        (bitshuffle_block, "4096", 4096),
        (stream_address, "tcp://host:1", "tcp://host:1"),
        (stream_address, "ipc:///tmp/a", "ipc:///tmp/a"),
        (existing_directory, "/", Path("/")),
        (ipv4_address, "127.0.0.1", "127.0.0.1"),
    ],
)
def test_value_in_range_is_converted(argument_type: ArgumentType, text: str, value: object) -> None:
    assert argument_type(text) == value


@pytest.mark.parametrize(
    ("argument_type", "texts", "expected"),
    [
        (suffix, ("", "a/b", "two words", "ä", "a\n"), "letters, digits, '.', '_' and '-'"),
        (port_number, ("", "-1", "65536", "1.0", "٣", "9" * 5000), "an integer from 0 to 65535"),
        (NumberRange(0, 10, "Hz"), ("-0.1", "10.1", "nan", "inf", "x"), "a number of Hz from 0 to 10"),
        (Seconds(60), ("0", "-1", "61", "nan", "inf", "x"), "a number of seconds above 0, up to 60"),
        (bitshuffle_block, ("12", "-8", "8.0", "9" * 5000), "a multiple of 8, or 0"),
        (stream_address, ("host:1", "tcp://host", "tcp://host:70000", "udp://a:1"), "tcp://HOST:PORT or"),
        (existing_directory, ("/absent", "/dev/null"), "an existing directory"),
        (ipv4_address, ("", "localhost", "127.1", "::1", "1.2.3.256", "9" * 5000), "an IPv4 address"),
    ],
)
def test_other_value_is_refused_with_what_is_expected(
    argument_type: ArgumentType, texts: tuple[str, ...], expected: str
) -> None:
    for text in texts:
        with pytest.raises(argparse.ArgumentTypeError) as refused:
            argument_type(text)
        assert str(refused.value).startswith(f"expected {expected}")
        assert repr(text)[:50] in str(refused.value)


def make_parser() -> ArgumentParser:
    """Return a parser with an option in each spelling."""
    parser = ArgumentParser("program", "Does something.")
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--writer-timeout", type=Seconds(), default=1.0)
    parser.add_source_suffix("a suffix")
    return parser


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ("--writer_timeout", "--writer-timeout"),
        ("--writer_timeout=5", "--writer-timeout"),
        ("--source-suffix", "--source_suffix"),
    ],
)
def test_option_in_the_other_spelling_is_refused_with_its_name(
    given: str, right: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        make_parser().parse_args([given, "5"])
    assert ended.value.code == 2
    spelling = given.partition("=")[0]
    assert capsys.readouterr().err == (
        f"program: error: option: expected {right}, got {spelling} (see program --help)\n"
    )


def test_words_after_two_hyphens_are_no_options() -> None:
    assert make_parser().parse_args(["--", "--writer_timeout"]).rest == ["--writer_timeout"]


def test_option_in_its_own_spelling_is_taken() -> None:
    args = make_parser().parse_args(["--writer-timeout", "2", "--source_suffix", "filter"])
    assert (args.writer_timeout, args.source_suffix) == (2.0, "filter")
