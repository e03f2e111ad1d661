"""Clients of the services: the driver's, sync and asyncio, the configuration service's, the simulator's.

from stddaq.client import DriverClient

with DriverClient("ws://127.0.0.1:8080") as driver:
    driver.start("/data", n_image=1000)
    driver.wait_until_saved(timeout=60)
"""

from stddaq.client.async_client import DEFAULT_URL, AsyncDriverClient
from stddaq.client.config_client import (
    ConfigChange,
    ConfigClient,
    ConfigOutdated,
    ConfigRefused,
    ConfigServiceError,
    ConfigServiceUnreachable,
    NotAllowed,
    NotFound,
    RequestRefused,
)
from stddaq.client.errors import (
    CommandRefused,
    ConnectionLost,
    DriverBusy,
    DriverError,
    DriverTimeout,
    DriverUnreachable,
    RunFailed,
    Unsupported,
)
from stddaq.client.status import DriverStatus
from stddaq.client.sync_client import DriverClient

__all__ = [
    "DEFAULT_URL",
    "AsyncDriverClient",
    "CommandRefused",
    "ConfigChange",
    "ConfigClient",
    "ConfigOutdated",
    "ConfigRefused",
    "ConfigServiceError",
    "ConfigServiceUnreachable",
    "ConnectionLost",
    "DriverBusy",
    "DriverClient",
    "DriverError",
    "DriverStatus",
    "DriverTimeout",
    "DriverUnreachable",
    "NotAllowed",
    "NotFound",
    "RequestRefused",
    "RunFailed",
    "Unsupported",
]
