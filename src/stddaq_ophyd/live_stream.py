"""A component with the settings of the live streams: which images are sent to each address.

A Status is done when the configuration service has confirmed the setting.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from ophyd import Component, Device, Kind, Signal
from ophyd.status import DeviceStatus

from stddaq.client import DEFAULT_CONFIG_URL
from stddaq.config.live_streams import LiveStreamSetting
from stddaq.errors import StdDaqError
from stddaq_ophyd.core.live_stream_settings import LiveStreamSettings, attribute_names, parsed_setting

_log = logging.getLogger(__name__)


class _Part(Signal):
    """The `type` or the `config` of an address; setting it applies it together with the other."""

    def set(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, value: Any, *, timeout: Any = None, settle_time: Any = None
    ) -> DeviceStatus:
        address = self.parent
        assert isinstance(address, LiveStreamAddress)
        return address.set_part(self.attr_name, value)


class LiveStreamAddress(Device):
    """Which images are sent to one address.

    `set("periodic 1 5")`, `set(("periodic", [1, 5]))` or `set({"type": "periodic", "config": [1, 5]})`.
    """

    type = Component(_Part, value="", kind=Kind.config, doc="forward, batch or periodic")
    config = Component(_Part, value=[], kind=Kind.config, doc="[], [Y, N] or [Y, F]; see LiveStreamSetting")

    def __init__(self, prefix: str = "", *, name: str, **kwargs: Any) -> None:
        """`prefix` is the address, like `tcp://127.0.0.1:20000`."""
        super().__init__(prefix, name=name, **kwargs)

    def get(self, **kwargs: Any) -> Any:
        """Return the setting in force, which another session may have changed.

        Raises the errors of `LiveStreams.refresh`. A staged device restores this setting.
        """
        self._streams.refresh()
        return super().get(**kwargs)

    @property
    def _streams(self) -> LiveStreams:
        streams = self.parent
        assert isinstance(streams, LiveStreams)
        return streams

    def set(self, value: object) -> DeviceStatus:
        """Apply a setting. The Status fails with the service's reason.

        Raises `LiveStreamSettingError` when `value` is not a setting.
        """
        setting = parsed_setting(self.name, value)
        return self._apply(lambda: setting)

    def set_part(self, part: str, value: Any) -> DeviceStatus:
        """Apply a new `type` or `config` and keep the other; `config` becomes [] for type forward."""

        def setting() -> LiveStreamSetting:
            # Another session may have changed the other part.
            self.get()
            parts = {"type": self.type.get(), "config": self.config.get()} | {part: value}
            if part == "type" and value == "forward":
                parts["config"] = []
            return parsed_setting(self.name, parts)

        return self._apply(setting)

    def _apply(self, setting: Callable[[], LiveStreamSetting]) -> DeviceStatus:
        status = DeviceStatus(self, call_stop_on_failure=False)

        def apply() -> None:
            try:
                wanted = setting()
                self._streams.apply(self.prefix, wanted)
            except Exception as error:  # noqa: BLE001  (the waiter of the status receives it)
                status.set_exception(error)
            else:
                self.note(wanted)
                status.set_finished()

        threading.Thread(target=apply, name=f"setting {self.name}", daemon=True).start()
        return status

    def note(self, setting: LiveStreamSetting | None) -> None:
        """Show the setting in force; None: it is not known."""
        self.type.put(setting.type if setting else "unknown", force=True)
        self.config.put(list(setting.config) if setting else [], force=True)


class LiveStreams(Device):
    """The live streams of a configuration, each a `LiveStreamAddress` called `port_<number>`.

    As a component: `live_stream = Component(LiveStreams, "http://127.0.0.1:5000", add_prefix=())`. Then
    `det.live_stream.port_20000.set("periodic 1 5")`, in a plan `bps.mv(det.live_stream.port_20000,
    "forward")`, or during each staging `det.stage_sigs[det.live_stream.port_20000] = "batch 1 100"`.
    """

    def __new__(
        cls,
        prefix: str = DEFAULT_CONFIG_URL,
        *,
        addresses: Sequence[str] | None = None,
        detector: str | None = None,
        **kwargs: Any,
    ) -> LiveStreams:
        """Make a component for each address, and ask the service for the addresses unless they are given."""
        if addresses is None:
            addresses = LiveStreamSettings(prefix, detector).addresses()
        components = {
            attribute: Component(LiveStreamAddress, address, add_prefix=(), kind=Kind.config)
            for attribute, address in attribute_names(addresses).items()
        }
        made: Any = type(cls.__name__, (cls,), components)
        return super().__new__(made)

    def __init__(
        self,
        prefix: str = DEFAULT_CONFIG_URL,
        *,
        name: str,
        addresses: Sequence[str] | None = None,
        detector: str | None = None,
        **kwargs: Any,
    ) -> None:
        """`prefix` is the url of the configuration service; `detector` names one of several detectors.

        Without `addresses` the service is asked for them now. Raises the errors of
        `stddaq.client.ConfigClient`.
        """
        super().__init__(prefix, name=name, **kwargs)
        self._settings = LiveStreamSettings(prefix, detector)
        if addresses is None:
            self.refresh()

    def stage(self) -> list[object]:
        """Read the settings in force. A service that does not answer does not keep a plan from its images."""
        staged = super().stage()
        try:
            self.refresh()
        except StdDaqError as error:
            _log.warning("%s: the settings are not known: %s", self.name, error)
            for attribute in self.component_names:
                getattr(self, attribute).note(None)
        return staged

    def refresh(self) -> None:
        """Read the settings in force. Raises `LiveStreamSettingError` and the errors of `ConfigClient`."""
        addresses = [getattr(self, attribute) for attribute in self.component_names]
        settings = self._settings.read({address.name: address.prefix for address in addresses})
        for address, setting in zip(addresses, settings, strict=True):
            address.note(setting)

    def apply(self, address: str, setting: LiveStreamSetting) -> None:
        """Write a setting into the configuration, and confirm it.

        Raises `LiveStreamSettingError`, `ConfigChangedError`, and the other errors of `ConfigClient`.
        """
        self._settings.apply(self.name, address, setting)
