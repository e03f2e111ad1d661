"""`/api/h5`: the content of files, master files, and the limits of access."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import requests
from h5py import h5d, h5p, h5s, h5t  # pyright: ignore[reportAttributeAccessIssue]
from support.data.nexus_metadata import STILLS
from support.data.raw_files import RunSpec, stream, write_run
from support.processes.deployment import wait_until
from support.processes.previews import decoded
from support.processes.recording import Rig, image_of, images_of
from support.processes.web import RestService

from stddaq.client import DriverClient, NotAllowedError, NotFoundError, RequestRefusedError
from stddaq.wire.preview import split

ROW = np.dtype([("image_id", "<u8"), ("status", "<u8")])


def write_raw_files(directory: Path, n_images: int = 10, n_writers: int = 2, prefix: str = "file") -> None:
    """Write raw files in the layout of C++ writers; every pixel of image i is i."""
    for writer in range(n_writers):
        ids = np.arange(writer, n_images, n_writers)
        with h5py.File(directory / f"{prefix}{writer}.h5", "w") as file:
            file["GF2/data"] = np.ones((1, 4, 6), np.uint16) * ids[:, None, None].astype(np.uint16)
            file["GF2/metadata"] = np.array([(i, 1) for i in ids], ROW)


@pytest.fixture
def root(rest: RestService) -> Path:
    write_raw_files(rest.root)
    return rest.root


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Return an HDF5 file outside the roots."""
    path = tmp_path / "outside.h5"
    with h5py.File(path, "w") as file:
        file["GF2/metadata"] = np.array([(4711, 1)], ROW)
    return path


def test_datasets_shapes_and_types_are_described(rest: RestService, root: Path) -> None:
    status = rest.client.file_status(root / "file0.h5")
    assert (status["kind"], status["n_images"], status["closed"]) == ("raw", 5, True)
    data, metadata = status["datasets"]
    assert (data["name"], data["shape"], data["dtype"]) == ("/GF2/data", [5, 4, 6], "uint16")
    assert (metadata["shape"], metadata["dtype"]) == ([5], "{image_id uint64, status uint64}")


def test_rows_are_returned_by_column_and_in_ranges(rest: RestService, root: Path) -> None:
    (table,) = rest.client.read_metadata(root / "file1.h5")["tables"]
    assert (table["name"], table["n_rows"]) == ("/GF2/metadata", 5)
    assert table["columns"] == {"image_id": [1, 3, 5, 7, 9], "status": [1] * 5}
    (table,) = rest.client.read_metadata(root / "file1.h5", first_row=1, max_rows=2)["tables"]
    assert (table["n_rows"], table["columns"]["image_id"]) == (5, [3, 5])
    (table,) = rest.client.read_metadata(root / "file1.h5", first_row=5)["tables"]
    assert table["columns"] == {"image_id": [], "status": []}


def test_a_master_file_is_made_and_read_through(rest: RestService, root: Path) -> None:
    made = rest.client.create_interleaved_vds(root, "all.h5")
    assert (made["filename"], made["n_images"]) == (str(root / "all.h5"), 10)
    with h5py.File(root / "all.h5") as file:
        images = np.asarray(file["entry/data/data"])
    assert images[:, 0, 0].tolist() == list(range(10))
    (table,) = rest.client.read_metadata(root / "all.h5")["tables"]
    assert table["columns"]["image_id"] == list(range(10))
    assert rest.client.file_status(root / "all.h5")["kind"] == "master"


@pytest.fixture
def stills(rest: RestService) -> Path:
    write_run(rest.root, stream(range(6)), RunSpec(prefix="run_"))
    return rest.root


def test_nxmx_file_is_made_of_the_values_of_a_request(rest: RestService, stills: Path) -> None:
    asked = {"base_path": str(stills), "file_prefix": "run_", "definition": "NXmx"}
    refused = rest.post("/api/h5/create_nexus", asked | {"metadata": {"sample": {"name": "lysozyme"}}})
    assert refused.status_code == 422
    assert "beam.energy_kev" in refused.json()["detail"]
    made = rest.client.create_nexus(stills, STILLS, "run_")
    path = stills / "run__master.h5"
    assert (made["filename"], made["definition"], made["missing"]) == (str(path), "NXmx", [])
    assert (made["n_frames"], made["n_mapped"]) == (6, 6)
    with h5py.File(path) as file:
        assert np.asarray(file["entry/definition"]) == b"NXmx"
        assert np.asarray(file["entry/sample/name"]) == b"lysozyme"
    assert rest.client.file_status(path)["kind"] == "NXmx"
    assert rest.post("/api/h5/create_nexus", asked | {"metadata": STILLS}).status_code == 409


def test_nxmx_file_may_be_incomplete_and_have_another_name(rest: RestService, stills: Path) -> None:
    made = rest.client.create_nexus(stills, {}, "run_", output_file="part.h5", incomplete=True)
    assert (made["filename"], made["definition"]) == (str(stills / "part.h5"), None)
    assert "beam.energy_kev" in made["missing"]


def test_mask_and_output_of_an_nxmx_file_must_be_below_the_roots(
    rest: RestService, stills: Path, tmp_path: Path
) -> None:
    mask = tmp_path / "mask.npy"
    np.save(mask, np.zeros((2, 3), np.uint8))
    asked: dict[str, Any] = {"base_path": str(stills), "file_prefix": "run_", "definition": "NXmx"}
    for name in (str(mask), f"{mask}:/mask"):
        metadata = STILLS | {"detector": STILLS["detector"] | {"mask_file": name}}
        answer = rest.post("/api/h5/create_nexus", asked | {"metadata": metadata})
        assert answer.status_code == 403, answer.text
    asked["metadata"] = STILLS
    assert rest.post("/api/h5/create_nexus", asked | {"output_file": "../out.h5"}).status_code == 403
    assert rest.post("/api/h5/create_nexus", asked | {"definition": "NXsas"}).status_code == 422
    assert sorted(path.name for path in stills.glob("*master*")) == []


def test_an_existing_file_is_not_replaced(rest: RestService, root: Path) -> None:
    before = (root / "file0.h5").read_bytes()
    with pytest.raises(RequestRefusedError) as refused:
        rest.client.create_interleaved_vds(root, "file0.h5")
    assert refused.value.status == 409
    assert (root / "file0.h5").read_bytes() == before


def test_prefix_without_raw_files_is_refused(rest: RestService, root: Path) -> None:
    with pytest.raises(RequestRefusedError, match=r"scan0\.h5: is missing") as refused:
        rest.client.create_interleaved_vds(root, "all.h5", "scan")
    assert refused.value.status == 422
    assert not (root / "all.h5").exists()


def test_files_outside_the_roots_are_refused(rest: RestService, root: Path, outside: Path) -> None:
    (root / "link.h5").symlink_to(outside)
    (root / "directory").symlink_to(outside.parent)
    for name in (
        outside,
        f"{root}/../outside.h5",
        root / "link.h5",
        root / "directory" / "outside.h5",
        f"{root}/directory/../outside.h5",
    ):
        for request in ("read_metadata", "get_metadata_status"):
            answer = rest.get(f"/api/h5/{request}", filename=name)
            assert answer.status_code == 403, name
            assert "4711" not in answer.text
        with pytest.raises(NotAllowedError):
            rest.client.file_status(name)


def test_existence_of_files_outside_the_roots_is_not_revealed(rest: RestService, outside: Path) -> None:
    answers = [
        rest.get("/api/h5/get_metadata_status", filename=name) for name in (outside, f"{outside}.absent")
    ]
    assert [answer.status_code for answer in answers] == [403, 403]


def test_files_that_a_file_refers_to_must_be_below_the_roots_too(
    rest: RestService, root: Path, outside: Path
) -> None:
    with h5py.File(root / "virtual.h5", "w") as file:
        layout = h5py.VirtualLayout((1,), ROW)
        layout[:] = h5py.VirtualSource(str(outside), "GF2/metadata", (1,), ROW)
        file.create_virtual_dataset("metadata", layout)
    with h5py.File(root / "twice.h5", "w") as file:
        layout = h5py.VirtualLayout((1,), ROW)
        layout[:] = h5py.VirtualSource("virtual.h5", "metadata", (1,), ROW)
        file.create_virtual_dataset("metadata", layout)
    with h5py.File(root / "external.h5", "w") as file:
        file.create_dataset("metadata", (1,), ROW, external=[("/etc/passwd", 0, 16)])
    with h5py.File(root / "linked.h5", "w") as file:
        file["entry/data/data"] = h5py.ExternalLink(str(outside), "GF2/metadata")
        file["metadata"] = np.array([(1, 1)], ROW)
    with h5py.File(root / "pattern.h5", "w") as file:
        (root / "0").symlink_to(outside.parent)
        every = h5s.create_simple((1,), (h5s.UNLIMITED,))
        every.select_hyperslab((0,), (h5s.UNLIMITED,), (1,), (1,))
        creation = h5p.create(h5p.DATASET_CREATE)
        creation.set_virtual(
            every, f"%b/{outside.name}".encode(), b"GF2/metadata", h5s.create_simple((1,), (1,))
        )
        h5d.create(file.id, b"metadata", h5t.py_create(ROW), every, dcpl=creation)
    # Storage in a file below the root, too: what is shown is not what was checked.
    with h5py.File(root / "own-external.h5", "w") as file:
        file.create_dataset("metadata", (1,), ROW, external=[("own.bin", 0, 16)])
    for name in ("virtual", "twice", "external", "linked", "pattern", "own-external"):
        for request in ("read_metadata", "get_metadata_status"):
            answer = rest.get(f"/api/h5/{request}", filename=root / f"{name}.h5")
            assert answer.status_code == 403, (name, answer.text)
            assert "4711" not in answer.text
    with h5py.File(root / "inside.h5", "w") as file:
        file["other"] = h5py.ExternalLink("twice.h5", "metadata")
        file["metadata"] = np.array([(1, 1)], ROW)
    status = rest.get("/api/h5/get_metadata_status", filename=root / "inside.h5").json()
    assert [dataset["name"] for dataset in status["datasets"]] == ["/metadata"]


def test_source_that_hdf5_finds_only_in_another_directory_is_not_read(
    rest: RestService, root: Path, outside: Path
) -> None:
    """HDF5 looks for a relative name in the current directory of the process as well."""
    relative = str(outside).lstrip("/")
    with h5py.File(root / "virtual.h5", "w") as file:
        layout = h5py.VirtualLayout((1,), ROW)
        layout[:] = h5py.VirtualSource(relative, "GF2/metadata", (1,), ROW)
        file.create_virtual_dataset("metadata", layout)
    assert "4711" not in rest.get("/api/h5/read_metadata", filename=root / "virtual.h5").text


def test_raw_file_that_is_a_link_inside_hdf5_makes_no_master_file(
    rest: RestService, root: Path, outside: Path
) -> None:
    write_raw_files(root, n_writers=1)
    with h5py.File(root / "file1.h5", "w") as file:
        file["GF2"] = h5py.ExternalLink("file0.h5", "/")
    with pytest.raises(NotAllowedError, match="with links to other files"):
        rest.client.create_interleaved_vds(root, "all.h5")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to have rights")
def test_file_of_a_user_is_read_with_the_rights_of_the_user(rest: RestService, outside: Path) -> None:
    """The process has no right to read a source that only root may read, even below a root."""
    place = Path(tempfile.mkdtemp(prefix="stddaq-", dir="/tmp"))
    try:
        place.chmod(0o755)
        secret = Path(shutil.copy(outside, place / "secret.h5"))
        secret.chmod(0o600)
        with h5py.File(place / "virtual.h5", "w") as file:
            layout = h5py.VirtualLayout((1,), ROW)
            layout[:] = h5py.VirtualSource("secret.h5", "GF2/metadata", (1,), ROW)
            file.create_virtual_dataset("metadata", layout)
        started = rest.start(rest.deployment, place)
        name = place / "virtual.h5"
        assert "4711" in started.get("/api/h5/read_metadata", filename=name).text
        os.chown(name, 65534, 65534)
        answer = started.get("/api/h5/read_metadata", filename=name)
        assert "4711" not in answer.text
        assert answer.status_code != 200
    finally:
        shutil.rmtree(place)


def test_a_master_file_is_made_below_the_roots_only(rest: RestService, root: Path, tmp_path: Path) -> None:
    (root / "link").symlink_to(tmp_path)
    for output in ("../all.h5", str(tmp_path / "all.h5"), "link/all.h5", "..", "absent/all.h5", "a\0b"):
        with pytest.raises(RequestRefusedError) as refused:
            rest.client.create_interleaved_vds(root, output)
        assert refused.value.status in (403, 422)
        assert not (tmp_path / "all.h5").exists()


def test_a_raw_file_that_is_a_link_out_of_the_roots_is_refused(
    rest: RestService, root: Path, outside: Path
) -> None:
    (root / "file2.h5").symlink_to(outside)
    with pytest.raises(NotAllowedError):
        rest.client.create_interleaved_vds(root, "all.h5")


def test_path_that_is_not_an_hdf5_file_is_refused(rest: RestService, root: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        rest.client.read_metadata(root / "absent.h5")
    (root / "text.h5").write_text("no HDF5")
    (root / "cut.h5").write_bytes((root / "file0.h5").read_bytes()[:1000])
    os.mkfifo(root / "pipe.h5")
    for name in ("text.h5", "cut.h5", "pipe.h5", "."):
        with pytest.raises(RequestRefusedError) as refused:
            rest.client.file_status(root / name)
        assert refused.value.status == 422, name
    for name in ("relative.h5", "/a\0b", ""):
        assert rest.get("/api/h5/read_metadata", filename=name).status_code == 422


def test_without_roots_no_file_is_touched(rest: RestService, tmp_path: Path) -> None:
    process = rest.deployment.start("stddaq-rest", "--port", 0, ready=None)
    url = process.wait_for_line(r"listening on (http://\S+)")[1]
    write_raw_files(tmp_path)
    import requests

    answer = requests.get(
        f"{url}/api/h5/read_metadata", params={"filename": str(tmp_path / "file0.h5")}, timeout=20
    )
    assert answer.status_code == 403
    assert "--root" in answer.json()["detail"]


def test_files_of_a_current_run_can_be_read(rest: RestService) -> None:
    deployment = rest.deployment
    _, url = deployment.start_driver()
    deployment.start_writers()
    deployment.run(deployment.stddaq, "simulate", deployment.config_path, "--rate", 200, ready="ready")
    with DriverClient(url) as driver:
        driver.start(rest.root, n_image=1_000_000)
        driver.wait_for(lambda status: (status.count or 0) > 10, timeout=20)
        status = rest.client.file_status(rest.root / "file0.h5")
        assert (status["kind"], status["closed"]) == ("raw", False)
        assert "being written by process" in status["not_closed"]
        metadata = rest.client.read_metadata(rest.root / "file0.h5")
        assert metadata["closed"] is False
        (table,) = metadata["tables"]
        assert len(table["columns"]["image_id"]) > 0
        with pytest.raises(RequestRefusedError) as refused:
            rest.client.create_interleaved_vds(rest.root, "early.h5")
        assert refused.value.status == 409
        driver.stop()
        driver.wait_until_saved(timeout=20)
    assert rest.client.file_status(rest.root / "file0.h5")["closed"] is True


@pytest.fixture
def hanging(start_rest: Callable[..., RestService]) -> RestService:
    """Start a service whose requests for files always exceed their timeout."""
    return start_rest("--file-timeout", 0.001)


def test_a_hanging_file_system_does_not_block_the_service(hanging: RestService) -> None:
    write_raw_files(hanging.root)
    answer = hanging.get("/api/h5/read_metadata", filename=hanging.root / "file0.h5")
    assert answer.status_code == 504
    begin = time.monotonic()
    assert hanging.client.get() == hanging.deployment.config
    assert time.monotonic() - begin < 20
    assert hanging.process.end() == 0


def image_in(answer: requests.Response) -> tuple[dict[str, Any], np.ndarray]:
    """Return header and counts of an image in an answer."""
    assert answer.status_code == 200, answer.text
    header, payload = split(memoryview(answer.content))
    return header, decoded(header, payload)


def test_images_are_returned_by_position(rest: RestService, root: Path) -> None:
    header, counts = image_in(rest.get("/api/h5/image", filename=root / "file1.h5", index=2))
    assert (header["dataset"], header["index"], header["n_images"]) == ("/GF2/data", 2, 5)
    assert (header["image"], header["status"], header["shape"]) == (5, 1, [4, 6])
    assert (counts == 5).all()
    rest.client.create_interleaved_vds(root, "all.h5")
    header, counts = image_in(rest.get("/api/h5/image", filename=root / "all.h5", index=8))
    assert (header["dataset"], header["image"]) == ("/entry/data/data", 8)
    assert (counts == 8).all()
    refused = rest.get("/api/h5/image", filename=root / "file1.h5", index=5)
    assert (refused.status_code, refused.json()["detail"]) == (422, "index: expected 0 to 4, got 5")


def test_images_of_other_types_and_of_files_without_rows_are_returned(rest: RestService, root: Path) -> None:
    with h5py.File(root / "other.h5", "w") as file:
        file["signed"] = np.full((1, 3, 4), -7, "<i4")
    with h5py.File(root / "none.h5", "w") as file:
        file["rows"] = np.zeros(3)
    header, counts = image_in(rest.get("/api/h5/image", filename=root / "other.h5"))
    assert (header["image"], header["status"], header["min"]) == (None, None, -7)
    np.testing.assert_allclose(counts * header["scale"] + header["offset"], -7, rtol=1e-6)
    refused = rest.get("/api/h5/image", filename=root / "none.h5")
    assert refused.status_code == 422
    assert "expected images, a three-dimensional dataset, got none" in refused.json()["detail"]


def test_images_of_files_outside_the_roots_are_refused(rest: RestService, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.h5"
    with h5py.File(outside, "w") as file:
        file["data"] = np.ones((1, 2, 2), np.uint16)
    layout = h5py.VirtualLayout((1, 2, 2), np.uint16)
    layout[:] = h5py.VirtualSource(outside, "data", (1, 2, 2))
    with h5py.File(root / "inside.h5", "w") as file:
        file.create_virtual_dataset("data", layout)
    for path in (outside, root / "inside.h5"):
        assert rest.get("/api/h5/image", filename=path).status_code == 403


def test_image_of_a_run_is_returned_while_it_is_recorded(rig: Rig) -> None:
    rest = RestService.start(rig.deployment, rig.directory)
    rig.begin(n_image=6)
    rig.publish(images_of(range(4)))
    rig.wait_for_count(4)

    def written() -> requests.Response | None:
        answer = rest.get("/api/h5/image", filename=rig.path("file1.h5"), index=1)
        return answer if answer.status_code == 200 else None

    header, counts = image_in(wait_until(written, 20, "the second image of writer 1", 0.1))
    assert (header["image"], header["status"]) == (3, 1)
    np.testing.assert_array_equal(counts, image_of(3).pixels)
    rig.publish(images_of(range(4, 6)))
    rig.end()
