"""Plans: flights, which publish documents while images arrive, and a tomography scan.

Bluesky's own plans (count, scan, grid_scan, ...) take images point by point. `bluesky.plans.fly` cannot drive
a device that emits StreamDatum documents.

The annotations of the public plans are an interface: bluesky-queueserver and blueapi choose devices by them,
and check arguments. They are evaluated, not strings, and name types of bluesky and Python only.
"""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import numpy as np
from bluesky.protocols import Movable, Readable
from bluesky.utils import MsgGenerator, short_uid

from stddaq.files.scan_documents import DARKS, FLATS, PROJECTIONS, ScanDocuments
from stddaq_ophyd.core.tomography_file import write_nxtomo_files

__all__ = ["fly", "fly_scan", "tomography"]

# Tables and plots show the stream `primary`, so that has the progress and positions of a flight.
IMAGES = "images"


def fly(
    detectors: Sequence[Readable],
    num: int,
    *,
    period: float = 0.5,
    md: dict[str, Any] | None = None,
) -> MsgGenerator[str]:
    """Take `num` events of `images_per_event` images with each detector, without stopping between them.

    Every `period` seconds, documents of the new images go to the stream "images", and an event with the
    numbers of images to "primary". Returns the uid of the run.
    """
    md = {"plan_name": "fly", "plan_args": {"detectors": [*map(repr, detectors)], "num": num}} | dict(
        md or {}
    )
    return (yield from _flight(detectors, num, [], bps.null, bps.null, period, md))


def fly_scan(
    detectors: Sequence[Readable],
    motor: Movable,
    start: float,
    stop: float,
    num: int,
    *,
    period: float = 0.5,
    md: dict[str, Any] | None = None,
) -> MsgGenerator[str]:
    """Do what `fly` does while `motor` moves from `start` to `stop` at its configured speed.

    The motor starts when the detectors take images; the plan waits for it at the end. Events of "primary"
    have its position and the numbers of images at that moment.
    """
    arguments = {"detectors": [*map(repr, detectors)], "motor": repr(motor), "start": start, "stop": stop}
    md = {
        "plan_name": "fly_scan",
        "plan_args": arguments | {"num": num},
        "motors": [_name(motor)],
        "hints": _dimensions(motor),
    } | dict(md or {})
    moved = short_uid("moved")
    go = partial(bps.abs_set, motor, stop, group=moved)
    arrive = partial(bps.wait, group=moved)
    yield from bps.mv(motor, start)
    return (yield from _flight(detectors, num, [motor], go, arrive, period, md))


def _flight(
    detectors: Sequence[Any],
    num: int,
    readables: Sequence[Any],
    go: Any,
    arrive: Any,
    period: float,
    md: Mapping[str, Any],
) -> MsgGenerator[str]:
    """Run the plan `go` after kickoff and `arrive` when all is recorded; events have the `readables`."""
    numbers = [signal for detector in detectors for signal in (detector.n_recorded, detector.n_bad)]
    names = [detector.name for detector in detectors]

    @bpp.stage_decorator([*detectors, *readables])
    @bpp.run_decorator(md={"detectors": names, "num_points": num, "num_intervals": num - 1} | dict(md))
    def inner() -> MsgGenerator[Any]:
        for detector in detectors:
            yield from bps.prepare(detector, num, wait=True)
        yield from bps.declare_stream(*detectors, name=IMAGES, collect=True)
        yield from bps.kickoff_all(*detectors, wait=True)
        yield from go()
        completed = short_uid("completed")
        statuses = yield from bps.complete_all(*detectors, group=completed, wait=False)
        is_done = False
        while not is_done:
            is_waited_for = yield from bps.wait(group=completed, timeout=period, error_on_timeout=False)
            is_done = all(status.done for status in statuses)
            if is_waited_for and not is_done:
                # After a pause the RunEngine has no group to wait for.
                yield from bps.sleep(period)
            yield from bps.collect(*detectors, name=IMAGES)
            yield from _event([*numbers, *readables])
        yield from arrive()

    return (yield from inner())


def _name(device: Any) -> str:
    return device.name


def _dimensions(motor: Any) -> dict[str, Any]:
    """Return the hint that plots are over the positions of `motor`."""
    return {"dimensions": [(motor.hints["fields"], "primary")]} if hasattr(motor, "hints") else {}


def _event(readables: Sequence[Any]) -> MsgGenerator[None]:
    yield from bps.create("primary")
    for readable in readables:
        yield from bps.read(readable)
    yield from bps.save()


def tomography(
    detectors: Sequence[Readable],
    rotation: Movable,
    start: float,
    stop: float,
    num: int,
    *,
    shutter: Movable,
    sample: Movable,
    sample_in: float,
    sample_out: float,
    open_value: Any = 1,
    closed_value: Any = 0,
    n_darks: int = 10,
    n_flats: int = 10,
    nexus: dict[str, Any] | None = None,
    md: dict[str, Any] | None = None,
) -> MsgGenerator[str]:
    """Take darks, flats and `num` projections from angle `start` to `stop` (not included) in one run.

    `shutter` is set to `closed_value` for darks and to `open_value` for flats and projections, `sample` to
    `sample_out` for flats and to `sample_in` for projections. The plan closes the shutter and moves the
    sample in at its end, also when it fails. Streams are "darks", "flats", and "primary" with the projections
    and their angles. Returns the uid of the run.

    Of each StdDaqDetector it makes an NXtomo file, `<prefix>_tomo.h5`, beside the raw files. `nexus` are its
    metadata, such as `{"sample": {"name": "bone"}}`, with those of configuration and start. Without
    `sample.name` it has no `definition`. A failure to make it is logged, and fails no plan.
    """
    documents = ScanDocuments()
    angles = np.linspace(start, stop, num, endpoint=False)
    md = {
        "plan_name": "tomography",
        "detectors": [*map(_name, detectors)],
        "motors": [_name(rotation)],
        "num_points": num,
        "num_darks": n_darks,
        "num_flats": n_flats,
        "plan_args": {"rotation": repr(rotation), "start": start, "stop": stop, "num": num},
        "hints": _dimensions(rotation),
    } | dict(md or {})

    readables: list[Any] = [*detectors, rotation]

    def take(stream: str) -> MsgGenerator[Any]:
        yield from bps.checkpoint()
        yield from bps.trigger_and_read(detectors, name=stream)

    @bpp.stage_decorator([*detectors, rotation])
    @bpp.run_decorator(md=md)
    def inner() -> MsgGenerator[Any]:
        yield from bps.mv(shutter, closed_value)
        for _ in range(n_darks):
            yield from take(DARKS)
        yield from bps.mv(sample, sample_out, shutter, open_value)
        for _ in range(n_flats):
            yield from take(FLATS)
        yield from bps.mv(sample, sample_in)
        for angle in angles:
            yield from bps.checkpoint()
            yield from bps.mv(rotation, angle)
            yield from bps.trigger_and_read(readables, name=PROJECTIONS)

    def leave() -> MsgGenerator[None]:
        yield from bps.mv(shutter, closed_value)
        yield from bps.mv(sample, sample_in)

    uid = yield from bpp.subs_wrapper(bpp.finalize_wrapper(inner(), leave), documents)
    # Only now the files of the run are closed.
    yield from bps.wait_for([lambda: asyncio.to_thread(write_nxtomo_files, documents, nexus or {})])
    return uid
