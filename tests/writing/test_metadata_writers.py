"""The metadata file of each detector type has one row per image, as the source published it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support.data.raw_files import GF_ROW
from support.processes.deployment import wait_until
from support.processes.recording import MakeRig, Rig, assert_saved, image_of, images_of

from stddaq.dataplane.metadata import ImageMetadata

BIG = 2**64 - 5


def gigafrost(metadata: ImageMetadata, i: int) -> tuple[int, ...]:
    fields = metadata.gf
    fields.scan_id, fields.scan_time, fields.sync_time = 7, 2**32 - 1 - i, i * 3
    fields.frame_timestamp, fields.exposure_time, fields.store_image = BIG - i, 10**9 + i, True
    return (7, 2**32 - 1 - i, i * 3, BIG - i, 10**9 + i)


def jungfrau(metadata: ImageMetadata, i: int) -> tuple[int, ...]:
    metadata.jf.daq_rec = BIG - i
    return (BIG - i,)


def eiger(metadata: ImageMetadata, i: int) -> tuple[int, ...]:
    metadata.eg.exptime = BIG - i
    return (BIG - i,)


def pco(metadata: ImageMetadata, i: int) -> tuple[int, ...]:
    metadata.pco.global_timestamp_sec, metadata.pco.global_timestamp_ns = 1_700_000_000 + i, 999_999_999 - i
    metadata.pco.bsread_name = "camera"
    return (1_700_000_000 + i, 999_999_999 - i)


CASES: list[Any] = [
    ("gf", "gigafrost", gigafrost, GF_ROW.descr),
    ("jf", "jungfrau-raw", jungfrau, [("image_id", "<u8"), ("daq_rec", "<u8")]),
    ("eg", "eiger", eiger, [("image_id", "<u8"), ("exptime", "<u8")]),
    (
        "pco",
        "pco",
        pco,
        [("image_id", "<u8"), ("global_timestamp_sec", "<u8"), ("global_timestamp_ns", "<u8")],
    ),
]


def metadata_rows(rig: Rig, path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        rows: Any = file[f"{rig.config.detector_name}/metadata"]
        return rows[:]


@pytest.mark.parametrize(("short", "detector", "fill", "fields"), CASES, ids=[case[0] for case in CASES])
def test_metadata_file_holds_the_published_metadata(
    make_rig: MakeRig,
    short: str,
    detector: str,
    fill: Callable[[ImageMetadata, int], tuple[int, ...]],
    fields: list[tuple[str, str]],
):
    rig = make_rig(driver=["-m"], detector_type=detector)
    rig.deployment.start(f"std_det_meta_writer_{short}")
    images = [image_of(i) for i in (3, 4, 9, 10, 2**40)]
    expected = []
    rig.begin(n_image=5)
    for i, image in enumerate(images):
        expected.append((image.image_id, *fill(rig.source.metadata, i)))
        rig.publish([image])
    account = rig.end()
    assert_saved(account, images)
    assert account["files"]["metadata"] == str(rig.path("fileMeta.h5"))
    rows = metadata_rows(rig, rig.path("fileMeta.h5"))
    assert rows.dtype == np.dtype(fields)
    assert rows.tolist() == expected
    with h5py.File(rig.path("fileMaster.h5")) as file:
        beside: Any = file["entry/instrument/detector/metadata"]
        assert beside[:].tolist() == expected


def test_metadata_file_of_a_run_without_images_is_empty(make_rig: MakeRig):
    rig = make_rig(driver=["-m"], number_of_writers=1)
    rig.deployment.start("std_det_meta_writer_gf")
    assert_saved(rig.record([]), [])
    assert len(metadata_rows(rig, rig.path("fileMeta.h5"))) == 0


def test_metadata_rows_are_readable_during_the_run(make_rig: MakeRig):
    rig = make_rig(driver=["-m"], number_of_writers=1)
    rig.deployment.start("std_det_meta_writer_gf")
    rig.begin(n_image=3000)
    rig.publish(images_of(range(500)))
    rig.wait_for_count(500)

    def n_rows() -> int:
        with h5py.File(rig.path("fileMeta.h5"), "r", swmr=True) as file:
            rows: Any = file[f"{rig.config.detector_name}/metadata"]
            return len(rows)

    wait_until(lambda: n_rows() == 500, 20, "500 rows")
    rig.end(stop=True)


def test_a_metadata_writer_refuses_another_detector(make_rig: MakeRig):
    rig = make_rig(writers=False)
    service = rig.deployment.start("std_det_meta_writer_jf", ready=None)
    assert service.wait() == 2
    assert "expected jungfrau-raw or jungfrau-converted for std_det_meta_writer_jf, got" in service.stderr[-1]
