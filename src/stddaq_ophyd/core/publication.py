"""Turn images that are ready into documents, and show exactly those in published images files.

Each stream of each Bluesky run has a published images file, so that its images count from 0. A RunEngine
pause discards documents that were collected and not emitted; their images are removed from the file before
the next ones are added, and stay in the raw files as orphans.
"""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from stddaq.errors import FileLayoutError
from stddaq.files.growing_run import Images
from stddaq.files.published_images import PublishedImagesFile, published_images_name
from stddaq.text import mismatch
from stddaq_ophyd.core.documents import Composer, Document, Documents, ImageSource
from stddaq_ophyd.core.errors import AcquisitionError, StreamsMixedError
from stddaq_ophyd.core.paths import PathInfo
from stddaq_ophyd.core.scalars import Scalars


@dataclass(slots=True)
class Point:
    """The images of one point, and the event that they were published as.

    Attributes:
        is_live: whether the raw files may still grow.
        scalars: what was wanted of the images.
    """

    images: Images
    is_live: bool
    scalars: Scalars | None = None
    stream: PublishedStream | None = None
    event: int = 0


class PublishedStream:
    """One stream: its file of published images and the composer of its documents."""

    def __init__(self, file: PublishedImagesFile, composer: Composer, images_per_event: int) -> None:
        self.file, self.composer, self.images_per_event = file, composer, images_per_event

    @property
    def n_discarded(self) -> int:
        """Return the number of images in the file whose documents were not emitted."""
        return self.file.n_images - self.composer.n_published * self.images_per_event

    def publish(self, images: Images, others: Set[str], *, live: bool) -> list[Document]:
        """Show `images` after those of the published events, and return their documents.

        `others` are the descriptors of other streams.
        """
        self.withdraw(others)
        n_events = self.composer.n_published + len(images) // self.images_per_event
        self.file.extend(images)
        self.file.write(live=live)
        return list(self.composer.compose(n_events, images))

    def withdraw(self, others: Set[str]) -> None:
        """Remove images whose documents a RunEngine pause discarded. Raises `StreamsMixedError`."""
        self.composer.check_stream(others)
        self.file.truncate(self.composer.n_published * self.images_per_event)

    def close(self, others: Set[str]) -> None:
        """Write the file a last time, without discarded images; remove it when nothing was published."""
        try:
            self.withdraw(others)
        finally:
            if self.file.n_images:
                self.file.write(live=False)
            else:
                self.file.path.unlink(missing_ok=True)


class Publication:
    """All streams of one staging. Not thread-safe; its methods raise `AcquisitionError`.

    Attributes:
        paths: where the published images files go.
    """

    def __init__(self, device: str, paths: PathInfo, data_key: str, documents: Documents) -> None:
        """`device` begins every message; `data_key` is the name of the images in the event descriptor."""
        self.paths = paths
        self._device, self._data_key, self._documents = device, data_key, documents
        self._streams: list[PublishedStream] = []
        # The stream of the newest point.
        self._newest: PublishedStream | None = None
        self._by_name: dict[str, PublishedStream] = {}
        # Images per event of the streams that were described, and whose first images come next, by name.
        self._expected: dict[str, int] = {}

    @property
    def files(self) -> tuple[Path, ...]:
        """Return the published images files."""
        return tuple(stream.file.path for stream in self._streams)

    def move_to(self, paths: PathInfo) -> None:
        """Put the files elsewhere. Nothing was published yet."""
        assert not self._streams
        self.paths = paths

    def expect_new_stream(self, images_per_event: int, name: str = "") -> None:
        """Start a new file with the next images of stream `name`: they belong to another stream, or run.

        Its events were described with `images_per_event`.
        """
        self._expected[name] = images_per_event

    def prepare_point(self, n_images: int) -> None:
        """Make the file of the next point while its images come, as far as it is known. Does not raise."""
        stream = self._newest
        if stream is not None and not stream.n_discarded and n_images == stream.images_per_event:
            stream.file.prepare(n_images)

    def withdraw_point(self, point: Point) -> None:
        """Forget that `point` was published; its documents are not emitted."""
        if point.stream is not None:
            point.stream.composer.withdraw(point.event)
            point.stream = None

    def is_published(self, point: Point) -> bool:
        """Return whether documents of `point` were emitted, or can no longer be withdrawn."""
        return point.stream is not None and point.event < point.stream.composer.n_published

    def publish_point(self, point: Point, name: str = "") -> list[Document]:
        """Return documents of `point` in the stream `name`, or none when they were emitted before.

        Without a name the images continue the stream of those before.
        """
        stream = self._stream(name, len(point.images), point.images, point.is_live)
        event = stream.composer.n_published
        if point.stream is stream and self.is_published(point):
            return []
        point.stream, point.event = stream, event
        self._newest = stream
        return self._publish(stream, point.images, live=point.is_live)

    def publish_events(
        self, images: Images, images_per_event: int, *, live: bool, name: str = ""
    ) -> tuple[PublishedStream, list[Document]]:
        """Return the stream of the next events of a flight, and documents, which cannot be made again."""
        stream = self._stream(name, images_per_event, images, live)
        if stream.n_discarded:
            # The images that follow would take their places.
            raise AcquisitionError(
                f"{self._device}: documents of {stream.n_discarded} images of a flight were collected and "
                "not emitted; the flight cannot continue"
            )
        return stream, self._publish(stream, images, live=live)

    def close(self) -> list[AcquisitionError]:
        """Write all files a last time, and return what failed. Does not raise."""
        errors = []
        for stream in self._streams:
            try:
                stream.close(self._descriptors_of_others(stream))
            except (StreamsMixedError, FileLayoutError, OSError) as error:
                errors.append(AcquisitionError(f"{self._device}: {error}"))
        return errors

    def _descriptors_of_others(self, stream: PublishedStream) -> Set[str]:
        return {uid for other in self._streams if other is not stream for uid in other.composer.descriptors}

    def _publish(self, stream: PublishedStream, images: Images, *, live: bool) -> list[Document]:
        try:
            return stream.publish(images, self._descriptors_of_others(stream), live=live)
        except (StreamsMixedError, FileLayoutError) as error:
            raise AcquisitionError(f"{self._device}: {error}") from error

    def _stream(self, name: str, images_per_event: int, images: Images, live: bool) -> PublishedStream:
        """Return the stream to continue, or a new one."""
        last = self._by_name.get(name)
        described = self._expected.pop(name, None)
        is_new = last is None or (described is not None and last.composer.n_published > 0)
        if described is None and last is not None:
            described = last.images_per_event
        if described is not None and described != images_per_event:
            raise AcquisitionError(
                mismatch(
                    self._device,
                    f"{described} images per event, as this stream was described",
                    str(images_per_event),
                    "images_per_event changed in the middle of a stream",
                )
            )
        return self._open(name, images_per_event, images, live) if last is None or is_new else last

    def _open(self, name: str, images_per_event: int, images: Images, live: bool) -> PublishedStream:
        raw = images.raw_files[0]
        file_name = published_images_name(self.paths.prefix, len(self._streams))
        source = ImageSource(
            data_key=self._data_key,
            path=self.paths.read_directory / file_name,
            images_per_event=images_per_event,
            event_bytes=images_per_event * raw.dtype.itemsize * math.prod(raw.image_shape),
            swmr=live,
            number_of_writers=len(images.raw_files),
            raw_files=f"{raw.path.name.removesuffix('0.h5')}{{writer}}.h5",
        )
        stream = PublishedStream(
            PublishedImagesFile(source.path), self._documents.composer(source), images_per_event
        )
        self._streams.append(stream)
        self._by_name[name] = stream
        return stream
