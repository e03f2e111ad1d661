"""Compressed images of ring buffers, decoded whatever compresses them."""

from __future__ import annotations

import numpy as np

from stddaq.wire.compression import Buffer, decompress_bitshuffle_lz4_into
from stddaq.wire.std_daq import image_metadata_pb2 as pb


def decompress_image_into(compression: int, image: Buffer, pixels: np.ndarray) -> None:
    """Decode an image of an `ImageMetadataCompression` other than `none` into `pixels`, C-contiguous.

    Release the GIL. Raise `CompressionError`; the array then has undefined content.
    """
    if compression == pb.h5bitshuffle_lz4:
        decompress_bitshuffle_lz4_into(image, pixels)
        return
    # Slow to import, and most services do not need it.
    from stddaq.wire.blosc2_chunk import decompress_chunk_into

    decompress_chunk_into(image, pixels)
