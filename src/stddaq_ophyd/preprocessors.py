"""A preprocessor for plans of several streams: darks beside projections, a baseline, runs within runs.

RE.preprocessors.append(name_streams)

A RunEngine does not name the stream for which it reads or collects a device. Without the names a device
starts another file with each stream, and refuses images when a plan returns to an earlier stream.
"""

from typing import Any

from bluesky.preprocessors import plan_mutator
from bluesky.utils import Msg, MsgGenerator, short_uid

from stddaq_ophyd.core.streams import HasStream

__all__ = ["name_streams"]


def name_streams(plan: MsgGenerator) -> MsgGenerator:
    """Set the component `stream` of detectors before they are described, read or collected."""
    # The stream of the open event of each run.
    names: dict[Any, str] = {}

    def name(message: Msg) -> tuple[Any, None]:
        kwargs: dict[str, Any] = message.kwargs or {}
        if message.command == "create":
            names[message.run] = kwargs.get("name") or (message.args[0] if message.args else "primary")
            return None, None
        if message.command == "read":
            return _named([message.obj], names.get(message.run), message), None
        if message.command in ("declare_stream", "collect"):
            return _named([message.obj, *message.args], kwargs.get("name"), message), None
        if message.command == "save":
            names.pop(message.run, None)
        return None, None

    return (yield from plan_mutator(plan, name))


def _named(devices: list[Any], stream: str | None, message: Msg) -> Any:
    """Return a plan that names the stream and does `message`, or None when no device has streams."""
    signals = [device.stream for device in devices if isinstance(device, HasStream)]
    if stream is None or not signals:
        return None
    run = "" if message.run is None else f"{message.run}: "

    def plan() -> MsgGenerator[Any]:
        for signal in signals:
            group = short_uid("stream")
            status = yield Msg("set", signal, f"{run}{stream}", group=group)
            # A signal of ophyd-async is set in a task.
            if not getattr(status, "done", True):
                yield Msg("wait", None, group=group)
        return (yield message)

    return plan()
