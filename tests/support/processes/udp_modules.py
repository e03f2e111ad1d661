"""Frames of modules, published by the test in place of receivers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from support.processes.deployment import Deployment, Service, wait_until
from support.processes.stream_readers import ReceivedImage, StreamReader

from stddaq.closing import Closing
from stddaq.config import DetectorConfig
from stddaq.config.creation import example
from stddaq.dataplane.endpoints import converted_frames
from stddaq.udp.frame_message import frame_layout
from stddaq.udp.frame_ring import FramePublisher

CONVERTERS = {
    "gigafrost": "std_data_convert_gf",
    "eiger": "std_data_convert_eg",
    "jungfrau-raw": "std_data_convert_jf",
    "jungfrau-converted": "std_data_convert_jf",
}
# The four ports of one module.
_EIGER_KEYS = ("detector_type", "n_modules", "image_pixel_height", "image_pixel_width", "module_positions")
_EXAMPLE = json.loads(example("eiger-500k"))
EIGER_MODULE: dict[str, Any] = {key: _EXAMPLE[key] for key in _EIGER_KEYS}
# Two ports side by side; the first one is upside down.
EIGER = {
    "detector_type": "eiger",
    "n_modules": 2,
    "bit_depth": 8,
    "image_pixel_height": 256,
    "image_pixel_width": 1030,
    "module_positions": {"0": [0, 255, 513, 0], "1": [516, 0, 1029, 255]},
}


class Modules(Closing):
    """Publishers of the frames of some modules; a context manager."""

    def __init__(self, deployment: Deployment, *modules: int) -> None:
        self.config = DetectorConfig.parse(deployment.config)
        self._stack = contextlib.ExitStack()
        self.publishers = {
            module: self._stack.enter_context(FramePublisher(self.config, module)) for module in modules
        }

    def wait_for_converters(self) -> None:
        for publisher in self.publishers.values():
            wait_until(publisher.count_subscribers, what="a converter")

    def publish(
        self, frame_id: int, frames: Mapping[int, np.ndarray], n_missing: int = 0, **fields: int
    ) -> None:
        """Publish the frames of some modules for one image."""
        for module, frame in frames.items():
            publisher = self.publishers[module]
            slot = publisher.begin(frame_id)
            slot[: frame.nbytes] = frame.reshape(-1).view(np.uint8)
            message = np.zeros((), frame_layout(self.config.detector_type))
            message["id"], message["n_missing_packets"] = frame_id, n_missing
            message["module"] = module % 8 if self.config.detector_type == "gigafrost" else module
            for name, value in fields.items():
                message[name] = value
            publisher.commit(message)

    def close(self) -> None:
        self._stack.close()


_CONNECTED = "03"
# On a busy machine a service may stand still for seconds, and so may the test between two frames. No image or
# frame is given up meanwhile, and frames of one image may be received seconds apart.
LONG_TIMEOUT = ("--timeout", 60)
LONG_IDLE_TIME = ("--idle-time", 5)


def start_converters(
    deployment: Deployment, *modules: int, sync: bool = True, sync_options: Sequence[object] = ()
) -> dict[int | str, Service]:
    """Start the synchroniser and the converters of some modules; wait until they are ready.

    If a synchroniser runs, the converters are connected to it: until then they drop what they convert.
    """
    program = CONVERTERS[deployment.config["detector_type"]]
    n_before = n_connections(deployment)
    services: dict[int | str, Service] = {}
    if sync:
        services["sync"] = deployment.start("std_data_sync_module", *sync_options, ready=None)
    for module in modules:
        services[module] = deployment.start(program, module, ready=None)
    for service in services.values():
        service.wait_for_line("ready")
    if n_connections(deployment) is not None:
        n_expected = (n_before or 0) + len(modules)
        wait_until(lambda: (n_connections(deployment) or 0) >= n_expected, what="connected converters")
    return services


def n_connections(deployment: Deployment) -> int | None:
    """Return how many converters are connected to the synchroniser; None while none is bound."""
    path = converted_frames(deployment.detector_name).removeprefix("ipc://")
    # Columns: Num RefCount Protocol Flags Type St Inode Path; an accepted socket has the path, too.
    found = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    states = [columns[5] for columns in found if columns[7:] == [path]]
    return states.count(_CONNECTED) if states else None


def replayed_images(deployment: Deployment, folder: Path) -> list[ReceivedImage]:
    """Replay files of five images of an Eiger to all services. Return the images that were announced."""
    modules = range(deployment.config["n_modules"])
    receivers = [
        deployment.start("std_udp_recv_eg", module, *LONG_IDLE_TIME, ready=None) for module in modules
    ]
    start_converters(deployment, *modules, sync_options=LONG_TIMEOUT)
    for receiver in receivers:
        receiver.wait_for_line("n_subscribers=1")
    with StreamReader(deployment) as reader:
        # A millisecond between the packets of a port: small socket buffers hold them on a busy machine.
        deployment.start("std_udp_tools_replay", 1, folder, ready="datagrams sent")
        return reader.receive(5, timeout=60.0)
