"""Services attach to a ring buffer and leave it in any order, or all at once; the last removes it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes.deployment import make_config

ROUNDS = 12

# Run in a new process, which has no threads and none of the tests' files when it forks.
PROGRAM = """
import json, multiprocessing, sys
from stddaq.config import DetectorConfig
from stddaq.dataplane.ring_buffer import RingBuffer

def attach_and_leave(config, barrier):
    barrier.wait()
    ring = RingBuffer(config, "image")
    barrier.wait()
    ring.close()

for round in range(int(sys.argv[2])):
    content = json.loads(sys.argv[1])
    content["detector_name"] += f"-{round}"
    config = DetectorConfig.parse(content)
    barrier = multiprocessing.Barrier(4)
    services = [multiprocessing.Process(target=attach_and_leave, args=(config, barrier)) for _ in range(4)]
    for service in services:
        service.start()
    for service in services:
        service.join()
        assert service.exitcode == 0
"""

# Services attach and leave at random times.
COMING_AND_GOING = """
import json, multiprocessing, random, sys, time
from stddaq.config import DetectorConfig
from stddaq.dataplane.ring_buffer import RingBuffer

def come_and_go(config, seed):
    times = random.Random(seed)
    for _ in range(12):
        time.sleep(times.uniform(0, 0.003))
        with RingBuffer(config, "image"):
            time.sleep(times.uniform(0, 0.004))

for round in range(int(sys.argv[2])):
    content = json.loads(sys.argv[1])
    content["detector_name"] += f"-{round}"
    config = DetectorConfig.parse(content)
    services = [
        multiprocessing.Process(target=come_and_go, args=(config, 10 * round + i)) for i in range(4)
    ]
    for service in services:
        service.start()
    for service in services:
        service.join()
        assert service.exitcode == 0
"""


@pytest.mark.parametrize("program", [PROGRAM, COMING_AND_GOING], ids=["at-once", "at-times-of-their-own"])
def test_services_that_attach_and_leave_at_random_leave_no_segment(program: str):
    config = make_config(image_pixel_height=8, image_pixel_width=16)
    subprocess.run([sys.executable, "-c", program, json.dumps(config), str(ROUNDS)], check=True, timeout=100)
    left = sorted(Path("/dev/shm").glob(f"{config['detector_name']}*"))
    for path in left:
        path.unlink()
    assert left == []
