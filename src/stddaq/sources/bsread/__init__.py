"""Cameras that send their images as bsread messages: the receiver, and a simulated camera server."""
