"""What a command prints: names, attributes and messages from outside must not control the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from stddaq.text import escaped


class EscapedOutput:
    """A text stream that writes control characters as escape sequences; line breaks remain.

    Attributes:
        terminal: the stream behind it, for pictures and progress bars.
    """

    def __init__(self, terminal: TextIO) -> None:
        self.terminal = terminal

    def write(self, text: str) -> int:
        """Write `text` without its control characters."""
        self.terminal.write("\n".join(map(escaped, text.split("\n"))))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.terminal, name)


@contextlib.contextmanager
def escaped_output() -> Iterator[None]:
    """Let all that is printed in the block be escaped."""
    with contextlib.ExitStack() as stack:
        # Either stream is None when the process was started without it.
        if sys.stdout is not None:
            stack.enter_context(contextlib.redirect_stdout(cast("TextIO", EscapedOutput(sys.stdout))))
        if sys.stderr is not None:
            stack.enter_context(contextlib.redirect_stderr(cast("TextIO", EscapedOutput(sys.stderr))))
        yield


def terminal() -> TextIO:
    """Return standard output for a library that moves the cursor. Its caller escapes what is from outside."""
    return sys.stdout.terminal if isinstance(sys.stdout, EscapedOutput) else sys.stdout
