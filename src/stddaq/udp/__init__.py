"""Detectors that send UDP packets: receivers of modules, converters, and the module synchroniser."""
