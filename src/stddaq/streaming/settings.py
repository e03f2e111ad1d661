"""The setting of a live stream, followed in the configuration file while the service runs."""

from __future__ import annotations

from pathlib import Path

from stddaq.config import DetectorConfig
from stddaq.config.live_streams import LiveStreamSetting
from stddaq.errors import ConfigError
from stddaq.text import shown

_Signature = tuple[int, int, int] | None


def setting_at(config: DetectorConfig, address: str, path: Path) -> LiveStreamSetting:
    """The setting of an address. Raises `ConfigError` when the configuration has none."""
    setting = config.live_stream_configs.get(address)
    if setting is None:
        known = ", ".join(config.live_stream_configs) or "none"
        raise ConfigError(
            f"{path}: live_stream_configs: found no entry for {shown(address)}, "
            f"allowed are the addresses given there: {known}"
        )
    return setting


class FollowedSetting:
    """Looks at the configuration file now and then.

    Attributes:
        current: the setting that holds; the last good one.
    """

    def __init__(self, path: Path, address: str, current: LiveStreamSetting) -> None:
        self._path, self._address = path, address
        self.current = current
        self._seen: _Signature = None
        # What `current` was read from may have been replaced since.
        self._read: _Signature = (0, 0, 0)

    def look(self) -> bool:
        """Whether there is another setting now. Raises `ConfigError`, once, for a change that is bad.

        A file is read when it was the same at two looks, so that whoever writes it has finished.
        """
        signature = self._signature()
        if signature == self._read or signature != self._seen:
            self._seen = signature
            return False
        self._read = signature
        setting = setting_at(DetectorConfig.load(self._path), self._address, self._path)
        changed, self.current = setting != self.current, setting
        return changed

    def _signature(self) -> _Signature:
        # Of what the file is, not when we looked: a file put in place by a rename has another inode.
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino
