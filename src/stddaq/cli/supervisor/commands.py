"""The command line of each service of a configuration, and the endpoint that shows that it is ready."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from stddaq.cli.supervisor.spec import ServiceSpec
from stddaq.config import DetectorConfig
from stddaq.config.modules import expected_modules, position_mistakes, receiver_modules
from stddaq.config.services import (
    CONVERTERS,
    MODULE_SYNC,
    PROGRAMS,
    RECEIVERS,
    RequestedService,
    option_of,
    order_of_ending,
    preview_stream,
    previewed_streams,
    requested_services,
)
from stddaq.dataplane import endpoints
from stddaq.dataplane.endpoints import metadata_stream
from stddaq.errors import ConfigError
from stddaq.text import mismatch

# The metadata stream that a program publishes.
_OUTPUTS = {
    "std_bsread_recv": "image",
    "std_data_compress_h5bitshuffle_lz4": "h5bitshuffle-lz4",
    "std_data_compress_blosc2": "blosc2",
    "std_gf_filter": "filter",
    "std_delay_filter": "delay-filter",
}
_LIVE_STREAM = "std_live_stream"
_REST = "stddaq-rest"
_REST_PORT = "5000"
_PREVIEW = "std_preview"


class Commands:
    """Makes the `ServiceSpec`s of one configuration, which is the file `path`, with a driver at `driver`."""

    def __init__(self, config: DetectorConfig, path: str, driver: str) -> None:
        """`driver`: tcp://HOST:PORT, where the driver listens."""
        self._config, self._path, self._driver = config, path, driver
        self._values = config.as_json()

    def service(
        self,
        name: str,
        program: str,
        arguments: Sequence[str],
        address: str,
        *,
        instance_id: str | None = "",
        conducts: bool = False,
    ) -> ServiceSpec:
        """Return the spec of a service: the console script beside this interpreter."""
        script = Path(sys.executable).parent / program
        if not script.exists():
            raise ConfigError(f"{script}: missing; install stddaq into this environment")
        return ServiceSpec(
            name,
            (str(script), self._path, *arguments),
            address,
            may_finish=PROGRAMS[program].may_finish,
            start_up=self._start_up(program),
            records=PROGRAMS[program].records,
            program=program,
            instance_id=instance_id,
            conducts=conducts,
        )

    def source(self, kind: str, arguments: Sequence[str]) -> ServiceSpec:
        """Return the spec of `stddaq simulate` or `stddaq replay`."""
        return ServiceSpec(
            kind,
            (sys.executable, "-m", "stddaq", kind, self._path, *arguments),
            metadata_stream(self._config.detector_name, "image"),
            may_finish=True,
            start_up=self._start_up(f"stddaq {kind}"),
            records=True,
            program=kind,
        )

    def instance(self, program: str, number: str, arguments: Sequence[str]) -> ServiceSpec:
        """Return the spec of one instance of any program of the table."""
        command, _, kind = program.partition(" ")
        if kind:
            spec = self.source(kind, arguments)
        else:
            spec = self.service("", command, arguments, "", conducts=command == "std_det_driver")
        return dataclasses.replace(spec, name=f"{kind or command} {number}")

    def udp_detector(
        self, arguments: Sequence[str], n_link_sets: int, idle_time: float | None
    ) -> list[ServiceSpec]:
        """Return receivers, converters and synchroniser of a detector that sends packets.

        `arguments` are options of the converters, `idle_time` is one of the receivers. A GigaFRoST may have
        two sets of links, with receivers and converters 8 to 15.
        """
        config, name = self._config, self._config.detector_name
        if config.detector_type not in CONVERTERS:
            expected = f"one of {', '.join(CONVERTERS)} for --source udp"
            raise ConfigError(mismatch("detector_type", expected, config.detector_type))
        if mistakes := position_mistakes(config):
            raise ConfigError(f"{self._path}: {'; '.join(mistakes)}", mistakes)
        receiver, converter = RECEIVERS[config.detector_type], CONVERTERS[config.detector_type]
        modules = receiver_modules(config, expected_modules(config), n_link_sets)
        of_receivers = [] if idle_time is None else ["--idle-time", f"{idle_time:g}"]
        return [
            *(
                self.service(
                    f"receiver {m}",
                    receiver,
                    [*of_receivers, str(m)],
                    metadata_stream(name, str(m)),
                    instance_id=str(m),
                )
                for m in modules
            ),
            *(
                self.service(
                    f"converter {m}",
                    converter,
                    [*arguments, str(m)],
                    endpoints.converter(name, m),
                    instance_id=str(m),
                )
                for m in modules
            ),
            self.service("sync", MODULE_SYNC, (), metadata_stream(name, "image")),
        ]

    def requested(self) -> list[ServiceSpec]:
        """Return the services that the configuration asks for, in the order in which they end.

        The page of a `stddaq-rest` shows the images of preview services, one for each stream.
        """
        requested = requested_services(self._config)
        if any(service.program.name == _REST for service in requested):
            given = {preview_stream(service) for service in requested if service.program.name == _PREVIEW}
            for stream in previewed_streams(self._config):
                if stream not in given:
                    arguments = () if stream == "image" else ("-s", stream)
                    requested.append(RequestedService(PROGRAMS[_PREVIEW], arguments))
        requested.sort(key=lambda service: order_of_ending(service.program.name))
        names = [_name(service) for service in requested]
        return [
            self.service(
                name if names.count(name) == 1 else f"{name} {position}",
                service.program.name,
                self._arguments(service),
                self._address(service),
                instance_id=self._instance_id(service),
            )
            for position, (name, service) in enumerate(zip(names, requested, strict=True))
        ]

    def _arguments(self, service: RequestedService) -> tuple[str, ...]:
        """Return the arguments of an entry; the page shows the runs of this driver."""
        if service.program.name != _REST or option_of(service.arguments, "", "--url") is not None:
            return service.arguments
        return (*service.arguments, "--url", _reachable(self._driver).replace("tcp://", "ws://"))

    def live_streams(self) -> list[ServiceSpec]:
        """Return a live stream for each address that `services` does not mention."""
        given = {_stream_address(self._config, service) for service in requested_services(self._config)}
        return [
            self.service(
                _live_stream_name(address),
                _LIVE_STREAM,
                [address],
                _reachable(address),
                instance_id=_port_in(_reachable(address)),
            )
            for address in self._config.live_stream_configs
            if address not in given
        ]

    def _start_up(self, program: str) -> str:
        keys = PROGRAMS[program].start_up_keys
        return json.dumps({key: self._values[key] for key in sorted(keys)})

    def _instance_id(self, service: RequestedService) -> str | None:
        if service.program.name in (_LIVE_STREAM, _REST):
            return _port_in(self._address(service))
        if service.program.name == _PREVIEW:
            return endpoints.preview_instance(preview_stream(service))
        return ""

    def _address(self, service: RequestedService) -> str:
        program = service.program.name
        if program in _OUTPUTS:
            return metadata_stream(self._config.detector_name, _OUTPUTS[program])
        if program == _PREVIEW:
            return endpoints.preview(self._config.detector_name, preview_stream(service))
        if program == _LIVE_STREAM:
            return _reachable(_stream_address(self._config, service) or "")
        host = option_of(service.arguments, "", "--host") or "127.0.0.1"
        port = option_of(service.arguments, "-p", "--port") or _REST_PORT
        return _reachable(f"tcp://{host}:{port}")


def _name(service: RequestedService) -> str:
    program, arguments = service.program.name, service.arguments
    if program == _LIVE_STREAM:
        return _live_stream_name(next((a for a in arguments if "://" in a), ""))
    if program == _PREVIEW:
        return f"preview {endpoints.preview_instance(preview_stream(service))}".rstrip()
    return program.removeprefix("std_").removeprefix("stddaq-").removeprefix("data_")


def _live_stream_name(address: str) -> str:
    return f"live_stream {address.partition('://')[2]}"


def _stream_address(config: DetectorConfig, service: RequestedService) -> str | None:
    """Return the address of a requested live stream; None for other services."""
    if service.program.name != _LIVE_STREAM:
        return None
    return next((word for word in service.arguments if word in config.live_stream_configs), None)


def _reachable(address: str) -> str:
    """Return the endpoint at which `address`, possibly of all interfaces, is reachable; empty if unknown."""
    scheme, _, place = address.partition("://")
    host, _, port = place.rpartition(":")
    if scheme != "tcp" or not port.isdecimal() or int(port) == 0:
        return address if scheme == "ipc" else ""
    return f"tcp://127.0.0.1:{port}" if host in ("*", "0.0.0.0", "[::]", "::") else address


def _port_in(address: str) -> str | None:
    """Return the port of `tcp://HOST:PORT`; None if it cannot be known."""
    return address.rpartition(":")[2] or None
