"""Mark devices whose images belong to one stream at a time."""

from __future__ import annotations

from typing import Any


class HasStream:
    """A device with a settable signal `stream`, which plans set to the stream of the next images.

    `stddaq_ophyd.preprocessors.name_streams` does it.
    """

    stream: Any
