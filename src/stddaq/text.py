"""Values from files and peers: how they are shown to people, in one line, and how deeply they nest."""

import errno
import json
import re
from typing import Protocol

_SHOWN_LENGTH = 60
_encoder = json.JSONEncoder(default=str)


def shown(value: object) -> str:
    """Return a value as JSON, cut to 60 characters."""
    text = ""
    # Encode piece by piece, so that the invisible rest of a large value is not encoded at all.
    for piece in _encoder.iterencode(value):
        text += piece[: _SHOWN_LENGTH + 1]
        if len(text) > _SHOWN_LENGTH:
            return text[: _SHOWN_LENGTH - 3] + "..."
    return text


def shown_text(text: str) -> str:
    """Return the text of a peer for the middle of a line: cut to 500 characters, unprintable ones escaped."""
    return escaped(text if len(text) <= 500 else f"{text[:497]}...")


def escaped(text: str) -> str:
    """Return `text` in one line: line breaks and other unprintable characters become escape sequences."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown_key(key: str) -> str:
    """Return a key of a JSON object: unchanged, or as JSON if it has unprintable characters."""
    return key if re.fullmatch(r"[\w.:/-]{1,60}", key, re.ASCII) else shown(key)


def mismatch(where: str, expected: str, got: str, advice: str = "") -> str:
    """Return the one form of an error message: `<where>: expected <expected>, got <got>`, then advice.

    `expected` and `got` are words, or values that `shown` has made safe.
    """
    message = f"{where}: expected {expected}, got {got}"
    return f"{message}; {advice}" if advice else message


def command_line(*words: object) -> str:
    """Return a command in backticks, quoted so that a user can paste it into a shell."""
    # Not at the top: services need it only for some errors.
    import shlex

    return f"`{shlex.join(map(str, words))}`"


def bytes_text(n_bytes: float) -> str:
    """Return a size for people: `41.9 MB` (powers of ten)."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"


def os_error_text(error: OSError) -> str:
    """Return an error of the operating system in one line that opens with the path, if there is one."""
    reason = error.strerror or str(error)
    return f"{escaped(str(error.filename))}: {reason}" if error.filename is not None else reason


class BindError(Protocol):
    """What an `OSError` of a socket and a `zmq.ZMQError` have in common."""

    @property
    def errno(self) -> int | None:
        """The code of the system, or of ZeroMQ."""
        ...

    @property
    def strerror(self) -> str | None:
        """Its text."""
        ...


def bind_error_text(error: BindError) -> str:
    """Return why an address cannot be bound, and what to do."""
    # pyzmq and asyncio append the address, which the message names already.
    reason = re.sub(r" \((?:addr=|while attempting).*\)$", "", str(error.strerror))
    code = error.errno
    if code == errno.EADDRINUSE:
        return f"{reason}; end the program that has it, or choose another port"
    # ZeroMQ takes a host that it cannot resolve for a network card.
    if code in (errno.EADDRNOTAVAIL, errno.ENODEV):
        return f"{reason}; give an address of this machine, or 0.0.0.0 for all"
    return reason


def nesting_depth(content: object) -> int:
    """Return the depth of nested lists and objects of JSON."""
    depth, level = 0, [content]
    while level := [node for node in level if isinstance(node, dict | list)]:
        depth += 1
        level = [child for node in level for child in (node.values() if isinstance(node, dict) else node)]
    return depth
