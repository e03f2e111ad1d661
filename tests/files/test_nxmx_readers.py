"""The field's readers take an NXmx file without a warning, and see its images and values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fabio
import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import pytest
from silx.io.nxdata.parse import get_default
from support.data.nexus_metadata import SCAN, STILLS, make_nxmx, metadata
from support.data.raw_files import RunSpec, bitshuffle, pixels, stream
from support.peers.debian_hdf5 import DebianHdf5

SHAPE = (60, 96)
# 107 is skipped, 120 overwritten.
IDS = [i for i in range(100, 141) if i != 107]
STATUS = {120: 3}


@pytest.fixture(params=["1 writer", "3 writers", "compressed"])
def scan(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return the NXmx file of a scan of 41 frames."""
    filters = bitshuffle() if request.param == "compressed" else None
    spec = RunSpec(n_writers=1 if request.param == "1 writer" else 3, shape=SHAPE, filter=filters)
    return make_nxmx(tmp_path, stream(IDS), spec, metadata(SCAN), status=STATUS).path


@pytest.fixture
def stills(tmp_path: Path) -> Path:
    """Return the NXmx file of still images with the ids 5, 7 and 8."""
    return make_nxmx(tmp_path, stream([5, 7, 8]), RunSpec(shape=SHAPE), metadata(STILLS)).path


def nxmx_of(file: h5py.File) -> Any:
    """Return what the package nxmx makes of an open file."""
    # Imported here, because pint makes its units for a second.
    import nxmx

    return nxmx.NXmx(file)


def frames() -> Iterator[tuple[int, np.ndarray]]:
    """Return number and pixels of each frame of the scan."""
    for frame, image_id in enumerate(range(100, 141)):
        is_shown = image_id in IDS and image_id not in STATUS
        yield frame, pixels(stream([image_id]), SHAPE)[0] if is_shown else np.full(SHAPE, 65535, "<u2")


def test_nxmx_reads_every_value(scan: Path):
    import nxmx

    with h5py.File(scan) as file:
        (entry,) = nxmx_of(file).entries
        (instrument,), (sample,) = entry.instruments, entry.samples
        (detector,), (beam,) = instrument.detectors, instrument.beams
        assert str(entry.start_time) == "2026-11-27 00:00:00+00:00"
        assert entry.end_time == entry.end_time_estimated
        assert (entry.source.name, entry.source.short_name) == ("Swiss Light Source", "SLS")
        assert (instrument.name, instrument.short_name, sample.name) == ("X06SA", "PXI", "lysozyme")
        assert beam.incident_wavelength.to("angstrom").magnitude == pytest.approx(0.99987, abs=1e-5)
        assert detector.distance.to("mm").magnitude == pytest.approx(200)
        assert (detector.beam_center_x.magnitude, detector.beam_center_y.magnitude) == (48.5, 30.25)
        assert detector.count_time.to("s").magnitude == 0.005
        assert detector.sensor_material == "Si"
        assert detector.sensor_thickness.to("um").magnitude == pytest.approx(320)
        assert (detector.underload_value, detector.saturation_value) == (0, 65534)
        assert detector.bit_depth_readout == 16
        (module,) = detector.modules
        assert list(module.data_size) == list(SHAPE)
        chain = nxmx.get_dependency_chain(module.fast_pixel_direction)
        origin = nxmx.get_cumulative_transformation(chain)[0, :3, 3]
        # The first pixel of the image is one pixel before the end of its own direction.
        assert origin == pytest.approx([3.6375 - 0.075, 2.26875, 200])


def test_nxmx_sees_the_scan(scan: Path):
    import nxmx

    with h5py.File(scan) as file:
        (entry,) = nxmx_of(file).entries
        omega = entry.samples[0].depends_on
        axes = nxmx.get_rotation_axes(nxmx.get_dependency_chain(omega))
        assert (axes.names.tolist(), axes.is_scan_axis.tolist()) == (["omega"], [True])
        assert axes.axes.tolist() == [[-1, 0, 0]]
        assert omega[()].to("deg").magnitude == pytest.approx(10 + 0.1 * np.arange(41))
        assert omega.increment_set.magnitude == pytest.approx(0.1)
        assert len(omega.end) == 41


def test_nxmx_sees_no_axis_of_stills(stills: Path):
    with h5py.File(stills) as file:
        assert nxmx_of(file).entries[0].samples[0].depends_on is None


def test_nxmx_does_not_take_an_incomplete_file(tmp_path: Path):
    known = metadata(STILLS, beam__energy_kev=None)
    made = make_nxmx(tmp_path, stream([0]), RunSpec(shape=SHAPE), known, incomplete=True)
    with h5py.File(made.path) as file:
        assert nxmx_of(file).entries == []


def test_fabio_reads_every_frame(scan: Path):
    opened = fabio.open(str(scan))
    try:
        assert type(opened).__name__ == "EigerImage"
        assert opened.nframes == 41
        for frame, expected in frames():
            np.testing.assert_array_equal(opened.getframe(frame).data, expected)
    finally:
        opened.close()


def test_h5py_reads_every_frame(scan: Path):
    with h5py.File(scan) as file:
        shown: Any = file["entry/instrument/detector/data"]
        for frame, expected in frames():
            np.testing.assert_array_equal(shown[frame], expected)


def test_silx_opens_on_the_images(scan: Path):
    with h5py.File(scan) as file:
        found = get_default(file)
        assert found is not None
        assert found.is_valid
        assert isinstance(found.signal, h5py.Dataset)
        assert (found.signal.shape, found.interpretation) == ((41, *SHAPE), "image")


def test_nexusformat_opens_on_the_images(scan: Path):
    from nexusformat.nexus import nxload

    root: Any = nxload(scan)
    with root.nxfile:
        images = root.get_default().nxsignal
        for frame, expected in frames():
            np.testing.assert_array_equal(images[frame].nxvalue, expected)
        assert root.entry.definition.nxvalue in ("NXmx", b"NXmx")
        assert root.entry.instrument.detector.distance.nxvalue == 0.2


@pytest.mark.external
def test_an_older_hdf5_reads_every_frame(tmp_path: Path):
    spec = RunSpec(n_writers=3, shape=(8, 6))
    path = make_nxmx(tmp_path, stream(IDS), spec, metadata(SCAN), status=STATUS).path
    (found,) = DebianHdf5().read(path)
    shown = np.array(found["entry/data/data"])
    assert shown.shape == (41, 8, 6)
    for image_id in range(100, 141):
        is_shown = image_id in IDS and image_id not in STATUS
        expected = pixels(stream([image_id]), (8, 6))[0] if is_shown else np.full((8, 6), 65535)
        np.testing.assert_array_equal(shown[image_id - 100], expected)
