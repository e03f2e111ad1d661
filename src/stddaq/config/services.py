"""The programs of a deployment, and the keys of the configuration that each of them reads.

`stddaq up` starts and restarts services by this table. The configuration service reports from it which
programs a change affects. Only programs of this table can occur in `services` of the configuration.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stddaq.config.model import DetectorConfig, read_file
from stddaq.errors import ConfigError
from stddaq.text import mismatch, shown, shown_key

_LOGS = frozenset({"log_level", "stats_collection_period", "statistics_format"})
_IMAGES = frozenset(
    {
        "detector_name",
        "detector_type",
        "bit_depth",
        "image_checksums",
        "image_pixel_height",
        "image_pixel_width",
        "ram_buffer_gb",
    }
)
_FILES = frozenset(
    {
        "allowed_roots",
        "gpfs_block_size",
        "image_division",
        "nexus",
        "number_of_writers",
        "switch_user_active",
        "trusted_uids",
    }
)
_DRIVER = _LOGS | _IMAGES | _FILES
_PAIRS = frozenset({"max_number_of_forwarders_spawned", "sender_sends_full_images", "use_all_forwarders"})
_MODULES = _LOGS | _IMAGES | {"n_modules", "module_positions"}


@dataclass(frozen=True, slots=True)
class Program:
    """A service of stddaq; `name` is its console script.

    Attributes:
        start_up_keys: keys of the configuration that it reads only when it starts.
        live_keys: keys that it follows while it runs.
        records: it takes part in runs, so it is never restarted during a run.
        on_request: it runs if `services` of the configuration contains it.
        may_finish: exit code 0 is the end of its work, or it has none with this configuration.
    """

    name: str
    start_up_keys: frozenset[str]
    live_keys: frozenset[str] = frozenset()
    records: bool = True
    on_request: bool = True
    may_finish: bool = False


META_WRITERS: Mapping[str, str] = {
    "gigafrost": "std_det_meta_writer_gf",
    "jungfrau-raw": "std_det_meta_writer_jf",
    "jungfrau-converted": "std_det_meta_writer_jf",
    "eiger": "std_det_meta_writer_eg",
    "pco": "std_det_meta_writer_pco",
}
# The receiver and the converter of a module, by detector.
RECEIVERS: Mapping[str, str] = {
    "gigafrost": "std_udp_recv_gf",
    "jungfrau-raw": "std_udp_recv_jf",
    "jungfrau-converted": "std_udp_recv_jf",
    "eiger": "std_udp_recv_eg",
}
CONVERTERS: Mapping[str, str] = {
    "gigafrost": "std_data_convert_gf",
    "jungfrau-raw": "std_data_convert_jf",
    "jungfrau-converted": "std_data_convert_jf",
    "eiger": "std_data_convert_eg",
}
MODULE_SYNC = "std_data_sync_module"
SENDER, STREAM_RECEIVER, STREAM_SYNC = "std_stream_send", "std_stream_receive", "std_data_sync_stream"
METADATA_SENDER, METADATA_SYNC = "std_metadata_stream", "std_data_sync_metadata"
# A deployment starts all of them; those that its mode does not need finish at once.
FORWARDERS = (SENDER, METADATA_SENDER, STREAM_RECEIVER, METADATA_SYNC, STREAM_SYNC)
# Services end in this order, sources first, and start in the reverse one, so that receivers are ready before
# senders.
_ALL = (
    Program("stddaq simulate", _LOGS | _IMAGES, on_request=False, may_finish=True),
    Program("stddaq replay", _LOGS | _IMAGES, on_request=False, may_finish=True),
    Program("stddaq-rest", frozenset({"log_level"}), records=False),
    Program("std_preview", _LOGS | _IMAGES | {"n_modules", "module_positions"}, records=False),
    Program("std_bsread_recv", _LOGS | _IMAGES),
    *(
        Program(name, _MODULES | {"start_udp_port"}, on_request=False)
        for name in sorted(set(RECEIVERS.values()))
    ),
    *(Program(name, _MODULES, on_request=False) for name in sorted(set(CONVERTERS.values()))),
    Program(MODULE_SYNC, _MODULES | {"module_sync_queue_size"}, on_request=False),
    *(Program(name, _LOGS | _IMAGES | _PAIRS, on_request=False, may_finish=True) for name in FORWARDERS),
    Program("std_gf_filter", _LOGS | _IMAGES),
    Program("std_delay_filter", _LOGS | _IMAGES | {"delay_filter_timeout"}),
    Program("std_data_compress_h5bitshuffle_lz4", _LOGS | _IMAGES),
    Program("std_data_compress_blosc2", _LOGS | _IMAGES),
    Program("std_live_stream", _LOGS | _IMAGES, frozenset({"live_stream_configs"}), records=False),
    *(
        Program(f"std_buffer_{role}", _LOGS | _IMAGES, records=False, on_request=False)
        for role in ("driver", "reader", "writer")
    ),
    Program("std_det_driver", _DRIVER, on_request=False),
    Program("std_det_writer", _DRIVER, on_request=False),
    *(Program(name, _DRIVER, on_request=False) for name in sorted(set(META_WRITERS.values()))),
)
PROGRAMS: Mapping[str, Program] = {program.name: program for program in _ALL}
_RANKS = {name.removeprefix("stddaq "): i for i, name in enumerate(PROGRAMS)}
ON_REQUEST = tuple(program.name for program in _ALL if program.on_request)


def order_of_ending(program: str) -> int:
    """Return the rank of a program, also without `stddaq `, among those that end at the same time."""
    return _RANKS[program.removeprefix("stddaq ")]


@dataclass(frozen=True, slots=True)
class RequestedService:
    """One entry of `services`: a program and its arguments, without CONFIG."""

    program: Program
    arguments: tuple[str, ...]


def requested_services(config: DetectorConfig) -> list[RequestedService]:
    """Return the entries of `services` in order. The configuration must have no `service_mistakes`."""
    return [
        RequestedService(PROGRAMS[words[0]], tuple(words[1:])) for words in map(shlex.split, config.services)
    ]


def previewed_streams(config: DetectorConfig) -> list[str]:
    """Return the streams whose images the page shows: the images, those that a filter passes on, and what
    entries `std_preview -s SUFFIX` name.
    """
    if service_mistakes(config):
        return ["image"]
    requested = requested_services(config)
    streams = ["image", *("filter" for service in requested if service.program.name == "std_gf_filter")]
    streams += [preview_stream(service) for service in requested if service.program.name == "std_preview"]
    return list(dict.fromkeys(streams))


def preview_stream(service: RequestedService) -> str:
    """Return the stream that an entry `std_preview` shows."""
    return option_of(service.arguments, "-s", "--source_suffix") or "image"


def option_of(arguments: Sequence[str], short: str, long: str) -> str | None:
    """Return the value of an option as argparse parses it."""
    for position, word in enumerate(arguments):
        if word in (short, long):
            return arguments[position + 1] if position + 1 < len(arguments) else None
        for prefix in (f"{long}=", short):
            if prefix and word.startswith(prefix) and (prefix != short or not word.startswith("--")):
                return word.removeprefix(prefix)
    return None


def service_mistakes(config: DetectorConfig) -> list[str]:
    """Return the mistakes in `services`, in words."""
    mistakes = []
    for position, line in enumerate(config.services):
        where = f"services.{position}"
        try:
            words = shlex.split(line)
        except ValueError as error:
            mistakes.append(mismatch(where, "a command line", f"{shown(line)} ({error})"))
            continue
        if "\0" in line or not words or words[0] not in ON_REQUEST:
            mistakes.append(
                mismatch(
                    where,
                    f"one of {', '.join(ON_REQUEST)} and its arguments without CONFIG",
                    shown(line),
                )
            )
        elif words[0] == "std_live_stream" and not any(word in config.live_stream_configs for word in words):
            mistakes.append(
                mismatch(
                    where,
                    "an address of live_stream_configs "
                    f"({', '.join(map(shown_key, config.live_stream_configs)) or 'it has none'})",
                    shown(line),
                )
            )
    repeated = {line for line in config.services if config.services.count(line) > 1}
    mistakes += [mismatch("services", "each line once", f"{shown(line)} twice") for line in sorted(repeated)]
    return mistakes


def affected_programs(before: DetectorConfig, after: DetectorConfig) -> tuple[list[str], list[str]]:
    """Return the programs that apply the change while they run, and those that must be restarted.

    Sources are left out, because only `stddaq up` knows whether it runs one.
    """
    changed = set(changed_keys(before.as_json(), after.as_json()))
    names = ["std_det_driver", "std_det_writer", META_WRITERS[after.detector_type]]
    names += ["std_live_stream"] if after.live_stream_configs else []
    names += [service.program.name for service in requested_services(after)]
    programs = [PROGRAMS[name] for name in dict.fromkeys(names)]
    restarted = [program.name for program in programs if changed & program.start_up_keys]
    live = [p.name for p in programs if changed & p.live_keys and p.name not in restarted]
    return live, restarted


def pending_changes(
    running: DetectorConfig,
    path: Path,
    validated: Callable[[bytes, str], DetectorConfig] = DetectorConfig.of_text,
) -> list[str]:
    """Return the keys with which the file `path` would record differently from a driver that runs `running`.

    `validated` is called only with another content than that which `running` was loaded from. `stddaq up`
    ignores a file that is missing or not valid, so there are none then.
    """
    try:
        text = read_file(path)
        if text == running.text:
            return []
        present = validated(text, str(path))
    except ConfigError:
        return []
    if present.number_of_writers < 1 or service_mistakes(present):
        return []
    changed = changed_keys(running.as_json(), present.as_json())
    return [key for key in changed if key in _IMAGES | _FILES]


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the keys whose values differ between two configurations (decoded JSON), sorted."""
    # As text, because in Python 1 equals True.
    texts = [{key: json.dumps(value, sort_keys=True) for key, value in it.items()} for it in (before, after)]
    return sorted(key for key in before.keys() | after.keys() if texts[0].get(key) != texts[1].get(key))
