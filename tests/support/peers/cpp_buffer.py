"""A stand-in for std_daq's own image buffer (C++), which keeps to its files and keys, and to its faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from support.processes.recording import Image

from stddaq.wire.std_daq import image_buffer_pb2 as pb
from stddaq.wire.std_daq import image_metadata_pb2 as images_pb

PARAMETERS: Any = {
    "codec": blosc2.Codec.BLOSCLZ,
    "clevel": 5,
    "filters": [*[blosc2.Filter.NOFILTER] * 5, blosc2.Filter.BITSHUFFLE],
    "nthreads": 1,
}


class CppBuffer:
    """Stores and reads images. Another one is a restarted writer: its offsets start at 0 again."""

    def __init__(self, directory: Path, client: Any, camera: str) -> None:
        """`directory` is that of the camera, `client` a connection to Redis."""
        self._directory, self._client, self._camera = directory, client, camera
        self._file, self._offset = Path(), 0

    def path(self, image_id: int) -> Path:
        return self._directory / f"{image_id // 1000000}000000" / f"{image_id // 1000}000.dat"

    def store(self, *images: Image) -> None:
        for image in images:
            path = self.path(image.image_id)
            if path != self._file:
                self._file, self._offset = path, 0
            path.parent.mkdir(parents=True, exist_ok=True)
            options = blosc2.CParams(**PARAMETERS, typesize=image.pixels.itemsize)
            compress: Any = blosc2.compress2  # Its annotations lack the type of the options.
            chunk = compress(image.pixels, cparams=options)
            with path.open("ab") as file:
                file.write(chunk)
            height, width = image.pixels.shape
            metadata = images_pb.ImageMetadata(
                image_id=image.image_id,
                height=height,
                width=width,
                size=len(chunk),
                dtype=images_pb.uint16,
                status=images_pb.good_image,
                compression=images_pb.blosc2,
            )
            value = pb.BufferedMetadata(metadata=metadata, offset=self._offset).SerializeToString()
            self._offset += len(chunk)
            key = f"camera:{self._camera}:{image.image_id}"
            self._client.set(key, value)
            self._client.expire(key, 3600)
            self._client.zadd(f"camera:{self._camera}:ids", {str(image.image_id): image.image_id})

    def read(self, image_id: int) -> np.ndarray:
        """Return an image, as a program reads it that knows nothing of extensions."""
        record = pb.BufferedMetadata.FromString(self._client.get(f"camera:{self._camera}:{image_id}"))
        with self.path(image_id).open("rb") as file:
            file.seek(record.offset)
            content = file.read(record.metadata.size)
        pixels = np.empty((record.metadata.height, record.metadata.width), "<u2")
        blosc2.decompress2(content, dst=pixels.reshape(-1).view(np.uint8))
        return pixels
