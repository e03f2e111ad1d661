"""Names of the ipc sockets: where each service of a detector publishes, pushes and answers.

The directory is /tmp by the std_daq contract. The environment variable STDDAQ_IPC_DIR moves it, for several
deployments on one machine.
"""

from __future__ import annotations

import os

from stddaq.errors import EndpointError
from stddaq.text import mismatch
from stddaq.wire.default_addresses import IPC_DIRECTORY_VARIABLE, ipc_directory

# sun_path holds 108 bytes with its terminating zero.
MAX_PATH_BYTES = 107


def ipc_endpoint(name: str) -> str:
    """Return the ZeroMQ endpoint of the ipc socket `name`. Raise `EndpointError` if its path is too long."""
    path = ipc_directory() / name
    n_bytes = len(os.fsencode(path))
    if n_bytes > MAX_PATH_BYTES:
        raise EndpointError(
            mismatch(
                f"ipc socket {path}",
                f"a path of at most {MAX_PATH_BYTES} bytes",
                f"{n_bytes} bytes",
                f"shorten detector_name or {IPC_DIRECTORY_VARIABLE}",
            )
        )
    return f"ipc://{path}"


def metadata_stream(detector_name: str, suffix: str) -> str:
    """Return where the source of `suffix` publishes one `ImageMetadata` per image."""
    return ipc_endpoint(f"{detector_name}-{suffix}")


def driver_to_writer(detector_name: str, writer: int | str) -> str:
    """Return where the driver pushes `WriterAction` to a writer: its number, or `meta`."""
    return ipc_endpoint(f"{detector_name}-driver-{writer}")


def writer_to_driver(detector_name: str, writer: int | str) -> str:
    """Return where a writer, its number or `meta`, pushes `WriterResponse` to the driver."""
    return ipc_endpoint(f"{detector_name}-writer-{writer}")


def converted_frames(detector_name: str) -> str:
    """Return where converters push the message of each converted frame to the module synchroniser."""
    return ipc_endpoint(f"{detector_name}-sync")


def converter(detector_name: str, module: int) -> str:
    """Return what the converter of a module binds while it runs. No messages are sent there."""
    return ipc_endpoint(f"{detector_name}-convert-{module}")


def replay_requests(detector_name: str) -> str:
    """Return where the reader of the image buffer answers requests for the next image (REP)."""
    return ipc_endpoint(f"{detector_name}-driver")


def received_parts(detector_name: str) -> str:
    """Return where receivers push the metadata of each part of an image to the synchroniser."""
    return ipc_endpoint(f"{detector_name}-sync")


def receiver(detector_name: str, part: int) -> str:
    """Return what the receiver of a part binds while it runs. No messages are sent there."""
    return ipc_endpoint(f"{detector_name}-receive-{part}")


def software_trigger(detector_name: str) -> str:
    """Return where a simulator accepts software triggers (REQ, JSON)."""
    return ipc_endpoint(f"{detector_name}-trigger")


def events(detector_name: str) -> str:
    """Return where `stddaq up` publishes the lines of its services."""
    return ipc_endpoint(f"{detector_name}-events")


def preview(detector_name: str, suffix: str) -> str:
    """Return where the preview service of a stream publishes reduced images for browsers."""
    return ipc_endpoint("-".join(filter(None, (detector_name, "preview", preview_instance(suffix)))))


def preview_instance(suffix: str) -> str:
    """Return what distinguishes the preview service of a stream from that of the images."""
    return "" if suffix == "image" else suffix
