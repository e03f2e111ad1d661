"""Sources: they put images into the ring buffer and announce them on the metadata stream."""
