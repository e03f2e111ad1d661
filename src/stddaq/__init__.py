"""std_daq, the data acquisition of the Paul Scherrer Institute, in Python.

Detectors and cameras put images into a shared-memory ring buffer; this package simulates such
sources, distributes their images over parallel writers, and writes them to HDF5.
"""

__version__ = "0.1.0"
