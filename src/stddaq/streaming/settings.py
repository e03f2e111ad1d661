"""The setting of a live stream, followed in the configuration file while the service runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stddaq.config import DetectorConfig
from stddaq.config.live_streams import LiveStreamSetting
from stddaq.config.watch import ConfigWatch
from stddaq.errors import ConfigError
from stddaq.text import mismatch, shown
from stddaq.wire.zmtp import PUB, PUSH, SocketKind


def setting_at(config: DetectorConfig, address: str, path: Path) -> LiveStreamSetting:
    """Return the setting of an address. Raise `ConfigError` if the configuration has none."""
    setting = config.live_stream_configs.get(address)
    if setting is None:
        known = ", ".join(config.live_stream_configs) or "none"
        raise ConfigError(
            mismatch(f"{path}: live_stream_configs", f"one of its addresses: {known}", shown(address))
        )
    return setting


def socket_kind(setting: LiveStreamSetting) -> SocketKind:
    """Return the kind of socket of a setting."""
    return PUSH if setting.socket == "push" else PUB


class FollowedSetting:
    """The setting of one address in the configuration file.

    Attributes:
        current: the last valid setting.
    """

    def __init__(self, path: Path, address: str, current: LiveStreamSetting) -> None:
        self._watch, self._path, self._address = ConfigWatch(path), path, address
        self.current = current

    def poll(self, check: Callable[[LiveStreamSetting], None] = lambda _: None) -> bool:
        """Return whether `current` has changed. Raise `ConfigError`, once for each invalid change.

        `check` raises it for a setting that this stream cannot have.
        """
        config = self._watch.poll()
        if config is None:
            return False
        setting = setting_at(config, self._address, self._path)
        if setting == self.current:
            return False
        check(setting)
        self.current = setting
        return True
