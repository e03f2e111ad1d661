"""Cameras that send bsread messages: the receiver, and a simulated camera server."""
