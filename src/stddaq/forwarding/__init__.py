"""Forwarding: the images of one server appear in the ring buffer and the metadata stream of another."""
