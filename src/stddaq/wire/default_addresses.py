"""Where servers and sockets are when nothing else is given. Imports little, so that `--help` is quick."""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT_PORT = 8080
DEFAULT_URL = f"ws://127.0.0.1:{DEFAULT_PORT}"
# The url of the driver for commands that are given none.
URL_VARIABLE = "STDDAQ_URL"
# Clients that connect to this path receive the status at once. The C++ driver ignores paths.
GREETING_PATH = "/now"
DEFAULT_CONFIG_PORT = 5000
DEFAULT_CONFIG_URL = f"http://127.0.0.1:{DEFAULT_CONFIG_PORT}"
# The token of a service, for the service itself and for its clients.
TOKEN_VARIABLE = "STDDAQ_TOKEN"
# The directory of the ipc sockets and metrics pages, for several deployments on one machine.
IPC_DIRECTORY_VARIABLE = "STDDAQ_IPC_DIR"


def ipc_directory() -> Path:
    """Return the directory of the ipc sockets of this deployment: /tmp by the std_daq contract."""
    return Path(os.environ.get(IPC_DIRECTORY_VARIABLE) or "/tmp")
