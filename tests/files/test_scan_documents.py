"""The documents of a scan in a file: what is no such file is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stddaq.errors import FileLayoutError
from stddaq.files.scan_documents import read_scans

START: dict[str, Any] = {"uid": "a", "motors": ["rotation"]}
STOP: dict[str, Any] = {"uid": "b", "run_start": "a"}


@pytest.mark.parametrize("how", ["objects by line", "array of objects", "pairs by line", "array of pairs"])
def test_each_form_of_a_file_has_its_scans(how: str, tmp_path: Path):
    documents = [("start", START), ("stop", STOP)] * 2
    entries = [{"name": name, "doc": doc} if "objects" in how else [name, doc] for name, doc in documents]
    path = tmp_path / "scans"
    path.write_text("\n".join(map(json.dumps, entries)) if "line" in how else json.dumps(entries, indent=1))
    assert [scan.start for scan in read_scans(path)] == [START, START]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89HDF\r\n\x1a\n\xff", "expected documents of Bluesky"),
        (b"{}", "expected documents of Bluesky"),
        (b"[1, 2]", "expected documents of Bluesky"),
        (b'["start", 5]', "expected documents of Bluesky"),
        (b'{"name": "event", "doc": {}}', "document 1: expected a document of a run of Bluesky"),
        (b'["start", {}]\n["event", {}]', "document 2: expected a document of a run of Bluesky"),
    ],
)
def test_another_file_is_refused(content: bytes, message: str, tmp_path: Path):
    path = tmp_path / "scans"
    path.write_bytes(content)
    with pytest.raises(FileLayoutError, match=message):
        read_scans(path)


def test_a_scan_without_the_resource_of_its_images_is_refused(tmp_path: Path):
    path = tmp_path / "scans"
    datum = {"stream_resource": "missing", "descriptor": "d", "indices": {"start": 0, "stop": 1}}
    path.write_text("\n".join(map(json.dumps, [["start", START], ["stream_datum", datum]])))
    (scan,) = read_scans(path)
    with pytest.raises(FileLayoutError, match="expected all of a scan, got none of 'missing'"):
        scan.images()
