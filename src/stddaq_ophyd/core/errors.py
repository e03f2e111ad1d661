"""What can fail while images are acquired, each as a type of its own."""

from __future__ import annotations

from stddaq.errors import StdDaqError


class AcquisitionError(StdDaqError, RuntimeError):
    """Images could not be recorded as asked; the message names device, images, directory and driver."""


class AcquisitionStoppedError(AcquisitionError):
    """The device was stopped (abort, halt, `stop()`) before its images were recorded."""


class StreamsMixedError(AcquisitionError):
    """Images of one stream were published as images of another."""


class SettingError(AcquisitionError, ValueError):
    """A value is not allowed for a setting of a device."""
