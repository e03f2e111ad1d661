"""The versions of HDF5's file format that all files of stddaq use."""

# The lowest and the highest version. Every HDF5 since 1.10 reads files of 1.10, the first with SWMR and
# virtual datasets. In files of the "latest" format of HDF5 2.0 older ones find no metadata, or refuse the
# master file. A lower bound would store progressions of rows as lists of all rows, which HDF5 opens in
# quadratic time (10^4 rows: 1 s).
FILE_FORMAT = ("v110", "v110")
