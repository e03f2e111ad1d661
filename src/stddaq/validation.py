"""Errors of pydantic as messages in the form of all other errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stddaq.text import mismatch, shown, shown_key

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

_PREFIXES = ("Value error, ", "Assertion failed, ", "Input should be ", "Value should be ")
_REPLACEMENTS = (
    ("a valid ", "a "),
    ("a integer", "an integer"),
    ("an instance of ", "a "),
)


def explain_first(error: ValidationError, whole: str, skip: int = 0) -> str:
    """Return the first mistake in words, with the arguments of `explain`."""
    return explain(error.errors(include_url=False)[0], whole, skip)


def explain(mistake: ErrorDetails, whole: str, skip: int = 0) -> str:
    """Return one mistake in words: where it is, what was expected, and what was found.

    `whole` names the place of a mistake that concerns no single field. The first `skip` steps on the way to
    the field are not shown.
    """
    where = field_name(mistake["loc"][skip:]) or whole
    if mistake["type"] == "missing":
        return mismatch(where, "a value", "nothing", "it is mandatory")
    if mistake["type"] == "extra_forbidden":
        return f"{where}: unknown field"
    found = "no JSON" if mistake["type"] == "json_invalid" else shown(mistake["input"])
    return mismatch(where, expectation(mistake), found)


def expectation(mistake: ErrorDetails) -> str:
    """Return what a field may be, for the middle of a sentence."""
    message = mistake["msg"]
    if mistake["type"] == "json_invalid":
        return "JSON"
    if mistake["type"] in ("model_type", "dict_type"):
        return "an object"
    for prefix in _PREFIXES:
        message = message.removeprefix(prefix)
    for pydantics, ours in _REPLACEMENTS:
        message = message.replace(pydantics, ours)
    return f"a value {message}" if message.startswith(("greater", "less")) else message


def field_name(location: Sequence[int | str]) -> str:
    """Return the path of a field as one word: `module_positions.0`."""
    return ".".join(shown_key(str(part)) for part in location)
