"""One HDF5 request in a process of its own: a JSON object on standard input, one on standard output.

`{"roots": [...], "request": name, "arguments": {...}}` is answered with `{"result": {...}}`, or with
`{"status": HTTP status, "detail": reason}`.
"""

from __future__ import annotations

import json
import resource
import signal
import sys

# A damaged file can ask for any amount of memory.
MEMORY_LIMIT = 4 * 2**30


def main() -> None:
    """Carry out the request."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    # Ctrl-C in a terminal is for the service, which waits for us; its SIGTERM removes what is half made.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    from stddaq.rest.errors import RequestRefused
    from stddaq.rest.h5_requests import carry_out

    asked = json.load(sys.stdin)
    try:
        answer = {"result": carry_out(asked["roots"], asked["request"], asked["arguments"])}
    except RequestRefused as refusal:
        answer = {"status": refusal.status, "detail": refusal.detail}
    json.dump(answer, sys.stdout, allow_nan=False)


if __name__ == "__main__":
    main()
