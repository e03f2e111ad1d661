"""The detector configuration: one JSON file, the start-up argument of every service."""

from stddaq.config.model import DetectorConfig

__all__ = ["DetectorConfig"]
