"""A viewer of a live stream that prints the id of each image: `python viewer.py ADDRESS SLOW`.

While the file SLOW exists, it takes one image per second. Its own queue is as small as libzmq allows.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import zmq


def main(address: str, slow: Path) -> None:
    socket = zmq.Context().socket(zmq.SUB)
    socket.rcvhwm = 1
    socket.rcvbuf = 65536
    socket.subscribe(b"")
    socket.connect(address)
    while True:
        header, _ = socket.recv_multipart()
        print("got", json.loads(header)["frame"], flush=True)
        next_at = time.monotonic() + 1.0
        while slow.exists() and time.monotonic() < next_at:
            time.sleep(0.01)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
