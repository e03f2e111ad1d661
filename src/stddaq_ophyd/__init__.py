"""Bluesky devices for the std_daq services, with their plans and the handlers of their documents.

Make a detector::

    from stddaq_ophyd import StdDaqDetector

    det = StdDaqDetector("ws://127.0.0.1:8080", name="det", paths="/data")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stddaq_ophyd.async_detector import AsyncStdDaqDetector
    from stddaq_ophyd.async_live_stream import AsyncLiveStreams
    from stddaq_ophyd.camera import SimulatedCamera
    from stddaq_ophyd.core.camera import Camera, Exposure
    from stddaq_ophyd.core.errors import AcquisitionError, AcquisitionStoppedError, SettingError
    from stddaq_ophyd.core.live_stream_settings import LiveStreamSettingError
    from stddaq_ophyd.core.paths import DirectoryPaths, PathInfo, PathProvider
    from stddaq_ophyd.core.simulated_camera import SimulatorCamera
    from stddaq_ophyd.detector import StdDaqDetector
    from stddaq_ophyd.live_stream import LiveStreamAddress, LiveStreams

# Loaded on first use: readers of files do without ophyd, devices of one framework without the other.
_MODULES = {
    "AcquisitionError": "core.errors",
    "AcquisitionStoppedError": "core.errors",
    "AsyncLiveStreams": "async_live_stream",
    "AsyncStdDaqDetector": "async_detector",
    "Camera": "core.camera",
    "DirectoryPaths": "core.paths",
    "Exposure": "core.camera",
    "LiveStreamAddress": "live_stream",
    "LiveStreamSettingError": "core.live_stream_settings",
    "LiveStreams": "live_stream",
    "PathInfo": "core.paths",
    "PathProvider": "core.paths",
    "SettingError": "core.errors",
    "SimulatedCamera": "camera",
    "SimulatorCamera": "core.simulated_camera",
    "StdDaqDetector": "detector",
}

__all__ = [
    "AcquisitionError",
    "AcquisitionStoppedError",
    "AsyncLiveStreams",
    "AsyncStdDaqDetector",
    "Camera",
    "DirectoryPaths",
    "Exposure",
    "LiveStreamAddress",
    "LiveStreamSettingError",
    "LiveStreams",
    "PathInfo",
    "PathProvider",
    "SettingError",
    "SimulatedCamera",
    "SimulatorCamera",
    "StdDaqDetector",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
