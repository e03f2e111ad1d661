"""The configuration service `stddaq-rest`: configuration files, HDF5 files and simulators over HTTP.

`service` is the daemon, `app` the application, `routes` the paths, `live` what browsers follow over
WebSockets, `dashboard` the files of the page. HTTP status codes occur in `app`,
`guard` and `routes` only; everything else raises domain errors.
"""
