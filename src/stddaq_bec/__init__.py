"""Devices of the std_daq services for BEC, the beamline and experiment control of PSI.

BEC loads devices only from ophyd and from the plugin repository of the beamline, so a module of that imports
`stddaq_bec.camera.StdDaqCamera`. This package declares no plugin, because BEC refuses a second one.
"""
