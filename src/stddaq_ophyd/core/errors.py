"""What can go wrong while images are acquired for a plan, each as a type of its own."""

from __future__ import annotations

from stddaq.errors import StdDaqError


class AcquisitionError(StdDaqError):
    """Images could not be recorded as asked; the message names device, images, directory and driver."""


class AcquisitionStoppedError(AcquisitionError):
    """Somebody stopped the device (abort, halt, `stop()`) before the images were there."""


class StreamsMixedError(AcquisitionError):
    """Images of one stream were told of as images of another."""
