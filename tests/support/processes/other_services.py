"""Services beside driver, writers and live streams, each alone: what they log without images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.peers.udp_detectors import free_udp_ports
from support.processes.deployment import Deployment, Service, console_script, free_port
from support.processes.udp_modules import EIGER

WHOLE_IMAGES = {"sender_sends_full_images": True}
# Packets of a GigaFRoST have rows of these lengths only.
GIGAFROST = {"n_modules": 8, "image_pixel_height": 96, "image_pixel_width": 96}


def start_other_services(
    make_deployment: Callable[..., Deployment], directory: Path, database: str = "", **keys: Any
) -> dict[str, Service]:
    """Start them, those of the image buffer with a `database` only. Return them by their programs."""
    address = f"tcp://127.0.0.1:{free_port()}"
    table: dict[str, tuple[list[object], dict[str, Any]]] = {
        "std_udp_recv_gf": ([0], GIGAFROST),
        "std_udp_recv_eg": ([0], EIGER),
        "std_data_convert_eg": ([0], EIGER),
        "std_data_sync_module": ([], EIGER),
        "std_stream_send": ([address, 0], {}),
        "std_stream_receive": ([address, 0], {}),
        "std_data_sync_stream": ([], {}),
        "std_metadata_stream": (["tcp://127.0.0.1:0"], WHOLE_IMAGES),
        "std_data_sync_metadata": ([address], WHOLE_IMAGES),
        "std_delay_filter": ([], {}),
        "std_preview": ([], {}),
        "stddaq-rest": (["--port", 0], {}),
    }
    if database:
        options = ["--root_dir", directory, "--db_address", database]
        table |= {
            "std_buffer_writer": ([*options], {}),
            "std_buffer_reader": ([*options], {}),
            "std_buffer_driver": (["--port", 0, "--stream_address", "tcp://127.0.0.1:0"], {}),
        }
    services = {}
    for program, (arguments, config) in table.items():
        deployment = make_deployment(start_udp_port=free_udp_ports(8), **config | keys)
        words = [deployment.config_path, *arguments]
        services[program] = deployment.run(console_script(program), *words, ready="ready")
    return services
