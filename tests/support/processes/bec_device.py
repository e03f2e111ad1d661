"""The BEC device over a rig, called as BEC's device server calls it.

BEC's packages take seconds to import, so only the functions import them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.assertions.plans import PointCamera
from support.processes.deployment import wait_until
from support.processes.recording import Rig

if TYPE_CHECKING:
    from bec_lib.messages import ScanStatusMessage

# Limits of the test, which decide nothing.
STEP_TIMEOUT_S = 30.0


class BecCamera:
    """A device `gf`, and what BEC receives of it.

    Attributes:
        device: the device.
        points: the camera that takes the images of a trigger.
        messages: the values of its BEC signals in their order, as (name of the signal, message).
    """

    def __init__(self, rig: Rig, **config: Any) -> None:
        from stddaq_bec.camera import StdDaqCamera

        self.rig = rig
        self.points = PointCamera(rig)
        self.device = StdDaqCamera(name="gf", **{"driver_url": rig.url, **config})
        self.device.camera = self.points  # pyright: ignore[reportAttributeAccessIssue]
        self.messages: list[tuple[str, Any]] = []
        for signal in (self.device.file_event, self.device.progress, self.device.preview):
            signal.subscribe(self._receive, run=False)
        self.device.wait_for_connection(all_signals=True, timeout=5)
        self.device.on_connected()

    def _receive(self, *, obj: Any, value: Any, **_: Any) -> None:
        self.messages.append((obj.attr_name, value))

    def received(self, signal: str) -> list[Any]:
        """Return what a BEC signal has sent."""
        return [message for name, message in self.messages if name == signal]

    def wait_for_file_event(self, *, done: bool) -> Any:
        """Return the latest file event, which says `done`."""
        wait_until(
            lambda: any(event.done is done for event in self.received("file_event")), what="a file event"
        )
        return self.received("file_event")[-1]

    def prepare(self, number: int = 1, **fields: Any) -> ScanStatusMessage:
        """Stage for a scan of this number."""
        self.device.scan_info.msg = message = scan_message(self.rig.directory, number, **fields)
        wait_for(self.device.stage())
        return message

    def start(self, number: int = 1, **fields: Any) -> None:
        """Stage, and start the run."""
        self.prepare(number, **fields)
        wait_for(self.device.pre_scan())

    def read(self, signal: str) -> Any:
        """Return the value of a signal that BEC reads at each point."""
        reading: Any = self.device.read()
        return reading[f"gf_{signal}"]["value"]

    def master(self, number: int = 1) -> Path:
        """Return the master file of a scan."""
        return self.rig.directory / f"S{number:05d}" / f"S{number:05d}_gf_Master.h5"

    def link(self, number: int = 1) -> Path:
        """Return the file that leads to it, which BEC knows."""
        return self.rig.directory / f"S{number:05d}" / f"S{number:05d}_gf.h5"


def scan_message(base: Path, number: int, frames: int = 1, **fields: Any) -> ScanStatusMessage:
    """Return the status message of a scan whose files are below `base`."""
    from bec_lib.messages import ScanStatusMessage

    content: dict[str, Any] = {
        "scan_id": f"scan-{number}",
        "scan_number": number,
        "status": "open",
        "scan_type": "software_triggered",
        "num_points": 1,
        "scan_parameters": {"exp_time": 0.01, "frames_per_trigger": frames, "system_config": {}},
        "info": {"file_components": [str(base / f"S{number:05d}" / f"S{number:05d}"), "h5"]},
    }
    return ScanStatusMessage(**content | fields)


def wait_for(status: Any) -> None:
    """Wait for a Status, if it is one, and raise why it failed."""
    if hasattr(status, "wait"):
        status.wait(STEP_TIMEOUT_S)
