"""The configuration service `stddaq-rest`: configuration files, HDF5 files and simulators over HTTP."""
