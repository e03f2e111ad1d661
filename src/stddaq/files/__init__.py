"""The HDF5 files of a run: raw files, metadata file, master file. Knows no sockets."""
