"""The paths of the service by subject; each module has a function `router`."""
