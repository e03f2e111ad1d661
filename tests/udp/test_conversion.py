"""Pixels of frames in their places of the image, byte by byte."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support.peers.udp_detectors import pack12
from support.processes.deployment import make_config

from stddaq.config import DetectorConfig
from stddaq.errors import ConfigError
from stddaq.udp import kernels
from stddaq.udp.compiling import make_ready
from stddaq.udp.conversion import (
    EigerConversion,
    GigaFrostConversion,
    JungfrauConversion,
    JungfrauRawConversion,
)
from stddaq.udp.frame_message import JUNGFRAU_FRAME, frame_layout
from stddaq.udp.geometry import frame_bytes
from stddaq.udp.jungfrau_gains import read_psi_files, read_std_daq_file

NO_MESSAGE = np.zeros((), JUNGFRAU_FRAME)
# The 32 bytes of header left out: pixels of image 48*y + x, from module 0.
MODULE_0 = bytes.fromhex(
    "c0100cc2300cc4500cc6700cc8900ccab00cccd00ccef00cd0100dd2300dd4500dd6700d"
    "2011122231122451122671122891122ab1122cd1122ef112301113323113345113367113"
)
STARTS = [
    (4, 0, "c0100cc2300cc4500cc6700c"),
    (5, 0, "f0100ff2300ff4500ff6700f"),
    (4, 24, "d8900ddab00ddcd00ddef00d"),
    (5, 24, "0891100ab1100cd1100ef110"),
    (3, 0, "901009923009945009967009"),
    (2, 0, "601006623006645006667006"),
    (3, 24, "a8900aaab00aacd00aaef00a"),
    (2, 24, "7890077ab0077cd0077ef007"),
]


def config(**overrides: Any) -> DetectorConfig:
    return DetectorConfig.parse(make_config(**overrides))


def gigafrost(height: int, width: int) -> DetectorConfig:
    return config(n_modules=8, image_pixel_height=height, image_pixel_width=width)


def gigafrost_frame(image: np.ndarray, module: int, n_bytes: int) -> np.ndarray:
    """Return the frame of a module, by the table of the specification."""
    height, width = image.shape
    quadrant, link = divmod(module % 8, 2)
    columns = slice(0, width // 2) if quadrant in (0, 2) else slice(width // 2, width)
    rows = [
        height // 2 + link + 2 * r if quadrant in (0, 1) else height // 2 - 1 - link - 2 * r
        for r in range(height // 4)
    ]
    packed = np.frombuffer(pack12(image[rows, columns]), np.uint8)
    return np.concatenate([packed, np.zeros(n_bytes - len(packed), np.uint8)])


def test_twelve_bits_are_packed_as_the_camera_packs_them() -> None:
    packed = np.frombuffer(bytes.fromhex("012220034220"), np.uint8)
    image = np.zeros((1, 4), np.uint16)
    kernels.place_gigafrost(packed, image, 0, 2, 0, 1, 4)
    assert image.tolist() == [[513, 514, 515, 516]]


def test_modules_of_a_gigafrost_meet_in_the_middle() -> None:
    cfg = gigafrost(8, 48)
    expected = np.arange(8 * 48, dtype=np.uint16).reshape(8, 48)
    image = np.zeros((8, 48), np.uint16)
    for module, (row, column, start) in enumerate(STARTS):
        frame = gigafrost_frame(expected, module, frame_bytes(cfg))
        assert frame[:12].tobytes().hex() == start
        if module == 0:
            assert frame.tobytes() == MODULE_0
        # Receivers 8 to 15 have the places of 0 to 7.
        for number in (module, module + 8):
            image[:] = 0
            GigaFrostConversion(cfg, number).convert(frame, image, NO_MESSAGE)
            assert image[row, column] == expected[row, column]
    image[:] = 0
    for module in range(8):
        frame = gigafrost_frame(expected, module, frame_bytes(cfg))
        GigaFrostConversion(cfg, module).convert(frame, image, NO_MESSAGE)
    assert np.array_equal(image, expected)


@pytest.mark.parametrize(
    ("width", "height"), [(48, 4), (72, 4), (504, 252), (528, 252), (240, 480), (1200, 800), (2016, 2016)]
)
def test_every_pixel_of_a_gigafrost_image_has_its_place(width: int, height: int) -> None:
    cfg = gigafrost(height, width)
    expected = np.random.default_rng(width).integers(0, 4096, (height, width), np.uint16)
    image = np.full((height, width), 0xFFFF, np.uint16)
    for module in range(8):
        frame = gigafrost_frame(expected, module, frame_bytes(cfg))
        GigaFrostConversion(cfg, module).convert(frame, image, NO_MESSAGE)
    assert np.array_equal(image, expected)


def test_a_gigafrost_has_16_receivers() -> None:
    with pytest.raises(ConfigError, match="module_id: expected 0 to 15 for gigafrost, got 16"):
        GigaFrostConversion(gigafrost(8, 48), 16)


def eiger(bit_depth: int, **positions: list[int]) -> DetectorConfig:
    return config(
        detector_type="eiger",
        n_modules=4,
        bit_depth=bit_depth,
        image_pixel_height=514,
        image_pixel_width=1030,
        module_positions={name.removeprefix("m"): position for name, position in positions.items()},
    )


@pytest.mark.parametrize("bit_depth", [8, 16, 32])
def test_chips_of_an_eiger_have_gap_columns_of_zeros_and_may_be_upside_down(bit_depth: int) -> None:
    cfg = eiger(bit_depth, m0=[516, 258, 1029, 513], m2=[0, 255, 513, 0])
    pixels = np.random.default_rng(bit_depth).integers(1, 2**bit_depth, (256, 512), cfg.dtype)
    image = np.full(cfg.image_shape, 7, cfg.dtype)
    for module in (0, 2):
        conversion = EigerConversion(cfg, module)
        conversion.convert(pixels.view(np.uint8).reshape(-1), image, np.zeros((), frame_layout("eiger")))
    expected = np.full(cfg.image_shape, 7, cfg.dtype)
    for row in range(256):
        for y, x in ((258 + row, 516), (255 - row, 0)):
            expected[y, x : x + 256], expected[y, x + 258 : x + 514] = pixels[row, :256], pixels[row, 256:]
            expected[y, x + 256 : x + 258] = 0
    assert np.array_equal(image, expected)


def eiger_9m_positions() -> dict[str, list[int]]:
    """Return the places of 72 ports: three columns of six modules, each of two halves of two ports."""
    positions = {}
    for column, module in np.ndindex(3, 6):
        left, low = 1038 * column, 550 * module
        for side in (0, 1):
            x, port = left + 516 * side, 24 * column + 4 * module + side
            positions[str(port)] = [x, 3008 - low, x + 513, 3263 - low]
            positions[str(port + 2)] = [x, 3005 - low, x + 513, 2750 - low]
    return positions


def test_an_eiger_9m_has_every_pixel_in_its_place_and_gaps_of_zeros() -> None:
    cfg = config(
        detector_type="eiger",
        n_modules=72,
        bit_depth=32,
        image_pixel_height=3264,
        image_pixel_width=3106,
        module_positions=eiger_9m_positions(),
    )
    image = np.zeros(cfg.image_shape, cfg.dtype)
    numbers = np.arange(1, 2**17 + 1, dtype=np.uint32)
    for port in range(72):
        # Each pixel of the detector has a number of its own.
        frame = port * 2**17 + numbers
        EigerConversion(cfg, port).convert(
            frame.view(np.uint8).reshape(-1), image, np.zeros((), frame_layout("eiger"))
        )
    counts = np.bincount(image.ravel())
    assert len(counts) == 72 * 2**17 + 1
    assert (counts[1:] == 1).all()
    # Columns of gaps: between modules 8, in a module 2 between chips and between ports; rows: 36 and 2.
    chips = [x for left in (0, 1038, 2076) for x in (left, left + 258, left + 516, left + 774)]
    halves = [y for top in range(0, 3264, 550) for y in (top, top + 258)]
    is_pixel = np.zeros(cfg.image_shape, bool)
    for y in halves:
        for x in chips:
            is_pixel[y : y + 256, x : x + 256] = True
    assert np.array_equal(image > 0, is_pixel)
    # Row 0 of each port lies at the middle line of its module; port 0 is at the bottom left.
    assert (image[3008, 0], image[3263, 513]) == (1, 2**17)
    assert (image[3005, 0], image[2750, 0]) == (2 * 2**17 + 1, 2 * 2**17 + 255 * 512 + 1)


def test_a_module_without_position_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"module_id: expected a key of module_positions \(0\), got 1"):
        EigerConversion(eiger(16, m0=[0, 0, 513, 255]), 1)


def jungfrau(detector_type: str = "jungfrau-converted") -> DetectorConfig:
    return config(
        detector_type=detector_type,
        n_modules=2,
        image_pixel_height=1030,
        image_pixel_width=1040,
        module_positions={"0": [0, 0, 1023, 511], "1": [8, 515, 1031, 1026]},
    )


def frame_of(*raw: int) -> np.ndarray:
    """Return a Jungfrau frame that starts with these pixels."""
    pixels = np.zeros((512, 1024), np.uint16)
    pixels[0, : len(raw)] = raw
    return pixels.view(np.uint8).reshape(-1)


def test_raw_pixels_of_a_jungfrau_keep_their_gain_bits() -> None:
    pixels = np.random.default_rng(0).integers(0, 2**16, (512, 1024), np.uint16)
    image = np.zeros((1030, 1040), np.uint16)
    JungfrauRawConversion(jungfrau("jungfrau-raw"), 1).convert(
        pixels.view(np.uint8).reshape(-1), image, NO_MESSAGE
    )
    assert np.array_equal(image[515:1027, 8:1032], pixels)
    assert np.count_nonzero(image) == np.count_nonzero(pixels)


def gain_file(path: Path, shape: tuple[int, int], mask: np.ndarray | None = None, **names: Any) -> str:
    """Write a file with the factors 0.5, -2, -10 and pedestals 100, 200, 300."""
    tables = {"gains": (0.5, -2, -10), "gainsRMS": (100, 200, 300)} | names
    with h5py.File(path, "w") as file:
        for name, values in tables.items():
            file[name] = np.stack([np.full(shape, value, np.float64) for value in values])
        if mask is not None:
            file["pixel_mask"] = mask
    return str(path)


def test_gain_bits_choose_pedestal_and_factor(tmp_path: Path) -> None:
    cfg = jungfrau()
    parameters = read_std_daq_file(gain_file(tmp_path / "g.h5", (512, 1024)), cfg, 0)
    conversion = JungfrauConversion(cfg, 0, parameters)
    image = np.zeros(cfg.image_shape, np.float32)
    raw = [0x006C, 0x40FA, 0xC136, 0x8136, 0x0000, 0xFFFF, 0xC000, 0x4000]
    conversion.convert(frame_of(*raw), image, NO_MESSAGE)
    expected = [4.0, -100.0, -100.0, np.nan, -50.0, np.nan, np.inf, 400.0]
    np.testing.assert_array_equal(image[0, :8], np.array(expected, np.float32))
    assert (image[0, 8:1024] == -50).all()
    assert conversion.pixel_counts == {"invalid": 1, "without_data": 1, "saturated": 1}


@pytest.mark.parametrize("shape", [(1030, 1040), (1024, 1024)], ids=["image", "stacked modules"])
def test_each_pixel_has_its_own_parameters(tmp_path: Path, shape: tuple[int, int]) -> None:
    cfg = jungfrau()
    random = np.random.default_rng(0)
    factors, pedestals = random.random((3, *shape)), 1000 * random.random((3, *shape))
    mask = random.integers(0, 50, shape) == 0
    with h5py.File(tmp_path / "g.h5", "w") as file:
        file["gains"], file["gainsRMS"], file["pixel_mask"] = factors, pedestals, mask
    conversion = JungfrauConversion(cfg, 1, read_std_daq_file(str(tmp_path / "g.h5"), cfg, 1))
    pixels = random.integers(0, 2**14, (512, 1024), np.uint16)
    gain = random.integers(0, 3, (512, 1024))
    raw = pixels | np.array([0, 1, 3], np.uint16)[gain] << 14
    raw[(raw == 0xC000) | (raw == 0xFFFF)] = 1
    image = np.zeros(cfg.image_shape, np.float32)
    conversion.convert(raw.view(np.uint8).reshape(-1), image, NO_MESSAGE)
    rows, columns = (
        (slice(515, 1027), slice(8, 1032)) if shape == (1030, 1040) else (slice(512, 1024), slice(None))
    )
    gain, adc = np.array([0, 1, -1, 2])[raw >> 14], (raw & 0x3FFF).astype(np.float32)
    pedestal = np.take_along_axis(pedestals[:, rows, columns], gain[None], 0)[0].astype(np.float32)
    factor = np.take_along_axis(factors[:, rows, columns], gain[None], 0)[0].astype(np.float32)
    expected = np.where(mask[rows, columns], np.nan, (adc - pedestal) * factor).astype(np.float32)
    np.testing.assert_array_equal(image[515:1027, 8:1032], expected)


def test_files_of_psi_divide_and_have_tables_of_high_gain(tmp_path: Path) -> None:
    cfg = jungfrau()
    gains = gain_file(tmp_path / "gains.h5", (1024, 1024), gains=(40, -1.5, -0.1, 100))
    pedestals = gain_file(tmp_path / "pedestals.h5", (1024, 1024), gains=(1000, 15000, 14000, 2000))
    conversion = JungfrauConversion(cfg, 1, read_psi_files(gains, pedestals, cfg, 1))
    image = np.zeros(cfg.image_shape, np.float32)
    message = np.zeros((), JUNGFRAU_FRAME)
    for daq_rec, expected in ((0x80000402, [10.0, 10.0]), (0x80000403, [-6.0, 10.0])):
        message["daq_rec"] = daq_rec
        conversion.convert(frame_of(1400, 0x4000 | 14985), image, message)
        np.testing.assert_allclose(image[515, 8:10], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_text("text"), "not a readable HDF5 file"),
        (lambda path: gain_file(path, (512, 1023)), r"\(3, 512, 1024\).*got float64 of \(3, 512, 1023\)"),
        (lambda path: gain_file(path, (512, 1024), gains=(1, 2)), r"got float64 of \(2, 512, 1024\)"),
        (lambda path: h5py.File(path, "w").close(), r"/gains: expected a data set of shape .*, got none"),
    ],
    ids=["missing", "not HDF5", "too narrow", "two tables", "empty"],
)
def test_gains_that_do_not_fit_are_refused(tmp_path: Path, write: Any, expected: str) -> None:
    write(tmp_path / "g.h5")
    with pytest.raises(ConfigError, match=expected):
        read_std_daq_file(str(tmp_path / "g.h5"), jungfrau(), 0)


def test_compiled_code_that_a_power_failure_has_emptied_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "kept_code.py").write_text(
        "from stddaq.udp.compiling import compiled\n@compiled\ndef one_more(n):\n    return n + 1\n"
    )
    assert importlib.import_module("kept_code").one_more(1) == 2
    files = sorted((tmp_path / "__pycache__").glob("*.nb[ic]"))
    assert [file.suffix for file in files] == [".nbc", ".nbi"]
    for damaged in (files, files[:1], files[1:]):
        for file in damaged:
            file.write_bytes(b"")
        monkeypatch.delitem(sys.modules, "kept_code")
        one_more = importlib.import_module("kept_code").one_more
        make_ready(lambda one_more=one_more: one_more(1), one_more)
        assert one_more(1) == 2
        assert all(file.stat().st_size for file in files)
