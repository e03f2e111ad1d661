"""Parses the headers of array-1.0; see `stddaq.wire.array10`."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stddaq.text import mismatch, shown
from stddaq.validation import explain_first
from stddaq.wire.array10 import Array10Error

PixelType = Literal[
    "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64"
]


class Header(BaseModel):
    """The known keys of a header."""

    model_config = ConfigDict(strict=True, frozen=True)

    htype: Literal["array-1.0"]
    shape: Annotated[
        list[Annotated[int, Field(ge=1, lt=2**32)]],
        Field(min_length=2, max_length=2),
    ]
    type: PixelType
    frame: Annotated[int, Field(ge=0, lt=2**64)]
    status: str | None = None


def parsed_header(content: bytes) -> Header:
    """Parse the first part of a message. Raise `Array10Error`."""
    try:
        return Header.model_validate(json.loads(content))
    except (ValueError, RecursionError) as error:
        if isinstance(error, ValidationError):
            raise Array10Error(explain_first(error, "header")) from error
        raise Array10Error(
            mismatch("header", "JSON", shown(content[:60].decode(errors="replace")))
        ) from error
