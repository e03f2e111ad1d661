"""Copies of runs that other programs open without the raw files: `export_run` in one of several formats.

`export_run` is in `run`; `source` reads the images, and each format has a writer: `hdf5`, `tiff`, `zarr`.
"""
