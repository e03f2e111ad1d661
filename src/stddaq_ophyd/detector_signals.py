"""The signals of the detector device: the user's options, the counts, and the layout of the images."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from ophyd import Component, Device, Kind, Signal
from ophyd.signal import InternalSignal
from ophyd.status import Status

from stddaq.text import mismatch
from stddaq_ophyd.core.errors import SettingError
from stddaq_ophyd.core.paths import PathInfo
from stddaq_ophyd.core.run_counts import RunCounts
from stddaq_ophyd.core.scalars import WantedScalars
from stddaq_ophyd.core.settings import Settings
from stddaq_ophyd.core.streams import HasStream


class _AtOnceSignal(Signal):
    """A signal whose `set` is done when it returns, without a thread: plans set it for each event."""

    def set(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, value: Any, *, timeout: Any = None, settle_time: Any = None
    ) -> Status:
        self.put(value)
        status = Status(self)
        status.set_finished()
        return status


class _SettingSignal(Signal):
    """A signal that refuses values that are not allowed. Raises `SettingError`."""

    expected = ""

    def is_allowed(self, value: Any) -> bool:
        """Return whether `value` may be put."""
        raise NotImplementedError

    def check_value(self, value: Any, **_: Any) -> None:
        if not self.is_allowed(value):
            raise SettingError(mismatch(self.name, self.expected, repr(value)))


class _CountSignal(_SettingSignal):
    expected = "a whole number from 1"

    def is_allowed(self, value: Any) -> bool:
        return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


class _SecondsSignal(_SettingSignal):
    expected = "a finite number of seconds, 0 or more"

    def is_allowed(self, value: Any) -> bool:
        return is_number(value) and 0 <= value < math.inf


class _FlagSignal(_SettingSignal):
    expected = "0 or 1"

    def is_allowed(self, value: Any) -> bool:
        return isinstance(value, Integral) and int(value) in (0, 1)


def is_number(value: Any) -> bool:
    """Return whether `value` is a real number, of Python or numpy."""
    return isinstance(value, Real) and not isinstance(value, bool)


class DetectorSignals(Device, HasStream):
    """The base of `StdDaqDetector`, which keeps these signals up to date."""

    n_images = Component(InternalSignal, value=0, kind=Kind.hinted, doc="images of this point or flight")
    n_recorded = Component(InternalSignal, value=0, kind=Kind.hinted, doc="images since staging")
    n_bad = Component(
        InternalSignal,
        value=0,
        kind=Kind.hinted,
        doc="damaged, overwritten, failed and skipped images since staging",
    )
    mean = Component(
        InternalSignal,
        value=0.0,
        kind=Kind.hinted,
        doc="mean of the pixels of the last image of this point; omitted: not read",
    )
    images_per_event = Component(
        _CountSignal, value=1, kind=Kind.config, doc="images of a point, or of an event of a flight"
    )
    exposure_time = Component(_SecondsSignal, value=0.0, kind=Kind.config, doc="seconds for each image")
    margin = Component(
        _SecondsSignal,
        value=5.0,
        kind=Kind.config,
        doc="seconds beyond the exposure time in which images must come",
    )
    allow_bad = Component(_FlagSignal, value=0, kind=Kind.config, doc="1: accept points with bad images")
    stream = Component(
        _AtOnceSignal, value="", kind=Kind.omitted, doc="stream of the next images, set by `name_streams`"
    )
    image_height = Component(InternalSignal, value=0, kind=Kind.config, doc="pixels")
    image_width = Component(InternalSignal, value=0, kind=Kind.config, doc="pixels")
    pixel_type = Component(InternalSignal, value="", kind=Kind.config, doc="dtype string of numpy, like <u2")
    bit_depth = Component(InternalSignal, value=0, kind=Kind.config, doc="bits of a pixel")
    number_of_writers = Component(InternalSignal, value=0, kind=Kind.config, doc="raw files of a run")
    directory = Component(
        InternalSignal, value="", kind=Kind.config, doc="directory of the files, as the driver sees it"
    )
    file_prefix = Component(
        InternalSignal, value="", kind=Kind.config, doc="the names of all files begin with it"
    )

    @property
    def _event_size(self) -> int:
        return int(_value(self.images_per_event))

    @property
    def _image_shape(self) -> tuple[int, int]:
        """Return (height, width), which are 0 until they are known."""
        return int(_value(self.image_height)), int(_value(self.image_width))

    @property
    def _stream_name(self) -> str:
        return str(_value(self.stream))

    def _settings(self, n_images: int, *, publish_live: bool, scalars: WantedScalars) -> Settings:
        return Settings(
            images_per_event=n_images,
            timeout=float(_value(self.exposure_time)) * n_images + float(_value(self.margin)),
            allow_bad=bool(_value(self.allow_bad)),
            publish_live=publish_live,
            scalars=scalars,
        )

    def _reset_counts(self) -> None:
        for signal in (self.n_images, self.n_recorded, self.n_bad):
            signal.put(0, internal=True)
        self.mean.put(0.0, internal=True)

    def _note_counts(self, n_images: int, counts: RunCounts) -> None:
        self.n_images.put(n_images, internal=True)
        self.n_recorded.put(counts.n_images, internal=True)
        self.n_bad.put(counts.n_bad, internal=True)

    def _note_layout(self, shape: tuple[int, int], dtype: str, number_of_writers: int) -> None:
        self.image_height.put(shape[0], internal=True)
        self.image_width.put(shape[1], internal=True)
        self.pixel_type.put(dtype, internal=True)
        self.bit_depth.put(8 * int(dtype[2:]), internal=True)
        self.number_of_writers.put(number_of_writers, internal=True)

    def _note_files(self, paths: PathInfo) -> None:
        self.directory.put(str(paths.directory), internal=True)
        self.file_prefix.put(paths.prefix, internal=True)


def _value(signal: Signal) -> Any:
    return signal.get()
