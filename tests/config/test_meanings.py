"""The meanings of the keys of a configuration."""

from __future__ import annotations

from stddaq.config.meanings import MEANINGS, described_schema
from stddaq.config.model import KEYS


def test_each_key_has_a_meaning_in_one_short_sentence() -> None:
    assert list(MEANINGS) == list(KEYS)
    assert all(text.endswith(".") and len(text) <= 90 for text in MEANINGS.values())
    described = described_schema()["properties"]
    assert {key: content["description"] for key, content in described.items()} == MEANINGS
