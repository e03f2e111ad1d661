"""The exceptions of stddaq. Every message says what was found, what is allowed, and where."""


class StdDaqError(Exception):
    """Base of all errors that stddaq raises on purpose."""


class ConfigError(StdDaqError):
    """The configuration file, or an argument, cannot be used."""


class GeometryError(StdDaqError):
    """A shared-memory segment exists with another geometry than the configuration's."""


class EndpointError(StdDaqError):
    """A socket cannot be bound or named as the configuration asks."""


class FileLayoutError(StdDaqError):
    """An HDF5 file is missing, short, or not laid out as the raw, metadata or master file it should be."""


class SourceError(StdDaqError):
    """A source of images (simulator, replay) cannot deliver what was asked for."""


class OutputExistsError(StdDaqError):
    """A file that is to be made exists already, and may not be replaced."""
