"""One HDF5 request in a process of its own: a JSON object on standard input, one on standard output.

`{"roots": [...], "request": name, "arguments": {...}}` is answered with `{"result": {...}}`, or with
`{"status": HTTP status, "detail": reason}`.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from typing import Any

from stddaq.web.errors import HttpRefusalError
from stddaq.web.roots import Roots

# A damaged file can ask for any amount of memory.
MEMORY_LIMIT = 4 * 2**30


def main() -> None:
    """Carry out the request."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    # Ctrl-C in a terminal is for the service, which waits for us; its SIGTERM removes what is half made.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    asked = json.load(sys.stdin)
    try:
        answer = {"result": _carry_out(**asked)}
    except HttpRefusalError as refusal:
        answer = {"status": refusal.status, "detail": refusal.detail}
    json.dump(answer, sys.stdout, allow_nan=False)


def _carry_out(roots: list[str], request: str, arguments: dict[str, Any]) -> dict[str, Any]:
    allowed = Roots(roots)
    if "filename" in arguments:
        arguments["filename"] = allowed.existing_file(arguments["filename"], "filename")
    if "base_path" in arguments:
        arguments["base_path"] = allowed.existing_directory(arguments["base_path"], "base_path")
    # Loading HDF5 takes longer than anything else here: only when there is a file to look at.
    from stddaq.web.h5_requests import carry_out

    return carry_out(allowed, request, arguments)


if __name__ == "__main__":
    main()
