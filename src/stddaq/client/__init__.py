"""Clients of the services: driver and live stream (sync and asyncio), configuration service, image buffer.

Record 1000 images::

    from stddaq.client import DriverClient

    with DriverClient("ws://127.0.0.1:8080") as driver:
        driver.start("/data", n_image=1000)
        driver.wait_until_saved(timeout=60)
"""

from typing import TYPE_CHECKING, Any

from stddaq.client.async_driver import AsyncDriverClient
from stddaq.client.configuration import (
    ConfigChange,
    ConfigChangedError,
    ConfigClient,
    ConfigRefusedError,
    ConfigServiceError,
    ConfigServiceUnreachableError,
    NotAllowedError,
    NotFoundError,
    RequestRefusedError,
)
from stddaq.client.driver import DriverClient
from stddaq.client.driver_group import AsyncDriverGroup, DriverGroup
from stddaq.client.errors import (
    CommandRefusedError,
    ConnectionLostError,
    DriverBusyError,
    DriverError,
    DriverNotAllowedError,
    DriverTimeoutError,
    DriverUnreachableError,
    RunFailedError,
    UnsupportedError,
)
from stddaq.client.ownership import ForkedClientError
from stddaq.client.status import DriverStatus
from stddaq.wire.default_addresses import DEFAULT_CONFIG_URL, DEFAULT_URL

if TYPE_CHECKING:
    from stddaq.client.image_buffer import (
        BufferedImage,
        DamagedImageError,
        ImageBuffer,
        ImageBufferError,
        NotStoredError,
    )
    from stddaq.client.live_stream import (
        AsyncLiveStreamClient,
        LiveImage,
        LiveStreamClient,
        LiveStreamError,
        LiveStreamTimeoutError,
    )

__all__ = [
    "DEFAULT_CONFIG_URL",
    "DEFAULT_URL",
    "AsyncDriverClient",
    "AsyncDriverGroup",
    "AsyncLiveStreamClient",
    "BufferedImage",
    "CommandRefusedError",
    "ConfigChange",
    "ConfigChangedError",
    "ConfigClient",
    "ConfigRefusedError",
    "ConfigServiceError",
    "ConfigServiceUnreachableError",
    "ConnectionLostError",
    "DamagedImageError",
    "DriverBusyError",
    "DriverClient",
    "DriverError",
    "DriverGroup",
    "DriverNotAllowedError",
    "DriverStatus",
    "DriverTimeoutError",
    "DriverUnreachableError",
    "ForkedClientError",
    "ImageBuffer",
    "ImageBufferError",
    "LiveImage",
    "LiveStreamClient",
    "LiveStreamError",
    "LiveStreamTimeoutError",
    "NotAllowedError",
    "NotFoundError",
    "NotStoredError",
    "RequestRefusedError",
    "RunFailedError",
    "UnsupportedError",
]


def __getattr__(name: str) -> Any:
    # Images need numpy, and ZeroMQ or Redis, which a program that only controls the driver need not load.
    if name in ("BufferedImage", "DamagedImageError", "ImageBuffer", "ImageBufferError", "NotStoredError"):
        from stddaq.client import image_buffer

        return getattr(image_buffer, name)
    if name in __all__:
        from stddaq.client import live_stream

        return getattr(live_stream, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
