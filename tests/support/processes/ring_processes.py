"""Other users of a ring buffer, as processes: `python ring_processes.py ROLE CONFIGURATION ...`.

Roles: `hold` attaches as a service of stddaq does; `map` only maps the segment, as a C++ service does; `lap`
keeps overwriting one slot with new images; `publish` is a source. Each prints `ready`, and exits when its
standard input is closed.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import sys
import time
from pathlib import Path

from support.processes.recording import images_of

from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.dataplane.ring_buffer import RingBuffer


def wait_for_end(timeout: float | None = None) -> bool:
    """Return whether standard input is closed within `timeout` seconds."""
    return bool(select.select([sys.stdin], [], [], timeout)[0])


def hold(config: DetectorConfig, suffix: str) -> None:
    with RingBuffer(config, suffix):
        print("ready", flush=True)
        wait_for_end()


def map_only(path: str) -> None:
    with Path(path).open("r+b") as file, mmap.mmap(file.fileno(), 0):
        print("ready", flush=True)
        wait_for_end()


def lap(config: DetectorConfig, suffix: str, announcements: str) -> None:
    """Fill image `k * n_slots` with k. The file `announcements` holds k and its sequence as uint64."""
    with (
        RingBuffer(config, suffix, as_source=True) as ring,
        Path(announcements).open("wb", buffering=0) as announced,
    ):
        k = 0
        while not wait_for_end(0):
            image_id = k * ring.geometry.n_slots
            ring.begin(image_id)
            ring.image(image_id)[:] = k
            sequence = ring.commit(image_id)
            os.pwrite(announced.fileno(), k.to_bytes(8, "little") + sequence.to_bytes(8, "little"), 0)
            if k == 0:
                print("ready", flush=True)
            k += 1
            # A reader has time to copy one image in four before it is overwritten.
            if k % 4 == 0:
                time.sleep(0.0005)


def publish(config: DetectorConfig, first_id: str, end_id: str) -> None:
    """Publish `images_of` the ids to one subscriber, after a line on standard input."""
    with ImagePublisher(config) as source:
        print("ready", flush=True)
        sys.stdin.readline()
        assert source.wait_for_subscribers(1, 60)
        for image in images_of(range(int(first_id), int(end_id)), shape=config.image_shape):
            source.publish(image.image_id, image.pixels)
        wait_for_end()


if __name__ == "__main__":
    role, where, *arguments = sys.argv[1:]
    if role == "map":
        map_only(where)
    else:
        {"hold": hold, "lap": lap, "publish": publish}[role](
            DetectorConfig.parse(json.loads(where)), *arguments
        )
