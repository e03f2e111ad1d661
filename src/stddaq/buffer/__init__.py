"""The image buffer: a writer that stores every image for hours, and a reader and driver that replay them."""
