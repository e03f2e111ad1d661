"""From a rate and the costs of a machine to services, cores and memory."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import yaml

from stddaq import __version__
from stddaq.cli.costs import Costs
from stddaq.cli.ring_space import rings_bytes
from stddaq.config import DetectorConfig
from stddaq.config.modules import expected_modules
from stddaq.config.services import (
    CONVERTERS,
    META_WRITERS,
    METADATA_SENDER,
    METADATA_SYNC,
    MODULE_SYNC,
    RECEIVERS,
    SENDER,
    STREAM_RECEIVER,
    STREAM_SYNC,
)
from stddaq.udp.geometry import GigaFrostGeometry, frame_bytes, packed_geometry

# A service that uses more of its core than this has no reserve for a pause.
MAX_LOAD = 0.7
# A service with more load has a core of its own, because others would delay it. Those with less share cores,
# which together have the same reserve.
SHARED_LOAD = 0.2
# With more work for messages, images are sent whole, each by one pair.
MAX_MESSAGE_LOAD = MAX_LOAD / 4
# Of the writing path beside a bare loop.
WRITER_OVERHEAD = 1.15
# A converter reads a frame, and writes its pixels into the image.
CONVERTER_COPIES = 2
# Cores for the system, clients, live streams and previews.
SPARE_CORES = 1
# The port of the first pair, on the receiving server.
FIRST_PORT = 9100


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """The instances of one program.

    Attributes:
        load: share of a core that each instance uses.
        arguments: of the command line; the number of the instance comes last if `is_numbered`.
        first_port: an address with this port, or a later one for each instance, comes first; 0: none.
    """

    program: str
    n_instances: int
    load: float
    arguments: tuple[str, ...] = ()
    is_numbered: bool = False
    first_port: int = 0

    @property
    def shares_cores(self) -> bool:
        """Whether its instances run beside other services."""
        return self.load <= SHARED_LOAD


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """The services of one server."""

    name: str
    services: tuple[ServicePlan, ...]

    @property
    def n_own(self) -> int:
        """Cores with one service each."""
        return sum(service.n_instances for service in self.services if not service.shares_cores)

    @property
    def n_shared(self) -> int:
        """Cores for all services with small loads."""
        loads = [service.n_instances * service.load for service in self.services if service.shares_cores]
        return max(1, math.ceil(sum(loads) / MAX_LOAD)) if loads else 0

    @property
    def n_cores(self) -> int:
        """Cores that it needs."""
        return SPARE_CORES + self.n_shared + self.n_own


@dataclass(frozen=True, slots=True)
class Plan:
    """What a rate takes.

    Attributes:
        servers: one, or a receiving and a writing one.
        keys: of the configuration, which the plan assumes.
        memory_bytes: shared memory of each server, at most.
    """

    servers: tuple[ServerPlan, ...]
    keys: Mapping[str, int | bool]
    bytes_per_s: float
    memory_bytes: int

    @property
    def services(self) -> tuple[ServicePlan, ...]:
        return tuple(service for server in self.servers for service in server.services)

    def problems(self, n_cores: int) -> list[str]:
        """Return why servers with `n_cores` cores are not enough, in words."""
        found = [
            f"{service.program}: {service.load:.0%} of a core, at most {MAX_LOAD:.0%} leaves a reserve"
            for service in self.services
            if service.load > MAX_LOAD
        ]
        for server in self.servers:
            if server.n_cores > n_cores:
                found.append(f"{server.name}: {server.n_cores} cores, the server has {n_cores}")
        return found


def make_plan(config: DetectorConfig, rate: float, costs: Costs, buffer_s: float, n_servers: int = 1) -> Plan:
    """Return the plan for `rate` images per second, with a ring buffer of `buffer_s` seconds or more."""
    bytes_per_s = rate * config.image_bytes
    writing = rate * (
        config.image_bytes / 1e9 * costs.write_s_per_gb * WRITER_OVERHEAD + costs.writer_us / 1e6
    )
    n_writers = max(1, math.ceil(writing / MAX_LOAD))
    keys: dict[str, int | bool] = {
        "number_of_writers": n_writers,
        "ram_buffer_gb": max(1, math.ceil(bytes_per_s * buffer_s / 2**30)),
    }
    receiving = [*_receiving(config, rate, costs)]
    recording = [
        ServicePlan("std_det_driver", 1, rate * costs.driver_us / 1e6, ("-m",)),
        ServicePlan("std_det_writer", n_writers, writing / n_writers, is_numbered=True),
        ServicePlan(META_WRITERS[config.detector_type], 1, rate * costs.meta_us / 1e6),
    ]
    if n_servers == 1:
        servers = [ServerPlan("server", (*receiving, *recording))]
    else:
        senders, receivers = _forwarding(rate, bytes_per_s, costs)
        keys |= {
            "max_number_of_forwarders_spawned": senders[0].n_instances,
            "use_all_forwarders": True,
            "sender_sends_full_images": len(senders) > 1,
        }
        # The server of the driver comes first, because its deployment waits for the end of a run.
        servers = [
            ServerPlan("writing", (*receivers, *recording)),
            ServerPlan("receiving", (*receiving, *senders)),
        ]
    whole = dataclasses.replace(config, **keys)
    return Plan(tuple(servers), keys, bytes_per_s, rings_bytes(whole))


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
    yield ServicePlan(MODULE_SYNC, 1, rate * modules * costs.sync_us / 1e6)


def _forwarding(
    rate: float, bytes_per_s: float, costs: Costs
) -> tuple[tuple[ServicePlan, ...], tuple[ServicePlan, ...]]:
    """Return the services that send to the writing server, senders first, and those that receive there."""
    # Each end copies the pixels once.
    pixels = bytes_per_s / 1e9 * (costs.network_s_per_gb + costs.copy_s_per_gb)
    messages = rate * 2 * costs.message_us / 1e6
    # Parts of an image have a message each, so that a pair more helps with the pixels only.
    is_whole = messages > MAX_MESSAGE_LOAD
    n_pairs = max(
        1, math.ceil((pixels + messages) / MAX_LOAD if is_whole else pixels / (MAX_LOAD - messages))
    )
    load = (pixels + messages) / n_pairs if is_whole else pixels / n_pairs + messages
    receivers = ServicePlan(STREAM_RECEIVER, n_pairs, load, is_numbered=True, first_port=FIRST_PORT)
    senders = dataclasses.replace(receivers, program=SENDER)
    if not is_whole:
        return (senders,), (receivers, ServicePlan(STREAM_SYNC, 1, rate * n_pairs * costs.sync_us / 1e6))
    metadata = ServicePlan(METADATA_SENDER, 1, messages, first_port=FIRST_PORT + n_pairs)
    # Of an image, the message of its pixels and that of its metadata.
    sync = dataclasses.replace(metadata, program=METADATA_SYNC, load=rate * 2 * costs.sync_us / 1e6)
    return (senders, metadata), (receivers, sync)


def deployment_text(plan: Plan, config_file: str, n_cores: int, address: str) -> str:
    """Return a deployment file; the services of a server with enough cores are pinned.

    Those that share cores may run on all of these.

    `address`: of the receiving server, in the network between the two.
    """
    plays = [_play(server, config_file, n_cores, address) for server in plan.servers]
    if len(plays) == 1:
        plays[0] |= {"name": "Plan", "hosts": "all"}
    return "---\n" + yaml.safe_dump(plays, sort_keys=False, default_flow_style=None, width=110)


def _play(server: ServerPlan, config_file: str, n_cores: int, address: str) -> dict[str, object]:
    is_pinned, first_own = server.n_cores <= n_cores, SPARE_CORES + server.n_shared
    own = iter(range(first_own, n_cores) if is_pinned else ())
    shared = [_range(SPARE_CORES, first_own - 1)] if is_pinned else []
    microservices = [
        {
            "prog_name": service.program,
            "instances": [
                _instance(
                    service, i, shared if service.shares_cores else [*itertools.islice(own, 1)], address
                )
                for i in range(service.n_instances)
            ],
        }
        for service in server.services
    ]
    return {
        "name": server.name.capitalize(),
        "hosts": server.name,
        "become": True,
        "roles": ["stddaq_server", "stddaq"],
        "vars": {
            "std_daq_sw_version": __version__,
            "deployments": [{"config_file": config_file, "microservices": microservices}],
        },
    }


def _range(first: int, last: int) -> int | str:
    return first if first == last else f"{first}-{last}"


def _instance(
    service: ServicePlan, number: int, cores: Sequence[int | str], address: str
) -> dict[str, object]:
    params: list[object] = [f"tcp://{address}:{service.first_port + number}"] * bool(service.first_port)
    params += [*service.arguments, *([number] if service.is_numbered else [])]
    return {**({"cpus": [*cores]} if cores else {}), **({"params": params} if params else {})}
