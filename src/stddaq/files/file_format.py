"""The versions of HDF5's file format that all files of stddaq use."""

from __future__ import annotations

from h5py import h5f, h5p  # pyright: ignore[reportAttributeAccessIssue]

# The lowest and the highest version. Every HDF5 since 1.10 reads files of 1.10, the first with SWMR and
# virtual datasets. In files of the "latest" format of HDF5 2.0 older ones find no metadata, or refuse the
# master file. A lower bound would store progressions of rows as lists of all rows, which HDF5 opens in
# quadratic time (10^4 rows: 1 s).
FILE_FORMAT = ("v110", "v110")


def new_file_access() -> h5p.PropFAID:
    """Return the properties of new files for h5py's low-level interface: in this format, without locks."""
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_libver_bounds(h5f.LIBVER_V110, h5f.LIBVER_V110)
    access.set_file_locking(False, ignore_when_disabled=False)
    # With the file, everything in it is closed.
    access.set_fclose_degree(h5f.CLOSE_STRONG)
    return access
