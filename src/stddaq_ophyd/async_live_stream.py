"""A child of an ophyd-async device with the settings of the live streams."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from ophyd_async.core import Device, soft_signal_rw

from stddaq.client import DEFAULT_CONFIG_URL
from stddaq.config.live_streams import LiveStreamSetting
from stddaq_ophyd.core.live_stream_settings import LiveStreamSettings, attribute_names, parsed_setting
from stddaq_ophyd.core.worker import Worker


class AsyncLiveStreams(Device):
    """The live streams of a configuration, each a signal `port_<number>` with values like "periodic 1 5"."""

    def __init__(
        self,
        url: str = DEFAULT_CONFIG_URL,
        *,
        addresses: Sequence[str],
        detector: str | None = None,
        name: str = "",
    ) -> None:
        """`url` is that of the configuration service; `detector` names one of several detectors.

        Reading a signal asks the service; setting it is done when the service has confirmed the setting.
        """
        self._settings = LiveStreamSettings(url, detector)
        self._thread = Worker(f"live streams of {url}")
        for attribute, address in attribute_names(addresses).items():
            signal = soft_signal_rw(str, getter=self._getter(address), setter=self._setter(address))
            setattr(self, attribute, signal)
        super().__init__(name=name)

    def _getter(self, address: str) -> Callable[[], Coroutine[Any, Any, str]]:
        async def read() -> str:
            (setting,) = await self._thread.run(self._settings.read, {self.name: address})
            return _text(setting)

        return read

    def _setter(self, address: str) -> Callable[[str | None], Coroutine[Any, Any, str]]:
        async def apply(value: str | None) -> str:
            setting = parsed_setting(f"{self.name}: {address}", value)
            await self._thread.run(self._settings.apply, self.name, address, setting)
            return _text(setting)

        return apply


def _text(setting: LiveStreamSetting) -> str:
    return " ".join([setting.type, *map(str, setting.config)])
