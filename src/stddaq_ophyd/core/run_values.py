"""The metadata of a run that devices and the plan know: for the files of NeXus, and to find the run again.

Signals are read when the detector is staged and sent with the start of the driver run. The start document of
the Bluesky run often comes later; what it says is added before the driver run ends.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pydantic import ValidationError

from stddaq.errors import ConfigError
from stddaq.files.application_metadata import Layer, flat, merge, nested
from stddaq.run_metadata import RunMetadata
from stddaq.text import mismatch, shown
from stddaq_ophyd.core.errors import SettingError
from stddaq_ophyd.core.paths import Engine
from stddaq_ophyd.core.units import converted

_log = logging.getLogger(__name__)

# Calls a function that may block.
Run = Callable[[Callable[[], Any]], Awaitable[Any]]
# Its values are texts, but not keys of start documents.
DEFINITION = "definition"
# Of the start document, for `metadata`.
_OF_RUN = ("uid", "scan_id", "plan_name")


class RunValues:
    """The values of one device, by the keys of `stddaq.run_metadata.RunMetadata`.

    A value is a signal or motor, in any unit of its kind; a text, which is a key of the start document; or a
    number or list, whose items may be signals.
    """

    def __init__(self, device: str, values: Mapping[str, Any] | None, engine: Engine | None) -> None:
        """`engine` is the RunEngine, whose start documents are used. Raise `SettingError`."""
        self._device, self._values = device, flat(values or {})
        for key in self._values:
            _check_key(f"{device}: nexus", key)
        self._of_document = {
            key: value for key, value in self._values.items() if isinstance(value, str) and key != DEFINITION
        }
        if self._of_document and engine is None:
            keys = ", ".join(self._of_document.values())
            raise SettingError(
                mismatch(f"{device}: nexus", "engine=RE for keys of the start document", f"{keys} without it")
            )
        self._open: dict[str, dict[str, Any]] = {}
        self._start: dict[str, Any] = {}
        if engine is not None:
            engine.subscribe(self._note_start, "start")
            engine.subscribe(self._note_stop, "stop")

    def _note_start(self, _: str, document: dict[str, Any]) -> None:
        self._open[document["uid"]] = document
        self._start = self._start or document

    def _note_stop(self, _: str, document: dict[str, Any]) -> None:
        self._open.pop(document["run_start"], None)

    async def read(self, run: Run, exposure_time: float | None = None) -> dict[str, Any]:
        """Return the fields of the driver's `start`, and let those of the next start document count.

        A value that cannot be read is left out, which the log says. Raise `SettingError` for a unit of
        another kind.
        """
        self._start = next(reversed(self._open.values()), {})
        if not self._values:
            return {}
        found: dict[str, Any] = {}
        if exposure_time:
            found["detector.count_time_s"] = exposure_time
        for key, value in self._values.items():
            if key in self._of_document:
                continue
            try:
                found[key] = await _value_of(key, value, run)
            except SettingError:
                raise
            except Exception as error:  # noqa: BLE001  (of a control system; images are worth more)
                _log.warning("%s: nexus: %s cannot be read: %s", self._device, key, error)
        return self._usable(found)

    def late(self) -> dict[str, dict[str, Any]]:
        """Return what the start document adds: `metadata` and `nexus` of the driver's `annotate`."""
        if not self._start:
            return {}
        metadata = {key: self._start[key] for key in _OF_RUN if key in self._start}
        found = {
            key: _plain(self._start[name]) for key, name in self._of_document.items() if name in self._start
        }
        return {"metadata": metadata, "nexus": self._usable(found)}

    def _usable(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values that metadata can have as an object."""
        usable: dict[str, Any] = {}
        for key, value in found.items():
            try:
                # One by one: a motor at a place that cannot be must not cost the others.
                merge([Layer(f"{self._device}: nexus", nested({key: value}))])
            except ConfigError as error:
                if key.startswith("axes."):
                    usable[key] = value  # It needs `sample_axes`, which the driver has.
                    continue
                _log.warning("%s", error)
            else:
                usable[key] = value
        return nested(usable)


def _check_key(where: str, key: str) -> None:
    try:
        RunMetadata.model_validate(nested({key: None}))
    except ValidationError as error:
        if any(mistake["type"] == "extra_forbidden" for mistake in error.errors(include_url=False)):
            raise SettingError(mismatch(where, "keys such as beam.energy_kev", shown(key))) from error


async def _value_of(key: str, value: Any, run: Run) -> Any:
    if isinstance(value, list | tuple):
        return [await _value_of(key, one, run) for one in value]
    if not callable(getattr(value, "read", None)):
        return _plain(value)
    reading, description = await _result(run, value.read), await _result(run, value.describe)
    name = value.name if value.name in reading else next(iter(reading))
    # Of channels; of positioners; of soft signals.
    unit = description[name].get("units") or getattr(value, "egu", None)
    unit = unit or getattr(value, "metadata", {}).get("units") or ""
    return converted(key, _plain(reading[name]["value"]), str(unit))


async def _result(run: Run, method: Callable[[], Any]) -> Any:
    # Those of ophyd-async are coroutine functions.
    found = await run(method)
    return await found if inspect.isawaitable(found) else found


def _plain(value: Any) -> Any:
    """Return the value of a numpy scalar or array as JSON has it."""
    return value.tolist() if hasattr(value, "tolist") else value


def with_nexus(options: Mapping[str, Any], nexus: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of `start` with more metadata, which replace single values of those in `options`."""
    if not nexus:
        return dict(options)
    try:
        return {**options, "nexus": nested(flat(options.get("nexus") or {}) | flat(nexus))}
    except ConfigError as error:
        raise SettingError(
            mismatch("start_options: nexus", "an object of values", shown(str(error)))
        ) from error
