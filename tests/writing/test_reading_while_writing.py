"""Other processes read correct images soon after they are published, while the run continues."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.processes.deployment import Service
from support.processes.machine import assert_within
from support.processes.recording import MakeRig, Publishing, Rig, image_of, images_of, read_raw_file

READER = '''
"""Read a growing raw file until it has the row of the last image. Print the number of reads."""
import json
import sys
import time

import h5py
import numpy as np

sys.path.insert(0, sys.argv[1])
from support.processes.recording import image_of

path, last_id, keeps_open = sys.argv[2], int(sys.argv[3]), sys.argv[4] == "keep"


def read(group, checked, every):
    """Check new images and some of the others. Return the number of rows, and whether it has the last."""
    metadata = group["metadata"]
    if keeps_open:
        metadata.refresh()
    rows = metadata[:]
    data = group["data"]
    if keeps_open:
        data.refresh()
    assert data.shape[0] >= len(rows), (data.shape, len(rows))
    for row in [*range(0, checked, every), *range(checked, len(rows))]:
        image = image_of(int(rows["image_id"][row]))
        assert np.array_equal(data[row], image.pixels), f"row {row}"
        assert rows["status"][row] == 1
    return len(rows), bool(len(rows)) and rows["image_id"][-1] >= last_id


reads, growths, n_rows, done = 0, 0, 0, False
print("ready", flush=True)
deadline = time.monotonic() + 90
file = h5py.File(path, "r", swmr=True) if keeps_open else None
while not done and time.monotonic() < deadline:
    opened = file or h5py.File(path, "r", swmr=True)
    n_before = n_rows
    n_rows, done = read(next(iter(opened.values())), n_rows, 17)
    assert n_rows >= n_before
    if n_rows > n_before:
        growths += 1
        print("rows", n_rows, flush=True)
    reads += 1
    if not keeps_open:
        opened.close()
    time.sleep(0.002)
assert done, f"{n_rows} rows, {reads} reads"
print(json.dumps({"reads": reads, "growths": growths, "rows": n_rows}), flush=True)
'''


def start_reader(rig: Rig, path: Path, last_id: int, how: str) -> Service:
    tests = Path(__file__).parents[1]
    return rig.deployment.run(sys.executable, "-c", READER, tests, path, last_id, how, ready="ready")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["reopen", "keep"])
def test_a_reader_sees_every_pixel_of_visible_images_during_the_run(rig: Rig, how: str):
    rig.begin()
    readers = [start_reader(rig, rig.path(f"file{i}.h5"), 598 + i, how) for i in range(2)]
    images = images_of(range(600))
    for first in range(0, 600, 120):
        rig.publish(images[first : first + 120], pause_s=0.001)
        for reader in readers:
            # A reader that stands still sees the file grow all the same.
            reader.wait_for_line(f"rows {(first + 120) // 2}$")
    for reader in readers:
        assert reader.wait(90) == 0, reader.output
        seen = json.loads(reader.stdout[-1])
        assert seen["rows"] == 300
        assert seen["growths"] > 3, seen
    assert rig.client.status().status == "recording"
    account = rig.end(stop=True)
    assert account["n_good"] == 600


def test_images_that_the_driver_counts_are_readable(rig: Rig):
    """The files are never behind `count`."""
    with Publishing(rig, pause_s=0.002):
        rig.client.start(rig.directory)
        for n in (1, 30, 80, 150):
            rig.wait_for_count(n)
            count = rig.client.status().count or 0
            n_rows = sum(len(read_raw_file(rig.path(f"file{i}.h5"), swmr=True)[0]) for i in range(2))
            assert n_rows >= count >= n
        rig.end(stop=True)


def test_a_single_image_is_readable_soon_after_it_was_published(rig: Rig):
    rig.begin()
    for image_id in range(5):
        image = image_of(image_id)
        rig.publish([image])
        begin = time.monotonic()
        while not visible(rig.path(f"file{image_id % 2}.h5"), image_id):
            assert_within(time.monotonic() - begin, 1.0)
        # The run waits for more images.
    rig.end(stop=True)


def visible(path: Path, image_id: int) -> bool:
    rows, data = read_raw_file(path, swmr=True)
    if image_id not in rows["image_id"]:
        return False
    return np.array_equal(data[rows["image_id"].tolist().index(image_id)], image_of(image_id).pixels)


def test_images_larger_than_the_block_are_readable_during_the_run(make_rig: MakeRig):
    rig = make_rig(number_of_writers=1, gpfs_block_size=1000)
    rig.begin()
    images = images_of(range(3))
    for n, image in enumerate(images, 1):
        rig.publish([image])
        rig.wait_for_count(n)
        rows, data = read_raw_file(rig.path("file0.h5"), swmr=True)
        assert rows["image_id"].tolist() == list(range(n))
        assert np.array_equal(data[-1], image.pixels)
    rig.end(stop=True)


@pytest.mark.fault(
    fault="driver and all writers at once: SIGKILL",
    state="recording, under load",
    promise="all images that were reported as written are readable",
)
def test_all_services_killed_at_once_leave_files_with_all_counted_images(rig: Rig):
    with Publishing(rig) as source:
        rig.client.start(rig.directory)
        rig.client.wait_until_ready(60)
        with source.spared():
            rig.wait_for_count(200)
            count = rig.client.status().count or 0
            for service in (rig.driver, *rig.writers):
                os.kill(service.pid, signal.SIGKILL)
        for service in (rig.driver, *rig.writers):
            service.wait()
    n_rows = 0
    for i in range(2):
        with pytest.raises(OSError, match="already open for"):
            h5py.File(rig.path(f"file{i}.h5"))
        rows, data = read_raw_file(rig.path(f"file{i}.h5"), swmr=True)
        n_rows += len(rows)
        for row, pixels in zip(rows, data, strict=True):
            assert np.array_equal(pixels, image_of(int(row["image_id"])).pixels)
    assert n_rows >= count
