"""What the source of the random-harm tests published, and what the live stream shows of it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import zmq
from support.peers.chaos_source import GOOD, RECORD, publication_of

from stddaq.closing import Closing
from stddaq.wire.array10 import decode


@dataclass(frozen=True, slots=True)
class Finding:
    """A broken promise. Kind `wrong`: a bad image was called good, which is severity A."""

    kind: str
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.text}"


class Findings(list[Finding]):
    """The findings of an episode. `where` names its current run."""

    where = ""

    def note(self, kind: str, text: str) -> None:
        """Add a finding of the current run."""
        self.append(Finding(kind, self.where, text))

    def note_wrong(self, what: str, faults: Sequence[str | None]) -> None:
        """Add one finding for all images that are wrongly called good."""
        wrong = [fault for fault in faults if fault is not None]
        if wrong:
            self.note("wrong", f"{what}: {len(wrong)} images, the first: {wrong[0]}; the last: {wrong[-1]}")


class Truth:
    """All publications of the sources: serial number -> (image id, status)."""

    def __init__(self, log: Path) -> None:
        self._log, self._position = log, 0
        self.published: dict[int, tuple[int, int]] = {}

    def read(self) -> None:
        """Read new entries of the log."""
        if not self._log.exists():
            return
        with self._log.open("rb") as file:
            file.seek(self._position)
            content = file.read()
        whole = len(content) // RECORD.size * RECORD.size
        self._position += whole
        for serial, image_id, status in RECORD.iter_unpack(content[:whole]):
            self.published[serial] = image_id, status

    def fault(self, image_id: int, publication: tuple[int, int] | None) -> str | None:
        """Return what is wrong with an image that is called good, or None."""
        if publication is None:
            return f"image {image_id}: good with pixels of no image"
        serial, stamped = publication
        if stamped != image_id:
            return f"image {image_id}: good with the pixels of image {stamped} (publication {serial})"
        if self.published.get(serial) is None:
            return f"image {image_id}: publication {serial} was never made"
        found_id, status = self.published[serial]
        if found_id != image_id:
            return f"image {image_id}: publication {serial} had the id {found_id}"
        return None if status == GOOD else f"image {image_id}: good, published as damaged"


class Viewer(Closing):
    """A subscriber of the live stream in a thread, which notes every good image."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.subscribe(b"")
        self._socket.connect(address)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._seen: list[tuple[int, tuple[int, int] | None]] = []
        self._thread.start()

    def _work(self) -> None:
        while not self._ended.is_set():
            if self._socket.poll(50):
                message = decode(self._socket.recv_multipart())
                if message.status is None:
                    self._seen.append((message.image_id, publication_of(message.pixels)))

    def take(self) -> list[tuple[int, tuple[int, int] | None]]:
        """Return (announced id, publication of the pixels) of the good images since the last call."""
        n = len(self._seen)
        seen, self._seen[:n] = self._seen[:n], []
        return seen

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._context.destroy(linger=0)
