"""Live streams: send images to viewers over TCP, as array-1.0 or bsread."""
