"""Raw files without services hold exactly their images, for any sequence of batches and flushes."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stddaq.files.raw_file import RawFile, RawLayout
from stddaq.wire.std_daq import image_metadata_pb2 as pb

SHAPE = (3, 5)
IMAGE_BYTES = 30

Put = st.tuples(
    st.just("put"), st.lists(st.sampled_from(["good", "lost", "lost meanwhile"]), min_size=1, max_size=9)
)
Steps = st.lists(st.one_of(Put, st.just(("flush", []))), max_size=12)


def layout_of(block_bytes: int = 100, compression: int = pb.none) -> RawLayout:
    return RawLayout("det", SHAPE, np.dtype("<u2"), block_bytes, compression)


def pixels_of(row: int) -> np.ndarray:
    return np.full(SHAPE, row + 1, "<u2")


def visible(path: Path) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Return the images that another process sees while the file is written, or after a crash."""
    # Opening the file in this process would share the writer's caches.
    snapshot = path.with_name("snapshot.h5")
    shutil.copyfile(path, snapshot)
    with h5py.File(snapshot, "r", swmr=True) as file:
        group: Any = file["det"]
        rows = group["metadata"][:].tolist()
        return rows, group["data"][: len(rows)]


def assert_is(rows: list[tuple[int, int]], data: np.ndarray, expected: list[tuple[int, int, bool]]) -> None:
    assert rows == [(image_id, status) for image_id, status, _ in expected]
    assert len(data) == len(expected)
    for row, (_, _, has_pixels) in enumerate(expected):
        assert np.array_equal(data[row], pixels_of(row) if has_pixels else np.zeros(SHAPE, "<u2"))


@settings(max_examples=60, deadline=None)
@given(
    steps=Steps,
    block_bytes=st.sampled_from([1, IMAGE_BYTES, 100, 64 * IMAGE_BYTES, 2**20]),
    expected_images=st.sampled_from([0, 1, 5, 40]),
    compression=st.sampled_from([pb.none, pb.h5bitshuffle_lz4]),
)
def test_images_that_are_put_and_flushed_are_read_back(
    steps: list[Any], block_bytes: int, expected_images: int, compression: int
):
    reference: list[tuple[int, int, bool]] = []
    n_visible = 0
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        path = Path(directory) / "raw.h5"
        file = RawFile.create(path, layout_of(block_bytes, compression), {}, expected_images=expected_images)
        for kind, images in steps:
            if kind == "flush":
                file.flush()
                n_visible = len(reference)
            else:
                put(file, images, compression, len(reference))
                for i, how in enumerate(images, len(reference)):
                    good = how == "good"
                    file.declare([(i * 3, 1 if good else 3)])
                    reference.append((i * 3, 1 if good else 3, good))
            assert_is(*visible(path), reference[:n_visible])
            assert file.n_visible == n_visible
            assert file.n_images == len(reference)
        file.close()
        with h5py.File(path) as closed:
            group: Any = closed["det"]
            assert group["data"].shape == (len(reference), *SHAPE)
            assert group["metadata"].shape == (len(reference),)
            assert_is(group["metadata"][:].tolist(), group["data"][:], reference)


def put(file: RawFile, images: list[str], compression: int, first: int) -> None:
    """Put images as the writer does, which blanks overwritten images afterwards."""
    slots: list[memoryview | None] = []
    for row, how in enumerate(images, first):
        content = pixels_of(row)
        slots.append(None if how == "lost" else memoryview(encode(content, compression)))
    file.put(slots)
    for row, how in enumerate(images, first):
        if how == "lost meanwhile":
            file.blank(row)


def encode(pixels: np.ndarray, compression: int) -> bytes:
    if not compression:
        return pixels.tobytes()
    with h5py.File.in_memory() as file:
        data = file.create_dataset(
            "data", data=pixels[None], chunks=(1, *SHAPE), **hdf5plugin.Bitshuffle(cname="lz4")
        )
        return bytes(data.id.read_direct_chunk((0, 0, 0))[1])


@given(
    block_bytes=st.integers(1, 2**26),
    image_bytes=st.integers(1, 2**25),
    expected=st.integers(0, 10**6),
)
def test_chunks_are_whole_images_of_at_most_a_block_and_waste_little(
    block_bytes: int, image_bytes: int, expected: int
):
    layout = RawLayout("det", (1, image_bytes), np.dtype("u1"), block_bytes, pb.none)
    chunk = layout.chunk_images(expected)
    assert 1 <= chunk <= max(1, block_bytes // image_bytes)
    if not expected:
        assert chunk == max(1, block_bytes // image_bytes)
    else:
        unused = -expected % chunk * image_bytes
        assert unused <= 0.05 * expected * image_bytes + 2**20


def test_compressed_images_have_a_chunk_each():
    assert layout_of(2**24, pb.blosc2).chunk_images(1000) == 1


def test_an_existing_file_is_not_changed(tmp_path: Path):
    path = tmp_path / "raw.h5"
    path.write_text("precious")
    with pytest.raises(FileExistsError):
        RawFile.create(path, layout_of(), {})
    assert path.read_text() == "precious"


def test_images_that_hdf5_could_not_read_do_not_keep_their_slots(tmp_path: Path):
    file = RawFile.create(tmp_path / "raw.h5", layout_of(compression=pb.h5bitshuffle_lz4), {})
    ring = bytearray(64)
    unreadable = file.put([memoryview(ring)[:32], memoryview(ring)[32:]])
    assert set(unreadable) == {0, 1}
    ring.clear()  # `BufferError` while a slot is in use; a ring would stay mapped.
    file.close()


def test_restarts_of_the_ids_are_stored(tmp_path: Path):
    file = RawFile.create(tmp_path / "raw.h5", layout_of(), {"writer": 3})
    for image_id in (5, 6, 1, 2):
        file.put([memoryview(pixels_of(0).tobytes())])
        file.declare([(image_id, 1)])
    file.close(epochs=[(2, 1)])
    with h5py.File(tmp_path / "raw.h5") as closed:
        assert closed["det/epochs"][:].tolist() == [(2, 1)]  # pyright: ignore
        assert closed["det"].attrs["writer"] == 3


def test_a_file_can_be_closed_after_it_was_abandoned_and_vice_versa(tmp_path: Path):
    for i, name in enumerate(("a.h5", "b.h5")):
        file = RawFile.create(tmp_path / name, layout_of(), {})
        file.abandon()
        if i:
            file.abandon()
