"""The writing services: the driver, its writers, and the metadata writers."""
