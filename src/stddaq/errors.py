"""The exceptions of stddaq.

Every message says, in one line, where, what was expected, and what was found.
"""

from collections.abc import Sequence


class StdDaqError(Exception):
    """Base of all errors that stddaq raises on purpose."""


class ConfigError(StdDaqError, ValueError):
    """The configuration file, or an argument, cannot be used.

    Attributes:
        mistakes: each of them on its own, without the name of the file; at least one.
    """

    def __init__(self, message: str, mistakes: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.mistakes = tuple(mistakes) or (message,)


class GeometryError(StdDaqError, ValueError):
    """A shared-memory segment does not have the geometry of the configuration, or cannot be opened."""


class EndpointError(StdDaqError, OSError):
    """A socket cannot be bound or named as the configuration asks."""


class FileLayoutError(StdDaqError, ValueError):
    """An HDF5 file is missing, short, or does not have the layout of a raw, metadata or master file."""


class SourceError(StdDaqError, RuntimeError):
    """A source of images (simulator, replay) cannot deliver the requested images."""


class CompressionError(StdDaqError):
    """A compressed image cannot be decoded, or not be made as requested."""


class OutputExistsError(StdDaqError, FileExistsError):
    """A file to be created exists already and may not be replaced."""
