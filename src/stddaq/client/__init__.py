"""Clients of the services: driver and live stream (sync and asyncio), configuration service, simulator.

from stddaq.client import DriverClient

with DriverClient("ws://127.0.0.1:8080") as driver:
    driver.start("/data", n_image=1000)
    driver.wait_until_saved(timeout=60)
"""

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from stddaq.client.live_stream import (
        AsyncLiveStreamClient,
        LiveImage,
        LiveStreamClient,
        LiveStreamError,
        LiveStreamTimeout,
    )

__all__ = [
    "DEFAULT_URL",
    "AsyncDriverClient",
    "AsyncLiveStreamClient",
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
    "LiveImage",
    "LiveStreamClient",
    "LiveStreamError",
    "LiveStreamTimeout",
    "NotAllowed",
    "NotFound",
    "RequestRefused",
    "RunFailed",
    "Unsupported",
]


def __getattr__(name: str) -> Any:
    # Images take numpy and ZeroMQ, which whoever only drives the writers need not load.
    if name in __all__:
        from stddaq.client import live_stream

        return getattr(live_stream, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
