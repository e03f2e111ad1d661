"""The page of wire formats agrees with the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.processes.page_session import PageSession

from stddaq.dataplane import endpoints
from stddaq.dataplane.ring_layout import ring_code
from stddaq.forwarding.parts import LARGEST_IMAGE_BYTES
from stddaq.udp.frame_message import EIGER_FRAME, GIGAFROST_FRAME, JUNGFRAU_FRAME
from stddaq.udp.geometry import GigaFrostGeometry
from stddaq.udp.packet_headers import GIGAFROST_HEADER, SLS_HEADER
from stddaq.wire.std_daq.image_metadata_pb2 import ImageMetadata

PAGE = Path(__file__).parents[2] / "docs/reference/wire-formats.md"
TEXT = PAGE.read_text()


def rows(heading: str) -> Iterator[list[str]]:
    """Yield the cells of the tables below a heading, up to the next heading."""
    section = re.split(rf"^#+ {heading}$", TEXT, flags=re.MULTILINE)[1]
    for line in re.split(r"^#+ ", section, flags=re.MULTILINE)[0].splitlines():
        if line.startswith("|"):
            yield [cell.strip(" `") for cell in line.strip("|").split("|")]


def test_the_worked_example(capsys: pytest.CaptureFixture[str]) -> None:
    with PageSession("docs/reference/wire-formats.md") as page:
        block = page.take("fromhex")
    exec(compile(block, PAGE, "exec"), {})
    said = re.findall(r"^print\(.*\)  # (\w[\w ]*\w|\w)", block, re.MULTILINE)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(said) == 5
    # A colon ends what is printed.
    assert printed == said
    assert f"0x{ring_code('GF1-image'):03x} above it" in TEXT


def test_the_fields_of_the_metadata() -> None:
    described = {cells[1]: cells[0] for cells in rows("ImageMetadata") if cells[0].isdecimal()}
    fields = ImageMetadata.DESCRIPTOR.fields
    assert described == {field.name: str(field.number) for field in fields}


@pytest.mark.parametrize(
    ("detector", "layout"),
    [("Eiger", EIGER_FRAME), ("Jungfrau", JUNGFRAU_FRAME), ("GigaFRoST", GIGAFROST_FRAME)],
)
def test_the_frames_of_modules(detector: str, layout: np.dtype) -> None:
    described = {
        cells[3]: (cells[2], int(cells[1]))
        for cells in rows("Frames of modules")
        if cells[0] in ("all", detector) and len(cells) == 5
    }
    assert layout.fields is not None
    assert described == {name: (field[0].name, field[1]) for name, field in layout.fields.items()}
    assert str(GigaFrostGeometry.of(2016, 2016).frame_bytes) in TEXT


@pytest.mark.parametrize(
    ("heading", "layout"), [("Eiger and Jungfrau", SLS_HEADER), ("GigaFRoST", GIGAFROST_HEADER)]
)
def test_the_headers_of_packets(heading: str, layout: np.dtype) -> None:
    described = {(int(cells[0]), cells[1]) for cells in rows(heading) if cells[0].isdecimal()}
    assert layout.fields is not None
    assert described <= {(field[1], field[0].name) for field in layout.fields.values()}


def test_the_largest_images() -> None:
    described = {
        cells[0]: int(cells[1].split(";")[0])
        for cells in rows("Between servers")
        if len(cells) == 2 and cells[0] in LARGEST_IMAGE_BYTES
    }
    assert described == LARGEST_IMAGE_BYTES


def test_every_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STDDAQ_IPC_DIR", "/d")
    names = [
        *(endpoints.metadata_stream("NAME", suffix) for suffix in ("image", "delay", "blosc2", "<m>")),
        *(endpoints.driver_to_writer("NAME", writer) for writer in ("<i>", "meta")),
        *(endpoints.writer_to_driver("NAME", writer) for writer in ("<i>", "meta")),
        endpoints.converted_frames("NAME"),
        endpoints.received_parts("NAME"),
        endpoints.replay_requests("REPLAY-NAME"),
        endpoints.software_trigger("NAME"),
        endpoints.events("NAME"),
        *(endpoints.preview("NAME", suffix) for suffix in ("image", "SUFFIX")),
    ]
    described = {name for cells in rows("Sockets in DIR") for name in re.findall(r"[\w<>-]+", cells[0])}
    assert {name.removeprefix("ipc:///d/") for name in names} <= described
