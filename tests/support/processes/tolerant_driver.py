"""Run the driver so that a test may take as long as a busy machine needs.

`tolerant_driver.py CONFIG [ARGUMENT ...]`. The driver otherwise drops a writer that hangs for 1.4 s, and
greets a client that has sent nothing for 0.1 s.
"""

from __future__ import annotations

import sys

from stddaq.dataplane import connections
from stddaq.writing.driver import status
from stddaq.writing.driver.service import main

if __name__ == "__main__":
    connections.HEARTBEAT_TIMEOUT_MS = 60_000
    status.GREETING_DELAY_S = 60.0
    sys.exit(main())
