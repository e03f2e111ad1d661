"""Images of growing files are published in the order of the run, however far each writer is."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.data.raw_files import RunSpec, divide, stream, write_raw_file

from stddaq.files.growing_run import GrowingFiles, in_order, n_settled

N_IMAGES = 12


@settings(max_examples=60)
@given(
    n_writers=st.integers(1, 4),
    division=st.sampled_from(["image_id", "arrival"]),
    n_skipped=st.integers(0, 3),
    n_sent=st.integers(0, N_IMAGES),
    visible=st.lists(st.integers(0, N_IMAGES), min_size=4, max_size=4),
)
# The driver reported 3 sent images. Then it sent image 3 to writer 0, which has not flushed it, and image 4
# to writer 1, which has.
@example(n_writers=3, division="image_id", n_skipped=0, n_sent=3, visible=[1, 2, 1, 0])
def test_settled_images_are_the_first_of_the_run(
    n_writers: int, division: str, n_skipped: int, n_sent: int, visible: list[int]
) -> None:
    """Some images are readable, of `n_sent` and of those that were sent while the files were read."""
    images = stream(range(0, N_IMAGES * (n_skipped + 1), n_skipped + 1))
    spec = RunSpec(n_writers=n_writers, division=division)
    with tempfile.TemporaryDirectory() as directory:
        paths = spec.raw_paths(Path(directory))
        of_writers = divide(images, n_writers, division)
        for writer, (path, mine) in enumerate(zip(paths, of_writers, strict=True)):
            write_raw_file(path, mine[: visible[writer]], spec, writer)
        first = [0] * n_writers
        sent = [len(mine) for mine in divide(images[:n_sent], n_writers, division)]
        growing = GrowingFiles(paths)
        found = in_order(growing.files, first, growing.ids(first, sent))
    assert found is not None
    n = n_settled(found, first, sent)
    assert found.ids[:n].tolist() == [image.image_id for image in images[:n]]
    if all(n_visible >= n_rows for n_visible, n_rows in zip(visible, sent, strict=False)):
        assert n == n_sent
