"""Devices of the std_daq services for BEC, the beamline and experiment control of PSI.

A configuration names `stddaq_bec.camera.StdDaqCamera` as `deviceClass`. BEC imports this package to find its
devices, so it imports nothing itself.
"""
