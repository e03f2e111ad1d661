"""The domain errors of the configuration service. `app` maps them to HTTP statuses."""

from __future__ import annotations

from stddaq.errors import StdDaqError


class RequestInvalidError(StdDaqError, ValueError):
    """A value in a request cannot be used."""


class UnknownDetectorError(StdDaqError, LookupError):
    """The service has no configuration of this detector."""


class PathForbiddenError(StdDaqError, PermissionError):
    """A path leads out of the roots, or the file system denies access to it."""


class PathNotFoundError(StdDaqError, FileNotFoundError):
    """A path below the roots does not exist."""


class FileAccessError(StdDaqError, OSError):
    """The file system failed while a file was read or made."""


class QueueFullError(StdDaqError, RuntimeError):
    """Too many requests for files are waiting."""


class ImageNotHeldError(StdDaqError, LookupError):
    """The ring buffer no longer has an image, or the image was never sent to browsers."""


class PreviewAbsentError(StdDaqError, ConnectionError):
    """The preview service is not running."""


class TooOftenError(StdDaqError, RuntimeError):
    """A costly request came too soon after the last one."""
