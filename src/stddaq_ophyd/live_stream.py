"""The settings of the live streams as a component: what goes out at each address, changed while it runs.

A setting is put into the detector's configuration by the configuration service, which std_live_stream then
picks up without losing subscribers. A Status is done when the service has confirmed it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from ophyd import Component, Device, Kind, Signal
from ophyd.status import DeviceStatus
from pydantic import ValidationError

from stddaq.client import DEFAULT_CONFIG_URL, ConfigChangedError, ConfigClient
from stddaq.config.live_streams import LiveStreamSetting
from stddaq.errors import StdDaqError

KEY = "live_stream_configs"
# Somebody else may change the configuration at the same time.
ATTEMPTS = 5


class LiveStreamSettingError(StdDaqError):
    """A setting of a live stream cannot be had, or cannot be put."""


class _Half(Signal):
    """`type` or `config` of an address; setting it applies it together with the other."""

    def set(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, value: Any, *, timeout: Any = None, settle_time: Any = None
    ) -> DeviceStatus:
        address = self.parent
        assert isinstance(address, LiveStreamAddress)
        return address.set_half(self.attr_name, value)


class LiveStreamAddress(Device):
    """What goes out at one address.

    `set("periodic 1 5")`, `set(("periodic", [1, 5]))` or `set({"type": "periodic", "config": [1, 5]})`.
    """

    type = Component(_Half, value="", kind=Kind.config, doc="forward, batch or periodic")
    config = Component(_Half, value=[], kind=Kind.config, doc="[], [Y, N] or [Y, F]; see LiveStreamSetting")

    def __init__(self, prefix: str = "", *, name: str, **kwargs: Any) -> None:
        """`prefix` is the address, as `tcp://127.0.0.1:20000`."""
        super().__init__(prefix, name=name, **kwargs)

    def set(self, value: object) -> DeviceStatus:
        """Apply a setting. The Status fails with the service's reason.

        Raises `LiveStreamSettingError` when `value` is not a setting.
        """
        setting = self._setting(value)
        streams = self.parent
        assert isinstance(streams, LiveStreams)
        status = DeviceStatus(self, call_stop_on_failure=False)

        def apply() -> None:
            try:
                streams.apply(self.prefix, setting)
            except Exception as error:  # noqa: BLE001  (it belongs to whoever waits for the status)
                status.set_exception(error)
            else:
                self.note(setting)
                status.set_finished()

        threading.Thread(target=apply, name=f"setting {self.name}", daemon=True).start()
        return status

    def set_half(self, half: str, value: Any) -> DeviceStatus:
        """Apply a new `type` or `config` with the other as it is, but [] for a type that takes no numbers."""
        parts = {"type": self.type.get(), "config": self.config.get()} | {half: value}
        if half == "type" and value == "forward":
            parts["config"] = []
        return self.set(parts)

    def note(self, setting: LiveStreamSetting) -> None:
        """Show a setting that is in force."""
        self.type.put(setting.type, force=True)
        self.config.put(list(setting.config), force=True)

    def _setting(self, value: object) -> LiveStreamSetting:
        if isinstance(value, str):
            kind, *numbers = value.split()
            value = kind, [_number(text) for text in numbers]
        if isinstance(value, Mapping):
            value = value.get("type"), value.get("config", [])
        if not (isinstance(value, Sequence) and len(value) == 2):
            raise LiveStreamSettingError(
                f"{self.name}: found {value!r}, allowed is like ('periodic', [1, 5])"
            )
        kind, config = value
        try:
            return LiveStreamSetting.model_validate({"type": kind, "config": list(config)})
        except (ValidationError, TypeError) as error:
            said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise LiveStreamSettingError(
                f"{self.name}: found {kind!r} {config!r}, allowed is {said.removeprefix('Value error, ')}"
            ) from error


class LiveStreams(Device):
    """The addresses of a configuration, each a `LiveStreamAddress` called `port_<number>`.

    As a component: `live_stream = Component(LiveStreams, "http://127.0.0.1:5000", add_prefix=())`; then
    `det.live_stream.port_20000.set("periodic 1 5")`, in a plan
    `bps.mv(det.live_stream.port_20000, "forward")`, or for the time of a plan
    `det.stage_sigs[det.live_stream.port_20000] = "batch 1 100"`.
    """

    def __new__(
        cls,
        prefix: str = DEFAULT_CONFIG_URL,
        *,
        addresses: Sequence[str] | None = None,
        detector: str | None = None,
        **kwargs: Any,
    ) -> LiveStreams:
        """Ask the service for the addresses, which become components, unless they are given."""
        if addresses is None:
            addresses = list(_client(prefix, detector).get().get(KEY, {}))
        components = {
            attribute: Component(LiveStreamAddress, address, add_prefix=(), kind=Kind.config)
            for attribute, address in _attributes(addresses).items()
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
        """`prefix` is the url of the configuration service; `detector` by name, where it has several.

        Without `addresses` the service is asked for them now. Raises errors of `stddaq.client.ConfigClient`.
        """
        super().__init__(prefix, name=name, **kwargs)
        self._client = _client(prefix, detector)
        self._guard = threading.Lock()
        if addresses is None:
            self.refresh()

    def refresh(self) -> None:
        """Read the settings in force. Raises `LiveStreamSettingError` and the errors of `ConfigClient`."""
        configured = self._client.get().get(KEY, {})
        for attribute in self.component_names:
            address = getattr(self, attribute)
            if address.prefix not in configured:
                raise LiveStreamSettingError(
                    f"{address.name}: {address.prefix} is not in {KEY}, allowed are {', '.join(configured)}"
                )
            address.note(LiveStreamSetting.model_validate(configured[address.prefix]))

    def apply(self, address: str, setting: LiveStreamSetting) -> None:
        """Put a setting, and see that it is there.

        Raises `LiveStreamSettingError`, and what `ConfigClient` raises.
        """
        wanted = {"type": setting.type, "config": list(setting.config)}
        with self._guard:
            for attempt in range(ATTEMPTS):
                config = self._client.get()
                if address not in config.get(KEY, {}):
                    raise LiveStreamSettingError(
                        f"{self.name}: {address} is not in {KEY} of the configuration"
                    )
                config[KEY][address] = config[KEY][address] | wanted
                try:
                    self._client.set(config)
                    break
                except ConfigChangedError:
                    if attempt == ATTEMPTS - 1:
                        raise
            found = self._client.get()[KEY].get(address)
        if found is None or {key: found.get(key) for key in wanted} != wanted:
            raise LiveStreamSettingError(f"{self.name}: {address}: found {found} after setting {wanted}")


def _client(url: str, detector: str | None) -> ConfigClient:
    return ConfigClient(url, detector=detector)


def _attributes(addresses: Sequence[str]) -> dict[str, str]:
    """Names for the addresses: by port, or whole when two have the same."""
    ports = [address.rpartition(":")[2] for address in addresses]
    return {
        f"port_{port}"
        if ports.count(port) == 1
        else re.sub(r"\W+", "_", address.removeprefix("tcp://")): address
        for address, port in zip(addresses, ports, strict=True)
    }


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            raise LiveStreamSettingError(f"found {text!r}, allowed is a number") from None
