"""A component with the settings of the live streams: which images are sent to each address.

The configuration service writes a setting into the detector's configuration, and std_live_stream follows it
while it runs, without disconnecting its viewers. A Status is done when the service has confirmed the setting.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ophyd import Component, Device, Kind, Signal
from ophyd.status import DeviceStatus
from pydantic import ValidationError

from stddaq.client import DEFAULT_CONFIG_URL, ConfigChangedError, ConfigClient
from stddaq.config.live_streams import LiveStreamSetting
from stddaq.errors import StdDaqError
from stddaq.text import mismatch
from stddaq.validation import expectation

_log = logging.getLogger(__name__)

KEY = "live_stream_configs"
# Another client may change the configuration at the same time.
MAX_ATTEMPTS = 5


class LiveStreamSettingError(StdDaqError, ValueError):
    """A value is not a setting of a live stream, or the configuration has no such live stream."""


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
        setting = self._setting(value)
        return self._apply(lambda: setting)

    def set_part(self, part: str, value: Any) -> DeviceStatus:
        """Apply a new `type` or `config` and keep the other; `config` becomes [] for type forward."""

        def setting() -> LiveStreamSetting:
            # Another session may have changed the other part.
            self.get()
            parts = {"type": self.type.get(), "config": self.config.get()} | {part: value}
            if part == "type" and value == "forward":
                parts["config"] = []
            return self._setting(parts)

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

    def _setting(self, value: object) -> LiveStreamSetting:
        if isinstance(value, str):
            kind, *numbers = value.split()
            value = kind, [self._number(text) for text in numbers]
        if isinstance(value, Mapping):
            value = value.get("type"), value.get("config", [])
        if not (isinstance(value, Sequence) and len(value) == 2):
            raise LiveStreamSettingError(
                mismatch(self.name, "a setting like ('periodic', [1, 5])", repr(value))
            )
        kind, config = value
        try:
            return LiveStreamSetting.model_validate({"type": kind, "config": list(config)})
        except ValidationError as error:
            expected = expectation(error.errors(include_url=False)[0])
        except TypeError:
            expected = "a list of numbers"
        raise LiveStreamSettingError(mismatch(self.name, expected, f"{kind!r} {config!r}"))

    def _number(self, text: str) -> int | float:
        for kind in (int, float):
            with contextlib.suppress(ValueError):
                return kind(text)
        raise LiveStreamSettingError(mismatch(self.name, "a number", repr(text)))


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
        """`prefix` is the url of the configuration service; `detector` names one of several detectors.

        Without `addresses` the service is asked for them now. Raises the errors of
        `stddaq.client.ConfigClient`.
        """
        super().__init__(prefix, name=name, **kwargs)
        self._client = _client(prefix, detector)
        self._guard = threading.Lock()
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
        configured = self._client.get().get(KEY, {})
        for attribute in self.component_names:
            address = getattr(self, attribute)
            if address.prefix not in configured:
                raise LiveStreamSettingError(
                    mismatch(address.name, f"an address of {KEY} ({', '.join(configured)})", address.prefix)
                )
            address.note(LiveStreamSetting.model_validate(configured[address.prefix]))

    def apply(self, address: str, setting: LiveStreamSetting) -> None:
        """Write a setting into the configuration, and confirm it.

        Raises `LiveStreamSettingError`, `ConfigChangedError`, and the other errors of `ConfigClient`.
        """
        wanted = {"type": setting.type, "config": list(setting.config)}
        with self._guard:
            for attempt in range(MAX_ATTEMPTS):
                config = self._client.get()
                if address not in config.get(KEY, {}):
                    raise LiveStreamSettingError(mismatch(self.name, f"an address of {KEY}", address))
                config[KEY][address] = config[KEY][address] | wanted
                try:
                    self._client.set(config)
                    break
                except ConfigChangedError:
                    if attempt == MAX_ATTEMPTS - 1:
                        raise
            found = self._client.get()[KEY].get(address)
        if found is None or {key: found.get(key) for key in wanted} != wanted:
            raise LiveStreamSettingError(mismatch(f"{self.name}: {address}", str(wanted), str(found)))


def _client(url: str, detector: str | None) -> ConfigClient:
    return ConfigClient(url, detector=detector)


def _attributes(addresses: Sequence[str]) -> dict[str, str]:
    """Return the address of each attribute name: `port_<number>`, or the whole address for shared ports."""
    ports = [address.rpartition(":")[2] for address in addresses]
    return {
        f"port_{port}"
        if ports.count(port) == 1
        else re.sub(r"\W+", "_", address.removeprefix("tcp://")): address
        for address, port in zip(addresses, ports, strict=True)
    }
