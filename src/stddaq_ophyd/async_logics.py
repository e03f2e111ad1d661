"""The hooks of ophyd-async, which lead to the methods of the device."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from bluesky.protocols import StreamAsset
from event_model import DataKey
from ophyd_async.core import DetectorAcquireLogic, DetectorDataLogic, StreamableDataProvider

if TYPE_CHECKING:
    from stddaq_ophyd.async_detector import AsyncStdDaqDetector


class AcquireLogic(DetectorAcquireLogic):
    """Takes images, and waits for them."""

    def __init__(self, detector: AsyncStdDaqDetector) -> None:
        self._detector = detector

    async def start_acquiring(self) -> None:
        await self._detector.start_taking()

    async def wait_for_idle(self) -> None:
        await self._detector.finish_taking()

    async def ensure_stopped(self) -> None:
        """Do nothing: closing the run stops the camera."""


class ImageLogic(DetectorDataLogic):
    """Opens and closes driver runs."""

    def __init__(self, detector: AsyncStdDaqDetector) -> None:
        self._detector = detector

    async def prepare_unbounded(self, datakey_name: str) -> StreamableDataProvider:
        await self._detector.open_run()
        return _Images(self._detector)

    async def stop(self) -> None:
        await self._detector.close_run()


class _Images(StreamableDataProvider):
    def __init__(self, detector: AsyncStdDaqDetector) -> None:
        self._detector = detector
        self.collections_written_signal = detector.n_ready

    async def make_datakeys(self, collections_per_event: int) -> dict[str, DataKey]:
        return self._detector.data_keys(collections_per_event)

    async def make_stream_docs(
        self, collections_written: int, collections_per_event: int
    ) -> AsyncIterator[StreamAsset]:
        for document in await self._detector.documents(collections_written):
            yield document
