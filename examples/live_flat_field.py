"""Average the images of a run on several processes or machines while it is recorded, with dranspose.

    python examples/live_flat_field.py /data/flat flat.npy --n-images 500

dranspose's ingester, workers and reducer run already, with the classes of this file, and `std_live_stream -t
stins` sends them the images; docs/how-to/process-runs-live.md shows all commands. The result is float64
(height, width). Images that were not processed are listed: their worker was killed, or they are not good.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import numpy as np
import zmq
from dranspose.event import EventData, ResultData  # pyright: ignore[reportMissingImports]
from dranspose.ingesters.zmqpull_single import ZmqPullSingleIngester  # pyright: ignore[reportMissingImports]
from dranspose.middlewares import stream1  # pyright: ignore[reportMissingImports]

from stddaq import open_run
from stddaq.client import DriverClient
from stddaq.errors import StdDaqError
from stddaq.wire.default_addresses import DEFAULT_URL

STREAM = "images"
# dranspose keeps a killed worker in its lists for 10 s.
IDLE_TIMEOUT_S = 15.0


class Ingester(ZmqPullSingleIngester):
    """The ingester for STINS, which continues when a worker was killed."""

    async def _send_workermessages(self, workermessages: dict[Any, Any]) -> None:
        for worker, message in workermessages.items():
            try:
                await super()._send_workermessages({worker: message})
            except zmq.ZMQError as error:
                self._logger.error("event %d: %s: %s", message.event_number, worker, error)


class Worker:
    """Passes on good images. Your own returns less than it receives."""

    def __init__(self, **_: Any) -> None:
        pass

    def process_event(self, event: EventData, *_: Any) -> tuple[int, np.ndarray] | None:
        message = stream1.parse(event.streams[STREAM])
        # An image with a status is damaged or lost.
        if message.htype != "image" or getattr(message, "status", None):
            return None
        return message.frame, message.data


class Reducer:
    """Sums up. `publish` can be read at any time, over HTTP."""

    def __init__(self, **_: Any) -> None:
        self.publish: dict[str, Any] = {"sum": np.zeros(0), "rows": np.zeros(0, np.int64)}

    def process_result(self, result: ResultData, *_: Any) -> None:
        row, pixels = result.payload
        total, rows = self.publish["sum"], self.publish["rows"]
        # New arrays: the former ones may be being read.
        self.publish["sum"] = total + pixels if len(rows) else pixels.astype(sum_type(pixels.dtype))
        self.publish["rows"] = np.append(rows, row)


def sum_type(dtype: np.dtype) -> np.dtype:
    """Return the type of sums, which are exact for integers."""
    return np.dtype(np.float64 if dtype.kind == "f" else np.uint64)


def ask(url: str, content: Any = None) -> Any:
    """Return the JSON that `url` answers to a GET, or to a POST of `content`."""
    data = None if content is None else json.dumps(content).encode()
    try:
        with urlopen(Request(url, data, {"Content-Type": "application/json"}), timeout=30) as answer:
            return json.load(answer)
    except URLError as error:
        sys.exit(f"{url}: expected an answer of dranspose, got {error.reason}; is it started?")


def published(reducer: str, name: str) -> np.ndarray:
    """Return an array that the reducer publishes."""
    url = f"{reducer}/datasets/d-h5dict-{f'/{name}'.encode().hex().upper()}"
    description = ask(url)
    base = description["type"]["base"]
    dtype = {"H5T_STD_U64LE": "<u8", "H5T_STD_I64LE": "<i8", "H5T_IEEE_F64LE": "<f8"}[base]
    with urlopen(f"{url}/value", timeout=30) as answer:
        return np.frombuffer(answer.read(), dtype).reshape(description["shape"]["dims"])


def begin(controller: str, n_images: int) -> None:
    """Have the workers share the next series of `n_images`."""
    images = [[{"tags": ["generic"], "constraint": row}] for row in range(n_images)]
    ask(f"{controller}/api/v1/sequence", {"parts": {"run": {STREAM: images}}, "sequence": ["run"]})


def wait(controller: str) -> None:
    """Wait until all images are processed, or until none was for a while."""
    latest, since = -1, time.monotonic()
    while True:
        progress = ask(f"{controller}/api/v1/progress")
        if progress["finished"]:
            return
        if progress["completed_events"] != latest:
            latest, since = progress["completed_events"], time.monotonic()
        if time.monotonic() - since > IDLE_TIMEOUT_S:
            ask(f"{controller}/api/v1/stop", {})
            return
        time.sleep(0.2)


def as_ranges(ids: list[int]) -> str:
    """Return ids as text: 3, 5-8."""
    groups = [
        [i for _, i in group]
        for _, group in itertools.groupby(enumerate(ids), lambda pair: pair[1] - pair[0])
    ]
    return ", ".join(str(g[0]) if len(g) == 1 else f"{g[0]}-{g[-1]}" for g in groups)


def main() -> int:
    parser = argparse.ArgumentParser(description="Average the images of a run while it is recorded.")
    parser.add_argument("directory", type=Path, help="where the driver records")
    parser.add_argument("output", type=Path, help="the .npy file to write, float64 (height, width)")
    parser.add_argument("--n-images", type=int, required=True, help="images of the run")
    parser.add_argument("--file-prefix", default="flat", help="beginning of the files' names (default flat)")
    parser.add_argument("--driver", default=DEFAULT_URL, help=f"the driver (default {DEFAULT_URL})")
    parser.add_argument("--controller", default="http://127.0.0.1:5010", help="dranspose's controller")
    parser.add_argument("--reducer", default="http://127.0.0.1:5011", help="dranspose's reducer")
    args = parser.parse_args()

    # Before the run: the ingester connects to the stream when dranspose knows how many images will come.
    begin(args.controller, args.n_images)
    with DriverClient(args.driver) as driver:
        driver.start(args.directory, n_image=args.n_images, file_prefix=args.file_prefix)
        driver.wait_until_ready(timeout=30)
        print("waiting for images", flush=True)
        driver.wait_until_saved(timeout=3600)
        account = driver.last_result()
    assert account is not None
    wait(args.controller)

    rows = published(args.reducer, "rows")
    if len(rows):
        np.save(args.output, published(args.reducer, "sum") / len(rows))
    run = open_run(account["files"]["master"])
    missing = [int(run.image_ids[row]) for row in sorted(set(range(len(run.image_ids))) - set(rows.tolist()))]
    print(f"{args.output}: mean of {len(rows)} of {account['count']} images")
    if missing:
        print(f"not processed: {as_ranges(missing)}")
    return 1 if missing else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except StdDaqError as problem:
        sys.exit(f"error: {problem}")
