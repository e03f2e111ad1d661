"""Run `stddaq up` so that its services may stand still for as long as a busy machine needs.

`patient_up.py up CONFIG [ARGUMENT ...]`. Otherwise `stddaq up` kills a service that needs 4 s to end. Of a
detector that sends packets, frames would be closed 0.1 s after their last one, and images given up after 1 s.
"""

from __future__ import annotations

import sys

from stddaq.cli import main
from stddaq.cli.supervisor import child
from stddaq.udp import assembly, module_sync_service

if __name__ == "__main__":
    # Its services are forks of this process.
    child.END_TIMEOUT_S = 60.0
    module_sync_service.DEFAULT_TIMEOUT_S = 60.0  # pyright: ignore[reportPrivateImportUsage]
    assembly.IDLE_TIME_S = 3.0
    sys.exit(main())
