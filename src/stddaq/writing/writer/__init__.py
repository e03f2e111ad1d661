"""The writers: images, and the metadata of each detector type, into HDF5 files."""
