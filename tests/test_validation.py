"""The messages for errors that pydantic finds."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from stddaq.validation import explain_first


class _Inner(BaseModel):
    model_config = ConfigDict(strict=True)

    numbers: list[int] = Field(default_factory=list)


class _Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    n_images: int = Field(default=1, ge=1)
    kind: str = "a"
    inner: _Inner = Field(default_factory=_Inner)
    needed: bool

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in ("a", "b"):
            raise ValueError("a or b")
        return kind

    @model_validator(mode="after")
    def _consistent(self) -> _Message:
        if self.kind == "b" and self.n_images > 1:
            raise ValueError("one image of kind b")
        return self


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"needed": 1}', "needed: expected a boolean, got 1"),
        ("{}", "needed: expected a value, got nothing; it is mandatory"),
        ('{"needed": true, "n_images": 0}', "n_images: expected a value greater than or equal to 1, got 0"),
        ('{"needed": true, "n_images": "1"}', 'n_images: expected an integer, got "1"'),
        ('{"needed": true, "kind": "c"}', 'kind: expected a or b, got "c"'),
        ('{"needed": true, "inner": 5}', "inner: expected an object, got 5"),
        (
            '{"needed": true, "inner": {"numbers": [1, null]}}',
            "inner.numbers.1: expected an integer, got null",
        ),
        ('{"needed": true, "other": 1}', "other: unknown field"),
        ('{"needed": true, "a\\nb": 1}', '"a\\nb": unknown field'),
        (
            '{"needed": true, "kind": "b", "n_images": 2}',
            'message: expected one image of kind b, got {"needed": true, "kind": "b", "n_images": 2}',
        ),
        ("{", "message: expected JSON, got no JSON"),
        ("[]", "message: expected an object, got []"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_what_was_expected_and_found(content: str, words: str) -> None:
    with pytest.raises(ValidationError) as refused:
        _Message.model_validate_json(content)
    assert explain_first(refused.value, "message") == words


def test_locations_that_are_not_part_of_the_message_are_not_shown() -> None:
    with pytest.raises(ValidationError) as refused:
        _Message.model_validate({"needed": True, "inner": {"numbers": ["1"]}})
    assert explain_first(refused.value, "message", skip=1) == 'numbers.0: expected an integer, got "1"'
