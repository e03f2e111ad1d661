"""Metadata of application files: layers, their order, and mistakes in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.data.nexus_metadata import SCAN, metadata

from stddaq.errors import ConfigError
from stddaq.files.application_metadata import (
    Layer,
    layer_of_account,
    layer_of_file,
    layer_of_options,
    merge,
)


def test_later_layers_replace_single_values():
    first = Layer("a", {"detector": {"distance_m": 0.1, "pixel_size_m": [1e-5, 1e-5]}, "axes": {}})
    second = Layer("b", {"detector": {"distance_m": 0.2, "count_time_s": None}})
    merged = merge([first, second])
    assert merged.values.detector.distance_m == 0.2
    assert merged.values.detector.pixel_size_m == [1e-5, 1e-5]
    assert json.loads(merged.as_json()) == {
        "detector.distance_m": {"value": 0.2, "from": "b"},
        "detector.pixel_size_m": {"value": [1e-5, 1e-5], "from": "a"},
    }


@pytest.mark.parametrize("later", [{"energy_kev": 12.4}, {"wavelength_angstrom": 1.0}])
def test_energy_and_wavelength_replace_each_other(later: dict[str, float]):
    earlier = {"energy_kev": 10.0} if "energy_kev" not in later else {"wavelength_angstrom": 2.0}
    beam = merge([Layer("a", {"beam": earlier}), Layer("b", {"beam": later})]).values.beam
    assert beam.wavelength == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(ConfigError, match="a: beam: expected energy_kev or wavelength_angstrom, got both"):
        merge([Layer("a", {"beam": earlier | later})])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"colour": "red"}, r"file: colour: unknown field"),
        ({"beam": {"energy": 12.4}}, r"file: beam\.energy: unknown field"),
        ({"beam": {"energy_kev": 0}}, r"beam\.energy_kev: expected a value greater than 0, got 0"),
        ({"beam": {"energy_kev": float("nan")}}, r"beam\.energy_kev: expected a finite number"),
        ({"beam": {"energy_kev": "12.4"}}, r"beam\.energy_kev: expected a number, got \"12.4\""),
        ({"beam": 5}, r"file: beam: expected an object, got 5"),
        ({"detector": {"beam_center_pixel": [1]}}, r"detector\.beam_center_pixel: .* got \[1\]"),
        ({"detector": {"fast": [0, 0, 0]}}, r"detector\.fast: expected a vector that is not zero"),
        ({"detector": {"saturation_value": 1.5}}, r"detector\.saturation_value: expected an integer"),
        ({"source": {"short_name": "S\u00fcd"}}, r"source\.short_name: expected a text of printable ASCII"),
        ({"sample": {"name": ""}}, r"sample\.name: "),
        ({"sample": {"name": "a\0b"}}, r"sample\.name: "),
        ({"start_time": "2026-11-27T01:00:00"}, r"start_time: expected a time of ISO 8601 with its offset"),
        ({"start_time": "9999-11-27T01:00:00Z"}, r"start_time: expected a time"),
        ({"end_time": "soon"}, r"end_time: expected a time of ISO 8601"),
        ({"scan_axis": {"name": "data_axis"}}, r"scan_axis\.name: expected a name of ASCII letters"),
        ({"scan_axis": {"name": "a/b"}}, r"scan_axis\.name: expected a name of ASCII letters"),
        ({"axes": {"kappa": 1}}, r"axes: expected axes of sample_axes .* got \"kappa\""),
        ({"sample_axes": [{"name": "phi"}]}, r"sample_axes\.0\.vector: expected a value, got nothing"),
    ],
)
def test_mistakes_are_named_with_their_place(content: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        merge([Layer("file", content)])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("names", [["phi", "phi"], ["omega", "omega_end"]])
def test_axes_have_names_of_their_own(names: list[str]):
    with pytest.raises(ConfigError, match="sample_axes: expected "):
        metadata(SCAN, sample_axes=[{"name": name, "vector": [0, 1, 0]} for name in names])


def test_scan_axis_is_the_first_unless_it_is_among_the_axes():
    phi, omega = ({"name": name, "vector": [1, 0, 0]} for name in ("phi", "omega"))
    assert [axis.name for axis in metadata(SCAN, sample_axes=[phi]).values.goniometer()] == ["omega", "phi"]
    both = metadata(SCAN, sample_axes=[phi, omega]).values
    assert [axis.name for axis in both.goniometer()] == ["phi", "omega"]
    assert metadata(SCAN, sample_axes=[phi, omega], scan__axis="phi").values.scan_axis_name == "phi"


def test_files_are_read_and_their_mask_is_beside_them(tmp_path: Path):
    path = tmp_path / "meta.json"
    path.write_text('{"detector": {"mask_file": "mask.npy", "distance_m": 1}}')
    layer = layer_of_file(path)
    assert layer.origin == str(path)
    assert layer.content["detector"] == {"mask_file": str(tmp_path / "mask.npy"), "distance_m": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", r"expected a JSON object, got \[1\]"),
        ('{"detector": {"mask_file": 5}}', r"detector\.mask_file: expected a string"),
        ('{"beam": {"energy_kev": 1, "energy_kev": 2}}', "expected one value in an object, got several"),
        ('{"beam": {"energy_kev": NaN}}', "expected a number of JSON, got NaN"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path: Path, content: str, message: str):
    path = tmp_path / "meta.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=rf"meta\.json: .*{message}"):
        layer_of_file(path)
    with pytest.raises(ConfigError, match=r"none\.json: cannot be read: No such file"):
        layer_of_file(tmp_path / "none.json")


def test_options_are_json_or_text():
    layer = layer_of_options(["detector.distance_m=0.2", "sample.name=a=b", "sample_axes=[]"])
    assert layer.content == {"detector": {"distance_m": 0.2}, "sample": {"name": "a=b"}, "sample_axes": []}


@pytest.mark.parametrize("options", [["beam"], ["=5"], ["beam=5", "beam.energy_kev=5"]])
def test_options_without_a_key_and_a_value_are_refused(options: list[str]):
    with pytest.raises(ConfigError, match="expected "):
        layer_of_options(options)


def test_end_of_a_run_is_estimated_from_its_images():
    assert str(metadata(SCAN).end_time_estimated()) == "2026-11-27 01:00:10+01:00"
    known = merge([Layer("test", SCAN)], expected_images=1000)
    assert str(known.end_time_estimated()) == "2026-11-27 00:00:06+00:00"


def test_account_gives_the_times_of_the_run():
    account = {"started_at": "2026-01-01T00:00:00+00:00", "finished_at": "2026-01-01T00:00:09+00:00"}
    saved = layer_of_account(account | {"outcome": "file_saved"})
    assert saved.content == {"start_time": account["started_at"], "end_time": account["finished_at"]}
    assert layer_of_account(account | {"outcome": "error"}).content.keys() == {"start_time"}
    assert layer_of_account({}).content == {}
