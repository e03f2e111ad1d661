"""Collect the documents of a tomography scan: which images are darks, flats and projections, at which angles.

The scan has the streams "darks", "flats" and "primary", whose events have the angle. It may use any of the
documents of devices that reference published images files. They are plain objects, of a RunEngine or a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from stddaq.errors import FileLayoutError
from stddaq.files.nxtomo import ImageKey
from stddaq.files.opening import check_is_file
from stddaq.text import mismatch, os_error_text

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
            case "datum_page":
                for i, datum_id in enumerate(document["datum_id"]):
                    kwargs = {key: values[i] for key, values in document["datum_kwargs"].items()}
                    self._data[datum_id] = {"resource": document["resource"], "datum_kwargs": kwargs}

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

        Raise `FileLayoutError` for a projection without an angle, and for a document that others need.
        """
        try:
            return self._images()
        except (KeyError, TypeError, ValueError) as error:
            raise FileLayoutError(mismatch("documents", "all of a scan", f"none of {error}")) from error

    def _images(self) -> dict[str, list[ScannedImages]]:
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


def read_scans(path: Path) -> list[ScanDocuments]:
    """Return the scans of a file of documents: one JSON value per line, or an array of them.

    Each is an object of `name` and `doc`, as the writers of `bluesky.callbacks.json_writer` make it, or a
    pair. Raise `FileLayoutError` for another file.
    """
    scans: list[ScanDocuments] = []
    for number, (name, document) in enumerate(_documents_in(path), 1):
        if name == "start":
            scans.append(ScanDocuments())
        try:
            scans[-1](name, document)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            expected = "a document of a run of Bluesky, after its start"
            raise FileLayoutError(mismatch(f"{path}: document {number}", expected, "another")) from error
    return scans


def _documents_in(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    expected = "documents of Bluesky, of JSONLinesWriter or JSONWriter"
    try:
        check_is_file(path)
        text = path.read_text(encoding="utf-8")
        # An array may be on one line, too.
        is_array = text.lstrip().startswith("[") and not text.lstrip().startswith('["')
        found = (
            json.loads(text) if is_array else [json.loads(line) for line in text.splitlines() if line.strip()]
        )
    except OSError as error:
        raise FileLayoutError(f"{path}: cannot be read: {os_error_text(error)}") from error
    except (ValueError, RecursionError) as error:
        raise FileLayoutError(mismatch(str(path), expected, "another file")) from error
    for entry in found:
        pair = [entry.get("name"), entry.get("doc")] if isinstance(entry, dict) else entry
        match pair:
            case [str(name), dict(document)]:
                yield name, document
            case _:
                raise FileLayoutError(mismatch(str(path), expected, "another file"))
