"""The driver: takes commands over a WebSocket and distributes the images of a run over the writers."""
