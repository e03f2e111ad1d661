"""What the keys of a configuration mean, in one line each, for people who edit it.

They are no docstrings of `DetectorConfig`, because pydantic reads these from the source each time that a
configuration is validated, which takes 50 ms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MEANINGS: Mapping[str, str] = {
    "detector_name": "Name of sockets, shared memory and the HDF5 group.",
    "detector_type": "Kind of the detector, which decides what its images and metadata are.",
    "n_modules": "Modules that make one image.",
    "bit_depth": "Bits of a pixel; 16 for gigafrost.",
    "image_pixel_height": "Rows of the image.",
    "image_pixel_width": "Columns of the image.",
    "start_udp_port": "First UDP port of the modules.",
    "module_positions": 'Corners of each module, "index": [x0, y0, x1, y1]; what lies in none is a gap.',
    "log_level": "Least severe lines that services log.",
    "stats_collection_period": "Seconds between two statistics lines of a service.",
    "ram_buffer_gb": "Size of each ring buffer in GiB.",
    "number_of_writers": "Writers among which the driver divides the images.",
    "gpfs_block_size": "Block of the file system in bytes; chunks of the raw files are up to this size.",
    "live_stream_configs": "Live streams by address: which images they send.",
    "switch_user_active": "Writers write as the user whom the start command names; needs root.",
    "delay_filter_timeout": "Seconds for which std_delay_filter holds an image back.",
    "max_number_of_forwarders_spawned": "Pairs of sender and receiver between two servers.",
    "use_all_forwarders": "Cut an image into a part for each pair, however small it is.",
    "sender_sends_full_images": "Send images whole to another server, instead of in parts.",
    "module_sync_queue_size": "Images that may be incomplete at a time, while their modules arrive.",
    "allowed_roots": "Directories below which runs may be written; mandatory for services that run as root.",
    "trusted_uids": "Users whose clients may ask a service that runs as root for any writer_id.",
    "image_checksums": "Compute a checksum of each image at its source, and record it.",
    "image_division": "Which writer gets an image: by its id, or in turn as they arrive.",
    "statistics_format": "Form of the statistics lines: that of std_daq, or InfluxDB's.",
    "services": "Further services that stddaq up starts, as command lines.",
    "nexus": "Metadata of all runs for NeXus files: source, instrument, detector, axes.",
}


def described_schema() -> dict[str, Any]:
    """Return the JSON schema of a configuration, with the meaning of each key."""
    # Not at the top; see `stddaq.config.model`.
    from stddaq.config.schema import detector_model

    schema = detector_model().model_json_schema()
    for key, content in schema["properties"].items():
        content["description"] = MEANINGS[key]
    return schema
