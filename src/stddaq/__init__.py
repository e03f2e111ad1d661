"""std_daq, the data acquisition of the Paul Scherrer Institute, in Python.

Detectors and cameras put images into a shared-memory ring buffer; this package simulates such
sources, distributes their images over parallel writers, and writes them to HDF5.
"""


def __getattr__(name: str) -> str:
    """Look up `stddaq.__version__` on first use: importlib.metadata costs more than this import."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    return version("stddaq")
