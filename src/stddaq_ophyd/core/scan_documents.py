"""Collect the documents of a tomography scan: which images are darks, flats and projections, at which angles.

The scan has the streams "darks", "flats" and "primary", whose events have the angle. It may use any of the
documents of `core.documents` that reference published images files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from stddaq.errors import FileLayoutError
from stddaq.files.nxtomo import ImageKey
from stddaq.text import mismatch

DARKS, FLATS, PROJECTIONS = "darks", "flats", "primary"
_KEYS = {DARKS: ImageKey.dark, FLATS: ImageKey.flat, PROJECTIONS: ImageKey.projection}
# Their resource is a published images file; that of STDDAQ_RAW is not.
_SPECS = ("AD_HDF5", "STDDAQ_PUBLISHED")


@dataclass(slots=True)
class ScannedImages:
    """Images of a published images file: by their place in it, `ImageKey` and angle in degrees."""

    path: Path
    images_per_event: int
    keys: dict[int, ImageKey] = field(default_factory=dict)
    angles: dict[int, float] = field(default_factory=dict)

    def add(self, event: int, key: ImageKey, angle: float) -> None:
        """Add the images of an event, which counts from 0."""
        first = event * self.images_per_event
        for place in range(first, first + self.images_per_event):
            self.keys[place], self.angles[place] = key, angle


class ScanDocuments:
    """Collects the documents of one scan. It is a callback of a RunEngine."""

    def __init__(self) -> None:
        self.start: dict[str, Any] = {}
        self._streams: dict[str, str] = {}
        # The name of the angle in the events of each descriptor.
        self._fields: dict[str, str] = {}
        # By number of the event in its stream, from 1.
        self._angles: dict[int, float] = {}
        self._resources: dict[str, Mapping[str, Any]] = {}
        self._stream_data: list[Mapping[str, Any]] = []
        self._data: dict[str, Mapping[str, Any]] = {}
        # Stream and number of the event of each Datum.
        self._events: dict[str, tuple[str, int]] = {}

    def __call__(self, name: str, document: Mapping[str, Any]) -> None:
        """Take a document. Those of other runs within the scan are not expected."""
        match name:
            case "start":
                self.start = dict(document)
            case "descriptor":
                self._streams[document["uid"]] = document.get("name", "")
                self._fields[document["uid"]] = self._field_of_angle(document)
            case "event":
                self._take_event(document)
            case "event_page":
                for i, number in enumerate(document["seq_num"]):
                    data = {key: values[i] for key, values in document["data"].items()}
                    self._take_event({"descriptor": document["descriptor"], "seq_num": number, "data": data})
            case "resource" | "stream_resource":
                self._resources[document["uid"]] = document
            case "stream_datum":
                self._stream_data.append(document)
            case "datum":
                self._data[document["datum_id"]] = document

    def _field_of_angle(self, descriptor: Mapping[str, Any]) -> str:
        motor = next(iter(self.start.get("motors") or ()), "")
        hinted = descriptor.get("hints", {}).get(motor, {}).get("fields", ())
        return next(iter([*hinted, *descriptor.get("object_keys", {}).get(motor, ())]), "")

    def _take_event(self, event: Mapping[str, Any]) -> None:
        uid, number, data = event["descriptor"], event["seq_num"], event["data"]
        stream, angle = self._streams.get(uid, ""), data.get(self._fields.get(uid, ""))
        if stream == PROJECTIONS and angle is not None:
            self._angles[number] = float(angle)
        for value in data.values():
            if isinstance(value, str):
                self._events[value] = stream, number

    def images(self) -> dict[str, list[ScannedImages]]:
        """Return the published images files of each detector, in the order of their documents.

        Raise `FileLayoutError` for a projection without an angle.
        """
        found: dict[str, dict[Path, ScannedImages]] = {}
        for datum in self._stream_data:
            resource, stream = self._resources[datum["stream_resource"]], self._stream_of(datum["descriptor"])
            # Of devices of other kinds there are other parameters.
            if stream not in _KEYS or "raw_files" not in resource["parameters"]:
                continue
            path = Path(unquote(urlsplit(resource["uri"]).path))
            files = found.setdefault(resource["data_key"], {})
            file = files.setdefault(path, ScannedImages(path, resource["parameters"]["multiplier"]))
            first, number = datum["indices"]["start"], datum["seq_nums"]["start"]
            for i in range(datum["indices"]["stop"] - first):
                file.add(first + i, _KEYS[stream], self._angle(stream, number + i))
        for datum_id, datum in self._data.items():
            resource = self._resources[datum["resource"]]
            stream, number = self._events.get(datum_id, ("", 0))
            if stream not in _KEYS or resource["spec"] not in _SPECS:
                continue
            path = Path(resource["root"]) / resource["resource_path"]
            files = found.setdefault(path.name.rpartition("Published")[0], {})
            n_images = resource["resource_kwargs"]["frame_per_point"]
            file = files.setdefault(path, ScannedImages(path, n_images))
            file.add(datum["datum_kwargs"]["point_number"], _KEYS[stream], self._angle(stream, number))
        return {name: list(files.values()) for name, files in found.items()}

    def _stream_of(self, descriptor: str) -> str:
        return self._streams.get(descriptor, "")

    def _angle(self, stream: str, number: int) -> float:
        # Darks and flats have an angle, too, which readers ignore.
        if stream != PROJECTIONS:
            return 0.0
        if number not in self._angles:
            where = f"event {number} of {stream}"
            raise FileLayoutError(mismatch(where, "an angle of the first of the motors of the run", "none"))
        return self._angles[number]
