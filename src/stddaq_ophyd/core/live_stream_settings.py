"""The settings of live streams in the configuration of a detector: read, applied, confirmed.

The configuration service writes a setting into the detector's configuration, and std_live_stream follows it
while it runs, without disconnecting its viewers.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from stddaq.client import ConfigChangedError, ConfigClient
from stddaq.config.live_streams import LiveStreamSetting
from stddaq.config.schema import live_stream_setting
from stddaq.errors import StdDaqError
from stddaq.text import mismatch
from stddaq.validation import expectation

KEY = "live_stream_configs"
# Another client may change the configuration at the same time.
MAX_ATTEMPTS = 5


class LiveStreamSettingError(StdDaqError, ValueError):
    """A value is not a setting of a live stream, or the configuration has no such live stream."""


class LiveStreamSettings:
    """Reads and applies the settings of a configuration. Safe from any thread; its methods block."""

    def __init__(self, url: str, detector: str | None) -> None:
        """`url` is that of the configuration service; `detector` names one of several detectors."""
        self._client = ConfigClient(url, detector=detector)
        self._guard = threading.Lock()

    def addresses(self) -> list[str]:
        """Return the configured addresses. Raises the errors of `ConfigClient`."""
        return list(self._client.get().get(KEY, {}))

    def read(self, wanted: Mapping[str, str]) -> list[LiveStreamSetting]:
        """Return the settings in force, of the addresses by the name that messages have for each.

        Raises `LiveStreamSettingError` and the errors of `ConfigClient`.
        """
        configured = self._client.get().get(KEY, {})
        for where, address in wanted.items():
            if address not in configured:
                raise LiveStreamSettingError(
                    mismatch(where, f"an address of {KEY} ({', '.join(configured)})", address)
                )
        return [live_stream_setting(configured[address]) for address in wanted.values()]

    def apply(self, where: str, address: str, setting: LiveStreamSetting) -> None:
        """Write a setting into the configuration, and confirm it.

        Raises `LiveStreamSettingError`, `ConfigChangedError`, and the other errors of `ConfigClient`.
        """
        wanted = {"type": setting.type, "config": list(setting.config)}
        with self._guard:
            for attempt in range(MAX_ATTEMPTS):
                config = self._client.get()
                if address not in config.get(KEY, {}):
                    raise LiveStreamSettingError(mismatch(where, f"an address of {KEY}", address))
                config[KEY][address] = config[KEY][address] | wanted
                try:
                    self._client.set(config)
                    break
                except ConfigChangedError:
                    if attempt == MAX_ATTEMPTS - 1:
                        raise
            found = self._client.get()[KEY].get(address)
        if found is None or {key: found.get(key) for key in wanted} != wanted:
            raise LiveStreamSettingError(mismatch(f"{where}: {address}", str(wanted), str(found)))


def parsed_setting(where: str, value: object) -> LiveStreamSetting:
    """Return the setting that `value` means. Raises `LiveStreamSettingError` that names `where`."""
    if isinstance(value, str):
        kind, *numbers = value.split() or [""]
        value = kind, [_number(where, text) for text in numbers]
    if isinstance(value, Mapping):
        value = value.get("type"), value.get("config", [])
    if not (isinstance(value, Sequence) and len(value) == 2):
        raise LiveStreamSettingError(mismatch(where, "a setting like ('periodic', [1, 5])", repr(value)))
    kind, config = value
    try:
        return live_stream_setting({"type": kind, "config": list(config)})
    except ValidationError as error:
        expected = expectation(error.errors(include_url=False)[0])
    except TypeError:
        expected = "a list of numbers"
    raise LiveStreamSettingError(mismatch(where, expected, f"{kind!r} {config!r}"))


def _number(where: str, text: str) -> int | float:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    raise LiveStreamSettingError(mismatch(where, "a number", repr(text)))


def attribute_names(addresses: Sequence[str]) -> dict[str, str]:
    """Return the address of each attribute name: `port_<number>`, or the whole address for shared ports."""
    ports = [address.rpartition(":")[2] for address in addresses]
    return {
        f"port_{port}"
        if ports.count(port) == 1
        else re.sub(r"\W+", "_", address.removeprefix("tcp://")): address
        for address, port in zip(addresses, ports, strict=True)
    }
