"""From a rate and the costs of a machine to services, cores and memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import yaml

from stddaq import __version__
from stddaq.cli.costs import Costs
from stddaq.cli.server_checks import rings_bytes
from stddaq.config import DetectorConfig
from stddaq.config.modules import expected_modules
from stddaq.config.services import CONVERTERS, META_WRITERS, MODULE_SYNC, RECEIVERS
from stddaq.udp.geometry import GigaFrostGeometry, frame_bytes, packed_geometry

# A service that uses more of its core than this has no reserve for a pause.
MAX_LOAD = 0.7
# Of a writer, beside the pixels: rows of metadata, flushes, and the replies to the driver.
WRITER_IMAGE_US = 15.0
# Of the writing path beside a bare loop.
WRITER_OVERHEAD = 1.15
# What an image costs a service beside pixels, in bare messages; see the measured costs of driver and writers.
DRIVER_MESSAGES, META_MESSAGES, SYNC_MESSAGES = 10, 5, 8
# A converter reads a frame, and writes its pixels into the image.
CONVERTER_COPIES = 2
# Cores for the system, clients, live streams and previews.
SPARE_CORES = 1


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """The instances of one program.

    Attributes:
        load: share of a core that each instance uses.
        arguments: of the command line; the number of the instance comes last if `is_numbered`.
    """

    program: str
    n_instances: int
    load: float
    arguments: tuple[str, ...] = ()
    is_numbered: bool = False

    @property
    def cores(self) -> int:
        """One for each instance, because services are pinned."""
        return self.n_instances


@dataclass(frozen=True, slots=True)
class Plan:
    """What a rate takes."""

    services: tuple[ServicePlan, ...]
    n_writers: int
    bytes_per_s: float
    memory_bytes: int
    ram_buffer_gb: int

    @property
    def n_cores(self) -> int:
        """Cores of one server with all services."""
        return sum(service.cores for service in self.services) + SPARE_CORES

    def problems(self, n_cores: int) -> list[str]:
        """Return why one server with `n_cores` cores is not enough, in words."""
        found = [
            f"{service.program}: {service.load:.0%} of a core, at most {MAX_LOAD:.0%} leaves a reserve"
            for service in self.services
            if service.load > MAX_LOAD
        ]
        if self.n_cores > n_cores:
            receiving = sum(s.cores for s in self.services if s.program.startswith(("std_udp", "std_data")))
            halves = f"{receiving} for receiving, {self.n_cores - receiving} for writing" * bool(receiving)
            found.append(
                f"{self.n_cores} cores, this server has {n_cores}"
                + (f"; on two servers {halves}" * bool(halves))
            )
        return found


def make_plan(config: DetectorConfig, rate: float, costs: Costs, buffer_s: float) -> Plan:
    """Return the plan for `rate` images per second, with a ring buffer of `buffer_s` seconds or more."""
    bytes_per_s = rate * config.image_bytes
    writing = rate * (
        config.image_bytes / 1e9 * costs.write_s_per_gb * WRITER_OVERHEAD + WRITER_IMAGE_US / 1e6
    )
    n_writers = max(1, math.ceil(writing / MAX_LOAD))
    ram_buffer_gb = max(1, math.ceil(bytes_per_s * buffer_s / 2**30))
    whole = config.model_copy(update={"number_of_writers": n_writers, "ram_buffer_gb": ram_buffer_gb})
    messages = rate * costs.message_us / 1e6
    services = [
        *_receiving(config, rate, costs),
        ServicePlan("std_det_driver", 1, DRIVER_MESSAGES * messages, ("-m",)),
        ServicePlan("std_det_writer", n_writers, writing / n_writers, is_numbered=True),
        ServicePlan(META_WRITERS[config.detector_type], 1, META_MESSAGES * messages),
    ]
    return Plan(tuple(services), n_writers, bytes_per_s, rings_bytes(whole), ram_buffer_gb)


def _receiving(config: DetectorConfig, rate: float, costs: Costs) -> Iterator[ServicePlan]:
    if config.detector_type not in RECEIVERS:
        return
    modules = len(expected_modules(config))
    if config.detector_type == "gigafrost":
        n_packets = GigaFrostGeometry.of(*config.image_shape).n_packets
    else:
        n_packets = packed_geometry(config).n_packets
    message = costs.message_us / 1e6
    receiving = rate * (n_packets * costs.packet_us / 1e6 + message)
    converting = rate * (CONVERTER_COPIES * frame_bytes(config) / 1e9 * costs.copy_s_per_gb + 2 * message)
    yield ServicePlan(RECEIVERS[config.detector_type], modules, receiving, is_numbered=True)
    yield ServicePlan(CONVERTERS[config.detector_type], modules, converting, is_numbered=True)
    yield ServicePlan(MODULE_SYNC, 1, rate * modules * SYNC_MESSAGES * message)


def deployment_text(plan: Plan, config_file: str, n_cores: int) -> str:
    """Return a deployment file; its services are pinned if the server has enough cores."""
    cores = iter(range(SPARE_CORES, n_cores)) if plan.n_cores <= n_cores else iter(())
    microservices = [
        {
            "prog_name": service.program,
            "instances": [_instance(service, i, cores) for i in range(service.n_instances)],
        }
        for service in plan.services
    ]
    play = {
        "name": "Plan",
        "hosts": "all",
        "become": True,
        "roles": ["stddaq"],
        "vars": {
            "std_daq_sw_version": __version__,
            "deployments": [{"config_file": config_file, "microservices": microservices}],
        },
    }
    return "---\n" + yaml.safe_dump([play], sort_keys=False, default_flow_style=None, width=110)


def _instance(service: ServicePlan, number: int, cores: Iterator[int]) -> dict[str, object]:
    core = next(cores, None)
    params: list[object] = [*service.arguments, *([number] if service.is_numbered else [])]
    return {**({"cpus": [core]} if core is not None else {}), **({"params": params} if params else {})}
