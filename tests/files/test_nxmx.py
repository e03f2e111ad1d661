"""The tree of an NXmx file: what its readers require, each rule a test."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import pytest
from support.data.nexus_metadata import SCAN, STILLS, make_nxmx, metadata
from support.data.raw_files import RunSpec, bitshuffle, blosc2, pixels, stream, write_run

import stddaq
from stddaq.errors import ConfigError, FileLayoutError, OutputExistsError
from stddaq.files.info import describe
from stddaq.files.nexus import APPLICATION_METADATA
from stddaq.files.nxmx import create_nxmx_file
from stddaq.files.nxmx_rules import missing_for_nxmx
from stddaq.files.run import read_run

SPEC = RunSpec(n_writers=3, shape=(6, 8))


def text(file: Any, name: str) -> str:
    return file[name].asstr()[()]


def objects(file: Any) -> list[Any]:
    found = [file]
    file.visititems(lambda _name, member: found.append(member))
    return found


def opened(path: Path) -> Any:
    """Return an open file whose members may be anything."""
    return h5py.File(path)


@pytest.fixture
def scan(tmp_path: Path) -> Iterator[Any]:
    """Return the file of a scan of ids 100 to 109: 103 is skipped, 105 overwritten, 106 damaged."""
    images = stream([i for i in range(100, 110) if i != 103])
    made = make_nxmx(tmp_path, images, SPEC, metadata(SCAN), status={105: 3, 106: 2})
    with opened(made.path) as file:
        yield file


@pytest.fixture
def stills(tmp_path: Path) -> Iterator[Any]:
    """Return the file of still images with the ids 5, 7 and 8."""
    with opened(make_nxmx(tmp_path, stream([5, 7, 8]), SPEC, metadata(STILLS)).path) as file:
        yield file


def test_frame_of_a_scan_is_the_image_id_above_the_first(scan: Any):
    images = scan["entry/data/data"]
    assert images.shape == (10, 6, 8)
    assert scan["entry/data/image_id"][()].tolist() == list(range(100, 110))
    for frame, image_id in enumerate(range(100, 110)):
        expected = pixels(stream([image_id]), SPEC.shape)[0]
        if image_id in (103, 105):
            expected = np.full(SPEC.shape, 65535, "<u2")
        np.testing.assert_array_equal(images[frame], expected)


def test_frames_of_stills_are_the_images_that_exist(stills: Any):
    np.testing.assert_array_equal(stills["entry/data/data"][()], pixels(stream([5, 7, 8]), SPEC.shape))
    assert stills["entry/data/image_id"][()].tolist() == [5, 7, 8]


def test_scan_axis_has_a_value_for_each_frame(scan: Any):
    omega = scan["entry/sample/transformations/omega"]
    np.testing.assert_allclose(omega[()], 10 + 0.1 * np.arange(10))
    assert text(scan, "entry/sample/depends_on") == omega.name
    assert omega.attrs["depends_on"] == "."
    assert omega.attrs["vector"].tolist() == [-1, 0, 0]
    assert scan["entry/data/omega"] == omega
    end = scan["entry/sample/transformations/omega_end"]
    np.testing.assert_allclose(end[()], omega[()] + 0.1)


def test_one_axis_varies_and_others_have_one_value(tmp_path: Path):
    axes = [{"name": "kappa", "vector": [0, 1, 0]}, {"name": "phi", "vector": [-1, 0, 0]}]
    known = metadata(SCAN, sample_axes=axes, axes={"kappa": 30, "phi": 0})
    with opened(make_nxmx(tmp_path, stream(range(4)), SPEC, known).path) as file:
        group = "/entry/sample/transformations"
        chain, name = [], text(file, "entry/sample/depends_on")
        while name != ".":
            chain.append((name, file[name].shape))
            name = file[name].attrs["depends_on"]
        assert chain == [(f"{group}/phi", (1,)), (f"{group}/kappa", (1,)), (f"{group}/omega", (4,))]


def test_stills_depend_on_no_axis(stills: Any):
    assert text(stills, "entry/sample/depends_on") == "."
    assert "transformations" not in stills["entry/sample"]


def test_beam_is_in_the_instrument_and_source_in_the_entry(scan: Any):
    assert scan["entry/sample/beam"] == scan["entry/instrument/beam"]
    assert scan["entry/instrument/beam"].attrs["target"] == "/entry/instrument/beam"
    assert text(scan, "entry/source/name") == "Swiss Light Source"
    assert text(scan, "entry/source/probe") == "x-ray"
    assert scan["entry/source/name"].attrs["short_name"] == "SLS"
    assert scan["entry/instrument/beam/incident_wavelength"][()] == pytest.approx(0.99987, abs=1e-5)
    assert scan["entry/instrument/beam/incident_energy"][()] == pytest.approx(12400)


def test_only_the_images_have_a_name_that_begins_with_data(scan: Any):
    assert [name for name in scan["entry/data"] if name.startswith("data")] == ["data"]
    classes = [member.attrs.get("NX_class") for member in scan["entry"].values()]
    assert classes.count("NXdata") == 1


@pytest.mark.parametrize(("dtype", "bits"), [("<u1", 8), ("<u2", 16), ("<u4", 32), ("<f4", None)])
def test_bit_depth_is_that_of_the_stored_pixel(tmp_path: Path, dtype: str, bits: int | None):
    spec = RunSpec(n_writers=1, shape=(6, 8), dtype=dtype)
    known = metadata(STILLS, detector__saturation_value=200)
    with opened(make_nxmx(tmp_path, stream([0, 1]), spec, known).path) as file:
        detector = file["entry/instrument/detector"]
        for name in ("bit_depth_readout", "bit_depth_image"):
            assert (int(detector[name][()]) if name in detector else None) == bits


def test_geometry_is_that_of_an_upright_detector(scan: Any):
    detector = scan["entry/instrument/detector"]
    offset = detector["module/module_offset"]
    assert offset.attrs["offset"].tolist() == pytest.approx([3.6375e-3, 2.26875e-3, 0])
    assert offset.attrs["depends_on"] == text(scan, "entry/instrument/detector/depends_on")
    assert scan[offset.attrs["depends_on"]][()].tolist() == [0.2]
    for name, vector in (("fast", [-1, 0, 0]), ("slow", [0, -1, 0])):
        direction = detector[f"module/{name}_pixel_direction"]
        assert direction[()].tolist() == [7.5e-5]
        assert direction.attrs["vector"].tolist() == vector
        assert direction.attrs["depends_on"] == offset.name
    assert detector["module/data_size"][()].tolist() == [6, 8]


def test_other_directions_of_pixels_move_the_corner(tmp_path: Path):
    known = metadata(STILLS, detector__fast=[0, 2, 0], detector__slow=[-1, 0, 0])
    with opened(make_nxmx(tmp_path, stream([0]), SPEC, known).path) as file:
        offset = file["entry/instrument/detector/module/module_offset"].attrs["offset"]
        assert offset.tolist() == pytest.approx([30.25 * 7.5e-5, -48.5 * 7.5e-5, 0])


def test_axes_have_all_attributes_and_absolute_paths(scan: Any):
    axes = [member for member in objects(scan) if "vector" in member.attrs]
    assert len(axes) == 5
    for axis in axes:
        assert axis.attrs.keys() >= {"transformation_type", "units", "offset", "offset_units"}
        assert axis.attrs["vector"].shape == axis.attrs["offset"].shape == (3,)
        depends_on = axis.attrs["depends_on"]
        assert depends_on == "." or depends_on in scan


def test_texts_in_attributes_are_ascii(scan: Any):
    """durin refuses a file with attributes in UTF-8."""
    n_texts = 0
    for member in objects(scan):
        for name in member.attrs:
            stored = member.attrs.get_id(name).get_type()
            if isinstance(stored, h5py.h5t.TypeStringID):
                assert stored.get_cset() == h5py.h5t.CSET_ASCII, (member.name, name)
                n_texts += 1
    assert n_texts > 40


def test_units_are_those_that_durin_knows(scan: Any):
    detector = scan["entry/instrument/detector"]
    for name in ("x_pixel_size", "y_pixel_size", "sensor_thickness", "distance"):
        assert detector[name].attrs["units"] == "m"


def test_nothing_makes_dxtbx_take_it_for_another_format(scan: Any):
    detector = scan["entry/instrument/detector"]
    assert "eiger_fw_version" not in detector["detectorSpecific"]
    assert "JF1M" not in scan["entry/instrument"]
    assert not [1 for member in objects(scan) if member.attrs.get("NX_class") == "NXdetector_group"]


@pytest.mark.parametrize("name", ["i03", "I24", "VMXi", "DLS I04", "Diamond Beamline I03", "my eBIC"])
def test_names_of_instruments_with_a_format_of_their_own_are_refused(tmp_path: Path, name: str):
    with pytest.raises(ConfigError, match=r"instrument\.name: expected a name that dxtbx does not know"):
        make_nxmx(tmp_path, stream([0]), SPEC, metadata(STILLS, instrument__name=name))


def test_scintillators_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"sensor_material: expected one of Si, .* got \"LuAG:Ce\""):
        make_nxmx(tmp_path, stream([0]), SPEC, metadata(STILLS, detector__sensor_material="LuAG:Ce"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "detector__slow",
            [2, 0, 0],
            r"detector\.slow: expected another direction than that of detector\.fast",
        ),
        (
            "scan__increment_deg",
            0,
            r"scan\.increment_deg: expected another value than 0, got 0; leave scan out",
        ),
        ("axes", {"omega": 5}, r"axes\.omega: expected axes that stand still, omega is the axis of the scan"),
        ("detector__saturation_value", 0, r"saturation_value: expected a value greater than 0, got 0"),
        (
            "detector__saturation_value",
            65536,
            r"saturation_value: expected at most 65535, the largest uint16",
        ),
        ("detector__underload_value", 65534, r"underload_value: expected a value below .* got 65534"),
        ("end_time", "2026-11-26T23:59:59+00:00", r"end_time: expected a time after start_time"),
    ],
)
def test_values_that_contradict_each_other_are_refused(tmp_path: Path, key: str, value: Any, message: str):
    with pytest.raises(ConfigError, match=message):
        make_nxmx(tmp_path, stream(range(4)), RunSpec(), metadata(SCAN, **{key: value}))
    assert not (tmp_path / "file_master.h5").exists()


def test_mask_has_two_dimensions_and_pixels_of_users_are_dead(tmp_path: Path):
    mask = np.zeros(SPEC.shape, np.uint32)
    mask[0, 1], mask[2, 3] = 1, 1 << 8
    np.save(tmp_path / "mask.npy", mask)
    known = metadata(STILLS, detector__mask_file=str(tmp_path / "mask.npy"))
    with opened(make_nxmx(tmp_path, stream([0]), SPEC, known).path) as file:
        stored = file["entry/instrument/detector/pixel_mask"]
        assert stored.dtype == "<u4"
        mask[2, 3] |= 2
        np.testing.assert_array_equal(stored[()], mask)
        assert file["entry/instrument/detector/detectorSpecific/pixel_mask"] == stored


def test_definition_is_a_fixed_length_text(scan: Any):
    assert scan["entry/definition"].dtype == "S4"
    assert text(scan, "entry/definition") == "NXmx"


def test_times_are_utc(scan: Any):
    assert text(scan, "entry/start_time") == "2026-11-27T00:00:00Z"
    assert text(scan, "entry/end_time") == "2026-11-27T00:00:10Z"
    assert text(scan, "entry/end_time_estimated") == "2026-11-27T00:00:10Z"


def test_every_missing_key_is_named():
    assert missing_for_nxmx(metadata(SCAN)) == []
    required = [
        "start_time",
        "source.name",
        "instrument.name",
        "sample.name",
        *(f"detector.{name}" for name in STILLS["detector"] if name != "description"),
        "beam.energy_kev",
        "end_time",
        "scan.start_deg",
        "scan.increment_deg",
        "scan_axis.name",
        "scan_axis.vector",
    ]
    for key in required:
        assert missing_for_nxmx(metadata(SCAN, **{key.replace(".", "__"): None})) == [key]
    nothing = {key: {} if isinstance(part, dict) else None for key, part in SCAN.items()}
    assert sorted(missing_for_nxmx(metadata(nothing))) == sorted(required[: required.index("end_time") + 1])


def test_other_axes_of_a_scan_need_their_angles():
    axes = [{"name": "kappa", "vector": [0, 1, 0]}]
    assert missing_for_nxmx(metadata(SCAN, sample_axes=axes)) == ["axes.kappa"]
    assert missing_for_nxmx(metadata(STILLS, scan={"start_deg": 0})) == [
        "scan.increment_deg",
        "scan_axis.name",
        "scan_axis.vector",
    ]


def test_missing_values_are_refused_and_nothing_is_written(tmp_path: Path):
    known = metadata(SCAN, beam__energy_kev=None, scan__start_deg=None)
    with pytest.raises(ConfigError, match=r"got none for beam\.energy_kev, scan\.start_deg; ") as caught:
        make_nxmx(tmp_path, stream([0]), SPEC, known)
    assert len(str(caught.value).splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file0.h5", "file1.h5", "file2.h5"]


@pytest.mark.parametrize("content", [{}, {"scan": {}}, {"scan": {"start_deg": 1}}, STILLS, SCAN])
@pytest.mark.parametrize("removed", [None, "distance_m", "pixel_size_m", "beam_center_pixel"])
def test_incomplete_file_claims_nothing(tmp_path: Path, content: dict[str, Any], removed: str | None):
    known = metadata(content, **{f"detector__{removed}": None} if removed else {}, sample__name=None)
    made = make_nxmx(tmp_path, stream([0, 1, 2]), SPEC, known, incomplete=True)
    assert "sample.name" in made.missing
    with opened(made.path) as file:
        assert "definition" not in file["entry"]
        np.testing.assert_array_equal(file["entry/data/data"][1], pixels(stream([1]), SPEC.shape)[0])
    assert describe(made.path).kind == "application"


@pytest.mark.parametrize("ids", [[range(5), range(5)], [[0, 1, 3], [2]]])
def test_scan_with_ids_that_step_back_is_refused(tmp_path: Path, ids: list[Any]):
    with pytest.raises(FileLayoutError, match="expected increasing image ids in a scan"):
        make_nxmx(tmp_path, stream(*ids), SPEC, metadata(SCAN))


def test_scan_without_most_of_its_ids_is_refused(tmp_path: Path):
    with pytest.raises(FileLayoutError, match="at least half of the ids of a scan, got 3 images of 7"):
        make_nxmx(tmp_path, stream([0, 2, 6]), SPEC, metadata(SCAN))


def test_run_without_images_is_refused(tmp_path: Path):
    with pytest.raises(FileLayoutError, match="expected a run with images, got none"):
        make_nxmx(tmp_path, [], SPEC, metadata(STILLS))


@pytest.mark.parametrize("division", ["image_id", "arrival"])
@pytest.mark.parametrize("filters", [None, bitshuffle, blosc2])
def test_every_frame_shows_its_image(tmp_path: Path, division: str, filters: Any):
    spec = RunSpec(n_writers=3, division=division, shape=(16, 16), filter=filters and filters())
    images = stream([i for i in range(7, 60) if i % 5])
    lost = dict.fromkeys(range(21, 24), 3)
    made = make_nxmx(tmp_path, images, spec, metadata(SCAN), status=lost)
    assert (made.n_frames, made.n_mapped) == (53, len(images) - 3)
    with opened(made.path) as file:
        shown = file["entry/data/data"][()]
    expected = np.full(shown.shape, 65535, "<u2")
    good = [image for image in images if image.image_id not in lost]
    expected[[image.image_id - 7 for image in good]] = pixels(good, spec.shape)
    np.testing.assert_array_equal(shown, expected)


def test_many_lost_images_share_mappings(tmp_path: Path):
    images = stream([i for i in range(6000) if i % 3])
    lost = {i: 3 for i in range(6000) if i % 7 == 1}
    made = make_nxmx(tmp_path, images, SPEC, metadata(SCAN), status=lost)
    with opened(made.path) as file:
        shown = file["entry/data/data"]
        assert shown.id.get_create_plist().get_virtual_count() < 40
        for frame in range(0, 5998, 7):
            image_id = frame + 1
            is_shown = image_id % 3 != 0 and image_id not in lost
            expected = (image_id * 7) % 65536 if is_shown else 65535
            assert shown[frame, 0, 0] == expected


def test_moved_directory_still_shows_its_images(tmp_path: Path):
    (tmp_path / "here").mkdir()
    make_nxmx(tmp_path / "here", stream(range(9)), SPEC, metadata(SCAN))
    shutil.move(tmp_path / "here", tmp_path / "there")
    with opened(tmp_path / "there" / "file_master.h5") as file:
        np.testing.assert_array_equal(file["entry/data/data"][()], pixels(stream(range(9)), SPEC.shape))


def test_existing_file_is_kept_without_overwrite(tmp_path: Path):
    raw = write_run(tmp_path, stream(range(9)), SPEC)
    path = tmp_path / "file_master.h5"
    path.write_text("mine")
    with pytest.raises(OutputExistsError, match="expected a new file, got an existing one"):
        create_nxmx_file(path, read_run(raw), metadata(STILLS))
    assert path.read_text() == "mine"
    create_nxmx_file(path, read_run(raw), metadata(STILLS), overwrite=True)
    assert describe(path).kind == "NXmx"


def test_raw_files_that_are_not_found_are_noticed_before_the_file_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    raw = write_run(tmp_path, stream(range(9)), SPEC)
    monkeypatch.setattr("stddaq.files.frames.relative_name", lambda path, directory: f"other/{path.name}")
    with pytest.raises(FileLayoutError, match=r"file0\.h5: cannot be read through the new file: image 0"):
        create_nxmx_file(tmp_path / "file_master.h5", read_run(raw), metadata(STILLS))
    assert not (tmp_path / "file_master.h5").exists()
    assert len(list(tmp_path.iterdir())) == 3


def test_each_value_says_where_it_came_from(scan: Any):
    origins = json.loads(text(scan, APPLICATION_METADATA))
    assert origins["detector.distance_m"] == {"value": 0.2, "from": "test"}
    assert origins["scan_axis.vector"] == {"value": [-1, 0, 0], "from": "test"}


def test_open_run_and_info_take_the_file(tmp_path: Path):
    images = stream([i for i in range(100, 110) if i != 103])
    made = make_nxmx(tmp_path, images, SPEC, metadata(SCAN), status={105: 3})
    run = stddaq.open_run(made.path)
    assert run.image_ids.tolist() == [image.image_id for image in images]
    np.testing.assert_array_equal(run.images[0], pixels(images[:1], SPEC.shape)[0])
    info = describe(made.path)
    assert (info.kind, info.n_images, info.missing) == ("NXmx", 8, ())
    (tmp_path / "file2.h5").unlink()
    assert [path.name for path in describe(made.path).missing] == ["file2.h5"]
    with pytest.raises(FileLayoutError, match=r"file2\.h5: is missing"):
        stddaq.open_run(made.path)
