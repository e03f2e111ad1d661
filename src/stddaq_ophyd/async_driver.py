"""The driver as a child of an ophyd-async device: signals that follow its status messages."""

from __future__ import annotations

import asyncio
import contextlib
import weakref

from ophyd_async.core import Device, DeviceConnector, NotConnectedError, soft_signal_r_and_setter

from stddaq.client import AsyncDriverClient, DriverStatus
from stddaq.client.errors import DriverError

DISCONNECTED = "disconnected"
RECONNECT_PERIOD_S = 1.0


class AsyncDriver(Device):
    """The state of the driver at a URL.

    Attributes:
        state: of the driver, "disconnected" without a connection, which is made again by itself.
        n_recorded: images of the newest run.
        n_bad: damaged, overwritten, failed and skipped images of it.
    """

    def __init__(self, url: str, token: str | None = None, name: str = "") -> None:
        self._address, self._token = url, token
        self.url, _ = soft_signal_r_and_setter(str, url)
        self.state, self._set_state = soft_signal_r_and_setter(str, DISCONNECTED)
        self.n_recorded, self._set_n_recorded = soft_signal_r_and_setter(int, 0)
        self.n_bad, self._set_n_bad = soft_signal_r_and_setter(int, 0)
        self._shown = DISCONNECTED, 0, 0
        self._task: asyncio.Task[None] | None = None
        super().__init__(name=name, connector=_DriverConnector())

    async def follow(self, timeout: float) -> None:
        """Connect, and show the status messages from then on. Raise `NotConnectedError`."""
        await self.disconnect()
        client = AsyncDriverClient(self._address, token=self._token)
        try:
            await client.connect(timeout)
        except DriverError as error:
            raise NotConnectedError(str(error)) from error
        self.show(client.latest)
        self._task = asyncio.create_task(_follow(weakref.ref(self), client), name=f"driver {self._address}")

    async def disconnect(self) -> None:
        """End the connection."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        self.show(None)

    def show(self, status: DriverStatus | None) -> None:
        """Set the signals that changed; without a status the driver is disconnected."""
        if status is None:
            _, n_recorded, n_bad = self._shown
            shown = DISCONNECTED, n_recorded, n_bad
        else:
            shown = status.status, status.n_received or status.count or 0, status.n_bad or 0
        if shown != self._shown:
            self._shown = shown
            self._set_state(shown[0])
            self._set_n_recorded(shown[1])
            self._set_n_bad(shown[2])


class _DriverConnector(DeviceConnector):
    async def connect_real(self, device: Device, timeout: float, force_reconnect: bool) -> None:
        await super().connect_real(device, timeout, force_reconnect)
        assert isinstance(device, AsyncDriver)
        await device.follow(timeout)


async def _follow(device: weakref.ref[AsyncDriver], client: AsyncDriverClient) -> None:
    """Show all statuses, and connect again after a loss, until the device is collected as garbage."""
    try:
        while True:
            try:
                async for status in client.watch():
                    if not _show(device, status):
                        return
            except DriverError:
                await client.close()
            if not _show(device, None):
                return
            await asyncio.sleep(RECONNECT_PERIOD_S)
            with contextlib.suppress(DriverError):
                await client.connect()
    finally:
        await client.close()


def _show(device: weakref.ref[AsyncDriver], status: DriverStatus | None) -> bool:
    """Return whether the device exists."""
    found = device()
    if found is not None:
        found.show(status)
    return found is not None
