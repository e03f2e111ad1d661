"""The detector configuration: one JSON file, the first argument of every service."""

from stddaq.config.model import DetectorConfig, PixelType

__all__ = ["DetectorConfig", "PixelType"]
