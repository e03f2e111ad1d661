"""The data plane: ring buffers of images in shared memory, and the metadata streams that announce them."""
