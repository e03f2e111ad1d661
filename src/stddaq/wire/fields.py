"""Checks the fields of JSON messages, which are dataclasses, and describes mistakes like all others.

pydantic takes 11 MB of memory, so services that receive small messages do without it. msgspec takes 0.9 MB,
but allows no limits beyond 64 bits with sign (image ids have none), and its errors are texts that neither
contain the value nor distinguish the types of mistakes that clients receive.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from stddaq.errors import StdDaqError
from stddaq.text import mismatch, shown, shown_key

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Message = TypeVar("Message", bound="DataclassInstance")
# Takes the name and the value of a field. Returns the value, or raises `FieldError`.
Check = Callable[[str, Any], Any]
FieldErrorType = Literal["missing_field", "unknown_field", "invalid_field"]


class FieldError(StdDaqError, ValueError):
    """A message lacks a field, or has one that it must not have. `error` is the type of the mistake."""

    def __init__(self, error: FieldErrorType, reason: str) -> None:
        super().__init__(reason)
        self.error: FieldErrorType = error


def message_of(kind: type[Message], content: Mapping[str, Any], checks: Mapping[str, Check]) -> Message:
    """Return a message with the fields of `content`. Raise `FieldError` for the first mistake.

    Fields of `kind` without a check have been checked before.
    """
    known = dataclasses.fields(kind)
    values: dict[str, Any] = {}
    for field in known:
        if field.name in content:
            check = checks.get(field.name)
            value = content[field.name]
            values[field.name] = check(field.name, value) if check else value
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            reason = mismatch(field.name, "a value", "nothing", "it is mandatory")
            raise FieldError("missing_field", reason)
    names = [field.name for field in known]
    for name in content:
        if name not in names:
            reason = f"{shown_key(name)}: unknown field; expected one of {', '.join(names)}"
            raise FieldError("unknown_field", reason)
    return kind(**values)


def shown_message(message: DataclassInstance, without: Collection[str] = ()) -> str:
    """Return the fields that have no default, or another value, as JSON; except those in `without`."""
    values = {
        field.name: value
        for field in dataclasses.fields(message)
        if field.name not in without and (value := getattr(message, field.name)) != field.default
    }
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


def invalid(name: str, expected: str, value: object) -> FieldError:
    """Return the error for a value that a field must not have."""
    return FieldError("invalid_field", mismatch(name, expected, shown(value)))


def optional(check: Check) -> Check:
    """Return a check that also allows null."""
    return lambda name, value: None if value is None else check(name, value)


def boolean(name: str, value: Any) -> bool:
    """Allow true and false."""
    if not isinstance(value, bool):
        raise invalid(name, "a boolean", value)
    return value


def integer(least: int, most: int) -> Check:
    """Return a check that allows integers from `least` to `most`."""

    def check(name: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise invalid(name, "an integer", value)
        if value < least:
            raise invalid(name, f"a value greater than or equal to {least}", value)
        if value > most:
            raise invalid(name, f"a value less than or equal to {most}", value)
        return value

    return check


def number(most: float, *, zero: bool) -> Check:
    """Return a check that allows numbers from 0 to `most`, 0 itself only if `zero`."""

    def check(name: str, value: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise invalid(name, "a number", value)
        if isinstance(value, float) and not math.isfinite(value):
            raise invalid(name, "a finite number", value)
        if value < 0 or (value == 0 and not zero):
            raise invalid(name, f"a value greater than {'or equal to ' if zero else ''}0", value)
        if value > most:
            raise invalid(name, f"a value less than or equal to {most:.0f}", value)
        return float(value)

    return check


def text(is_usable: Callable[[str], bool], expected: str) -> Check:
    """Return a check that allows texts for which `is_usable` is true, which are `expected`."""

    def check(name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise invalid(name, "a string", value)
        if not is_usable(value):
            raise invalid(name, expected, value)
        return value

    return check


def is_unicode(text: str) -> bool:
    """Return False for half of a surrogate pair: JSON can hold one, protobuf and file systems cannot."""
    return not any("\ud800" <= c <= "\udfff" for c in text)
