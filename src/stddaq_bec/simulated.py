"""The detector of `stddaq simulate --trigger` as a BEC device, to try scans without a camera."""

from __future__ import annotations

from ophyd import Component

from stddaq_bec.camera import StdDaqCamera
from stddaq_ophyd.camera import SimulatedCamera


class SimulatedStdDaqCamera(StdDaqCamera):
    """A detector whose images are simulated. `prefix` is its name in the configuration of the services."""

    camera = Component(SimulatedCamera, "")
