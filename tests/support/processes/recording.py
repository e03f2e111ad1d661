"""Runs of driver and writers with a source in the test's process; files are compared pixel by pixel.

A `Rig` is a driver, its writers and a source of one deployment; the fixture `make_rig` makes it.
"""

from __future__ import annotations

import functools
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import hdf5plugin  # noqa: F401  (registers the filters)
import numpy as np
from support.processes.deployment import WAIT_TIMEOUT_S, Deployment, Service, wait_until
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from stddaq.client import DriverClient, DriverStatus
from stddaq.closing import Closing
from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.wire.default_addresses import GREETING_PATH

GOOD, DAMAGED, OVERWRITTEN = 1, 2, 3
# The states of a run that is saved.
RUN_STATES = [
    "started",
    "creating_file",
    "file_created",
    "waiting_for_first_image",
    "recording",
    "saving_file",
    "file_saved",
]
SAVED_TIMEOUT_S = 60.0
# Number of images of a master file that are read and compared at a time.
BLOCK_IMAGES = 100
# Of images from just before the block of `Publishing.spared`, which may belong to the run.
SPARED_SLOTS = 100
REPOSITORY = Path(__file__).parents[3]


@dataclass(frozen=True)
class Image:
    """One image as a source publishes it; `pixels` (height, width)."""

    image_id: int
    pixels: np.ndarray
    status: int = GOOD


def pixels_of(
    image_id: int, shape: tuple[int, int] = (32, 48), dtype: str | np.dtype = "<u2", salt: int = 0
) -> np.ndarray:
    """Return pixels that identify an image; `salt` distinguishes images of the same id."""
    first = image_id * 7919 + salt * 104729 + 1
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return (_ramp(shape, "<u8") + np.uint64(first)).astype(kind)
    # Integers wrap, so the sum can be made in their own type, which is three times faster.
    return _ramp(shape, kind.str) + np.uint64(first % 2**64).astype(kind)


@functools.cache
def _ramp(shape: tuple[int, int], dtype: str) -> np.ndarray:
    offsets = np.arange(shape[0] * shape[1], dtype=np.uint64).reshape(shape)
    return (offsets * np.uint64(31)).astype(dtype)


def image_of(
    image_id: int, shape: tuple[int, int] = (32, 48), dtype: str = "<u2", status: int = GOOD, salt: int = 0
) -> Image:
    """Return an image with the pixels of `pixels_of`."""
    return Image(image_id, pixels_of(image_id, shape, dtype, salt), status)


def images_of(ids: Iterable[int], **how: Any) -> list[Image]:
    """Return `image_of` for each of `ids`."""
    return [image_of(image_id, **how) for image_id in ids]


def recorded_images(name: str, dataset: str, shape: tuple[int, int, int], dtype: str) -> np.ndarray:
    """Return real images from the folder STDDAQ_TEST_DATA, or generated ones of the same shape without it."""
    folder = Path(os.environ.get("STDDAQ_TEST_DATA") or REPOSITORY / "../shared/data")
    if (folder / name).exists():
        with h5py.File(folder / name) as file:
            found = file[dataset]
            assert isinstance(found, h5py.Dataset)
            assert (found.shape, found.dtype) == (shape, np.dtype(dtype))
            return found[:]
    generator = np.random.default_rng(1)
    scene = generator.poisson(20, shape[1:]).astype(dtype)
    return np.stack([np.roll(scene, i, axis=1) + np.dtype(dtype).type(i) for i in range(shape[0])])


def k11_images() -> np.ndarray:
    """Return the tomography scan of 3201 small images, (3201, 22, 26) uint16."""
    return recorded_images("k11-imaging-3201x22x26-u16.h5", "entry/detector/detector", (3201, 22, 26), "<u2")


def eiger_images() -> np.ndarray:
    """Return five images of 1 MiB, (5, 512, 512) uint32: a module of recorded ones of 40 MB.

    A ring has 1000 slots, and tests share the memory.
    """
    images = recorded_images("eiger9m-saxs-5x3264x3106-u32.h5", "data", (5, 3264, 3106), "<u4")
    return images[:, 1376:1888, 1297:1809].copy()


class Watcher(Closing):
    """A client that collects all messages of the driver in order; a context manager."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._close = ExitStack()
        self.messages: list[dict[str, Any]] = []

    def _listen(self, connection: ClientConnection) -> None:
        with suppress(ConnectionClosed):
            for frame in connection:
                self.messages.append(json.loads(frame))

    @property
    def states(self) -> list[str]:
        """Return the states in the order in which they were entered."""
        found = [message["status"] for message in self.messages]
        return [state for i, state in enumerate(found) if i == 0 or found[i - 1] != state]

    def wait_for(self, state: str, timeout: float = WAIT_TIMEOUT_S, times: int = 1) -> dict[str, Any]:
        """Wait until `state` was entered `times` times. Return its latest message."""
        wait_until(lambda: self.states.count(state) >= times, timeout, f"{state} in {self.states}")
        return next(m for m in reversed(self.messages) if m["status"] == state)

    def __enter__(self) -> Self:
        connection = self._close.enter_context(connect(self._url + GREETING_PATH, max_size=None))
        thread = threading.Thread(target=self._listen, args=(connection,), daemon=True)
        thread.start()
        wait_until(lambda: self.messages, what="the first message of the driver")
        return self

    def close(self) -> None:
        self._close.close()


class Rig(Closing):
    """A driver, its writers and a source; a context manager.

    `start_driver` sets `driver`, `url` and `client`.
    """

    def __init__(self, deployment: Deployment, directory: Path) -> None:
        self.deployment = deployment
        self.directory = directory
        self.config = DetectorConfig.parse(deployment.config)
        self.driver: Service
        self.url: str
        self.writers: list[Service] = []
        self.client: DriverClient
        self._close = ExitStack()
        self._source: ImagePublisher | None = None

    def start_driver(self, *args: object, tolerant: bool = False) -> Self:
        self.driver, self.url = self.deployment.start_driver(*args, tolerant=tolerant)
        self.client = DriverClient(self.url)
        self._close.enter_context(self.client)
        return self

    def start_writers(self) -> Self:
        self.writers = self.deployment.start_writers()
        return self

    def restart_writer(self, i: int, *args: object) -> Service:
        """Start writer `i` again after it exited."""
        self.writers[i] = self.deployment.start("std_det_writer", i, *args)
        return self.writers[i]

    @property
    def source(self) -> ImagePublisher:
        """Return the publisher in this process, which is made on first use."""
        source = self._source
        if source is None:
            source = self._source = self.enter(ImagePublisher(self.config))
        return source

    def enter(self, resource: Any) -> Any:
        """Enter `resource`, a context manager, which closes before the services end."""
        return self._close.enter_context(resource)

    def close(self) -> None:
        self._close.close()

    def publish(self, images: Iterable[Image], pause_s: float = 0.0) -> None:
        """Put images into the ring buffer and announce them, as fast as possible or with pauses."""
        for image in images:
            self.source.publish(image.image_id, image.pixels, image.status)
            if pause_s:
                time.sleep(pause_s)

    def wait_for_subscription(self) -> None:
        """Wait until the driver has subscribed to the source."""
        assert self.source.wait_for_subscribers(1, WAIT_TIMEOUT_S)

    def begin(self, **start: Any) -> None:
        """Start a run and wait until it records every image that is published from now on."""
        self.wait_for_subscription()
        self.client.start(self.directory, **start)
        self.client.wait_until_ready(60)

    def wait_for_count(self, count: int, timeout: float = WAIT_TIMEOUT_S) -> None:
        """Wait until `count` images are written and readable."""
        self.client.wait_for(lambda status: (status.count or 0) >= count, timeout, f"count {count}")

    def wait_for_the_last(self, timeout: float = 30.0) -> DriverStatus:
        """Wait until every image is written that a source announced before it was stopped or killed.

        Messages that it sent may still be on their way when all that the driver has received are written, so
        the driver's figures have to stay, over several answers of the driver and half a second.
        """
        deadline = time.monotonic() + timeout
        status, n_same = self.client.status(), 0
        while n_same < 5:
            assert time.monotonic() < deadline, f"images still arrive, or are not written: {status}"
            time.sleep(0.1)
            before, status = status, self.client.status()
            is_settled = status.count == status.n_received == before.n_received
            n_same = n_same + 1 if is_settled else 0
        return status

    def end(self, stop: bool = False) -> dict[str, Any]:
        """Stop the run if `stop`, and wait for its end. Return its account."""
        if stop:
            self.client.stop()
        self.client.wait_until_saved(SAVED_TIMEOUT_S)
        return self.account()

    def account(self) -> dict[str, Any]:
        """Return the last result, after a check of its consistency."""
        result = self.client.last_result()
        assert result is not None
        assert_consistent(result)
        return result

    def record(self, images: Sequence[Image], **start: Any) -> dict[str, Any]:
        """Record a run of `images`, which ends by its number of images. Return its account."""
        self.begin(n_image=len(images), **start)
        self.publish(images)
        return self.end()

    def path(self, name: str) -> Path:
        """Return the path of a file in the directory of the runs."""
        return self.directory / name


def assert_consistent(result: Mapping[str, Any]) -> None:
    """Check what holds for the account of every run."""
    parts = [result[key] for key in ("n_good", "n_damaged", "n_overwritten", "n_failed")]
    assert result["count"] == sum(parts), result
    for n, ids in (
        ("n_damaged", "damaged_ids"),
        ("n_overwritten", "overwritten_ids"),
        ("n_failed", "failed_ids"),
    ):
        assert len(result[ids]) == result[n] or result["lists_truncated"], result
    skipped = sum(last - first + 1 for first, last in result["skipped"])
    assert skipped == result["n_skipped"] or result["lists_truncated"], result
    if result["count"] and not result["n_restarts"]:
        assert result["last_id"] - result["first_id"] + 1 == result["count"] + result["n_skipped"], result


def assert_saved(account: Mapping[str, Any], images: Sequence[Image], by_arrival: bool = False) -> None:
    """Check that the run was saved, and that raw files and master file hold exactly `images`."""
    assert account["outcome"] == "file_saved", account
    assert account["count"] == len(images)
    assert_raw_files_hold(account["files"]["raw"], images, by_arrival)
    assert_master_file_holds(Path(account["files"]["master"]), images)
    with h5py.File(account["files"]["master"]) as file:
        text = file["entry/stddaq/account"][()]  # pyright: ignore[reportIndexIssue]
        assert json.loads(text)["run_id"] == account["run_id"]  # pyright: ignore[reportArgumentType]


def divided(images: Sequence[Image], n_writers: int, by_arrival: bool = False) -> list[list[Image]]:
    """Return the images of each writer."""
    files: list[list[Image]] = [[] for _ in range(n_writers)]
    for position, image in enumerate(images):
        files[(position if by_arrival else image.image_id) % n_writers].append(image)
    return files


def assert_raw_files_hold(
    paths: Sequence[str | Path], images: Sequence[Image], by_arrival: bool = False
) -> None:
    """Check that each raw file holds its writer's share of `images`: ids, status, pixels."""
    for path, mine in zip(paths, divided(images, len(paths), by_arrival), strict=True):
        assert_raw_file_holds(Path(path), mine)


def assert_raw_file_holds(path: Path, images: Sequence[Image]) -> None:
    """Check that the file, opened without SWMR, holds exactly `images`."""
    rows, data = read_raw_file(path)
    assert_rows(path, rows, images)
    assert data.shape[0] == len(images)
    for image, found in zip(images, data, strict=True):
        assert np.array_equal(found, image.pixels), f"{path}: image {image.image_id}: pixels differ"


def assert_rows(path: Path, rows: np.ndarray, images: Sequence[Image]) -> None:
    """Check that `rows` are the metadata rows of `images`."""
    found = list(zip(rows["image_id"].tolist(), rows["status"].tolist(), strict=True))
    assert found == [(image.image_id, image.status) for image in images], path


def read_raw_file(path: Path, swmr: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return metadata rows (n,) and images (n, height, width) of a raw file, as many as it has rows."""
    with h5py.File(path, "r", swmr=swmr) as file:
        group = next(iter(file.values()))
        rows = group["metadata"][:]
        data = group["data"]
        assert data.shape[0] >= len(rows)
        if not swmr:
            assert data.shape[0] == len(rows)
        return rows, data[: len(rows)]


def assert_master_file_holds(path: Path, images: Sequence[Image]) -> None:
    """Check that the master file shows `images` in this order, with their metadata rows."""
    with h5py.File(path) as file:
        data: Any = file["entry/data/data"]
        assert_rows(path, file["entry/data/metadata"][:], images)  # pyright: ignore
        ids: Any = file["entry/data/image_id"]
        assert ids[:].tolist() == [image.image_id for image in images]
        assert data.shape[0] == len(images)
        for first in range(0, len(images), BLOCK_IMAGES):
            block = images[first : first + BLOCK_IMAGES]
            for image, pixels in zip(block, data[first : first + BLOCK_IMAGES], strict=True):
                assert np.array_equal(pixels, image.pixels), f"{path}: image {image.image_id}"


MakeRig = Callable[..., Rig]


class Background:
    """Runs `_work` in a thread, until `_ended` is set; a context manager."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def _work(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()


class Publishing(Background):
    """A source that publishes images continuously in the background; a context manager.

    Attributes:
        next_id: id of the image that is published now or next.
        images: the published images.
    """

    def __init__(self, rig: Rig, first_id: int = 0, pause_s: float = 0.001) -> None:
        super().__init__()
        self._rig, self.next_id, self._pause_s = rig, first_id, pause_s
        self._end_id: int | None = None
        self.images: list[Image] = []

    @contextmanager
    def spared(self) -> Iterator[None]:
        """Reuse no slot of the images that are published in the block, which are fewer than the ring holds.

        A writer that stands still for a second on a busy machine would find some of them overwritten.
        """
        self._end_id = self.next_id + self._rig.config.n_slots - SPARED_SLOTS
        yield
        self._end_id = None

    def _work(self) -> None:
        while not self._ended.wait(self._pause_s):
            if self._end_id is not None and self.next_id >= self._end_id:
                continue
            image = image_of(self.next_id, self._rig.config.image_shape)
            self._rig.publish([image])
            self.images.append(image)
            self.next_id += 1

    def wait_for(self, n_images: int) -> None:
        """Wait until `n_images` more were published."""
        target = len(self.images) + n_images
        wait_until(lambda: len(self.images) >= target, what=f"{target} images")

    def __enter__(self) -> Self:
        self._rig.wait_for_subscription()
        return super().__enter__()
