"""The setting of a live stream, followed in the configuration file while the service runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from stddaq.config.live_streams import LiveStreamSetting
from stddaq.config.model import DetectorConfig, read_file
from stddaq.config.watch import ConfigWatch
from stddaq.daemon.config_loading import validation_in_process
from stddaq.errors import ConfigError
from stddaq.text import mismatch, shown
from stddaq.wire.zmtp import PUB, PUSH, SocketKind

if TYPE_CHECKING:
    from concurrent.futures import Future


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
    """The setting of one address in the configuration file, which is validated beside the stream.

    Attributes:
        current: the last valid setting.
    """

    def __init__(
        self,
        path: Path,
        address: str,
        config: DetectorConfig,
        validation: Callable[[bytes, str], Future[DetectorConfig]] = validation_in_process,
    ) -> None:
        """`config` is the content of `path` so far. Raise `ConfigError` if it does not have the address."""
        self._watch, self._path, self._address = ConfigWatch(path), path, address
        self._text, self._validation = config.text, validation
        self._started: Future[DetectorConfig] | None = None
        self.current = setting_at(config, address, path)

    def poll(self, check: Callable[[LiveStreamSetting], None] = lambda _: None) -> bool:
        """Return whether `current` has changed. Raise `ConfigError`, once for each invalid change.

        `check` raises it for a setting that this stream cannot have.
        """
        if self._started is None and self._watch.has_changed():
            text = read_file(self._path)
            if text != self._text:
                self._started = self._validation(text, str(self._path))
        if self._started is None or not self._started.done():
            return False
        ended, self._started = self._started, None
        config = ended.result()
        self._text = config.text
        setting = setting_at(config, self._address, self._path)
        if setting == self.current:
            return False
        check(setting)
        self.current = setting
        return True
