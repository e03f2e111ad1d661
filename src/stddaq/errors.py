"""The exceptions of stddaq. Every message says, in one line, what was found, what is allowed, and where.

`shown`, `shown_text` and `shown_key` bring into such a message what a file or a peer has sent.
"""

import json
import re
from collections.abc import Sequence

_SHOWN_LENGTH = 60
_encoder = json.JSONEncoder(default=str)


class StdDaqError(Exception):
    """Base of all errors that stddaq raises on purpose."""


class ConfigError(StdDaqError):
    """The configuration file, or an argument, cannot be used.

    Attributes:
        mistakes: each of them on its own, without the name of the file; at least one.
    """

    def __init__(self, message: str, mistakes: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.mistakes = tuple(mistakes) or (message,)


class GeometryError(StdDaqError):
    """A shared-memory segment has another geometry than the configuration's, or cannot be had at all."""


class EndpointError(StdDaqError):
    """A socket cannot be bound or named as the configuration asks."""


class FileLayoutError(StdDaqError):
    """An HDF5 file is missing, short, or not laid out as the raw, metadata or master file it should be."""


class SourceError(StdDaqError):
    """A source of images (simulator, replay) cannot deliver what was asked for."""


class OutputExistsError(StdDaqError):
    """A file that is to be made exists already, and may not be replaced."""


def shown(value: object) -> str:
    """A value as JSON, cut to 60 characters."""
    text = ""
    # Piece by piece: what is not shown of a value of megabytes is not composed either.
    for piece in _encoder.iterencode(value):
        text += piece[: _SHOWN_LENGTH + 1]
        if len(text) > _SHOWN_LENGTH:
            return text[: _SHOWN_LENGTH - 3] + "..."
    return text


def shown_text(text: str) -> str:
    """What a peer says, for the middle of a line: cut to 500 characters, escaped what cannot be printed."""
    return escaped(text if len(text) <= 500 else f"{text[:497]}...")


def escaped(text: str) -> str:
    """`text` in one line: line breaks and whatever else cannot be printed as escape sequences."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown_key(key: str) -> str:
    """A key of a JSON object: as it is, or as JSON when it holds line breaks and the like."""
    return key if re.fullmatch(r"[\w.:/-]{1,60}", key, re.ASCII) else shown(key)
