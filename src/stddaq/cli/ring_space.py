"""The shared memory that ring buffers need, and what makes them fit the memory of this machine."""

from __future__ import annotations

import dataclasses
import os

from stddaq.config import DetectorConfig
from stddaq.config.creation import new_configuration
from stddaq.config.modules import expected_modules
from stddaq.config.services import RECEIVERS, requested_services
from stddaq.dataplane.ring_layout import RingGeometry
from stddaq.errors import ConfigError, GeometryError
from stddaq.udp.frame_ring import FRAME_SLOTS
from stddaq.udp.geometry import frame_bytes

# Of the memory; the rest is for services and the system.
MAX_SHARE = 0.9


def sends_packets(config: DetectorConfig) -> bool:
    """Return whether a detector with images of this size may send packets. Others are simulated."""
    if config.detector_type not in RECEIVERS:
        return False
    try:
        return frame_bytes(config) > 0
    except GeometryError:
        return False


def image_rings_bytes(config: DetectorConfig) -> int:
    """Return the shared memory of the ring buffers of images, raw and compressed."""
    image = RingGeometry.of(config)
    n_compressors = sum("compress" in service.program.name for service in requested_services(config))
    return (1 + n_compressors) * (image.segment_bytes + image.cursor_bytes)


def rings_bytes(config: DetectorConfig) -> int:
    """Return the shared memory of all ring buffers of a configuration, those of UDP receivers included."""
    total = image_rings_bytes(config)
    if sends_packets(config):
        n_bytes = frame_bytes(config)
        frames = RingGeometry(n_bytes, FRAME_SLOTS, 1, n_bytes, 0)
        total += len(expected_modules(config)) * (frames.segment_bytes + frames.cursor_bytes)
    return total


def free_shared_memory() -> int:
    """Return the free bytes of /dev/shm; 0 if there is none."""
    try:
        room = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return room.f_bavail * room.f_frsize


def machine_memory() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def to_enlarge(room: os.statvfs_result, n_bytes: int) -> str:
    """Return the command that makes /dev/shm larger by `n_bytes`; empty if the memory is too small."""
    size = room.f_blocks * room.f_frsize + n_bytes
    if size > MAX_SHARE * machine_memory():
        return ""
    return f"mount -o remount,size={-(-size // 2**20)}M /dev/shm"


def smaller_ring(config: DetectorConfig, free: int) -> int | None:
    """Return the largest `ram_buffer_gb` whose ring buffers fit `free` bytes; None if there is none.

    They have a minimum of images, however small `ram_buffer_gb` is.
    """
    for size in range(config.ram_buffer_gb or 0, 0, -1):
        if image_rings_bytes(dataclasses.replace(config, ram_buffer_gb=size)) <= free:
            return size
    return None


def smaller_image(config: DetectorConfig, free: int) -> tuple[int, int] | None:
    """Return the (width, height) of images whose ring buffers fit `free` bytes; None if there are none."""
    width, height = config.image_pixel_width, config.image_pixel_height
    while width > 1 and height > 1:
        # Of a GigaFRoST, images are multiples of 24 and 4 pixels.
        width, height = max(width // 2 // 24 * 24, 1), max(height // 2 // 4 * 4, 1)
        try:
            content = new_configuration(
                "small", config.detector_type, (width, height), config.bit_depth, 1, []
            )
        except ConfigError:
            return None
        if image_rings_bytes(DetectorConfig.parse(content)) <= free:
            return width, height
    return None
