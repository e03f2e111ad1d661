"""systemd units: one for each service that `stddaq up` would start, and a target that holds them together."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stddaq.cli.supervisor.restarts import RESTART_DELAYS_S, RESTART_WINDOW_S
from stddaq.cli.supervisor.spec import ServiceSpec
from stddaq.config import DetectorConfig
from stddaq.config.services import CONVERTERS, META_WRITERS, RECEIVERS
from stddaq.daemon.main import MAX_DESCRIPTORS
from stddaq.dataplane.shared_segment import GROUP_VARIABLE, MODE_VARIABLE
from stddaq.wire.default_addresses import IPC_DIRECTORY_VARIABLE, ipc_directory

_META_WRITERS = frozenset(META_WRITERS.values())
# These keep what numba has compiled.
_COMPILED = frozenset(CONVERTERS.values()) | frozenset(RECEIVERS.values())
# These make files below the allowed roots.
_RECORDERS = frozenset({"std_det_driver", "std_det_writer"}) | _META_WRITERS
# libzmq looks among the network interfaces for an address that it binds, and aborts if it may not.
_BINDERS = frozenset({"std_stream_send", "std_metadata_stream", "std_buffer_driver"})
_REST, _BUFFER_WRITER = "stddaq-rest", "std_buffer_writer"
# To act as the user of a run, to end a process that does, and to see whether another has its file open.
_OF_ANOTHER_USER = (
    *("CAP_SETUID", "CAP_SETGID", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER"),
    *("CAP_KILL", "CAP_LEASE"),
)
WATCHDOG_S = 60
# Storage that does not respond blocks a writer, which still closes its file when the storage recovers.
RECORDER_WATCHDOG_S = 300
# Receivers and converters of UDP detectors are compiled before they are ready.
START_TIMEOUT_S = 180
# Services end within 2 s, but all at once on a busy machine later; a writer must not be killed then.
STOP_TIMEOUT_S = 30
_HOMES = ("/home", "/root", "/run/user")
_SANDBOX = """
# A service sees the file system read-only, but for ReadWritePaths and shared memory.
ProtectSystem=strict
PrivateDevices=yes
DevicePolicy=closed
ProtectProc=invisible
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
NoNewPrivileges=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
KeyringMode=private
# No RemoveIPC: the ring buffers of the other services would be removed with this one.
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service
""".strip()


@dataclass(frozen=True, slots=True)
class UnitOptions:
    """What is the same for all units of a configuration.

    Attributes:
        config_path: absolute.
        roots: directories that services make files in.
        user: name of the user that services run as.
        cpus: cores, by the name of a service or of its group (`writer 0`, `writer`).
        environment: variables that services need.
        environments: further ones of a service, by its name.
    """

    config_path: Path
    roots: Sequence[Path]
    user: str
    cpus: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    environments: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def passed_on_environment() -> dict[str, str]:
    """Return the variables of this process that all services of a server share."""
    names = (IPC_DIRECTORY_VARIABLE, GROUP_VARIABLE, MODE_VARIABLE)
    return {name: os.environ[name] for name in names if name in os.environ}


def unit_files(config: DetectorConfig, specs: Sequence[ServiceSpec], options: UnitOptions) -> dict[str, str]:
    """Return the text of each unit by its file name. `specs` are in the order in which services end."""
    target = f"std_daq-{config.detector_name}.target"
    names = {spec.name: _unit_name(config, spec) for spec in specs}
    groups = list(dict.fromkeys(spec.group for spec in specs))
    units = {target: _target(config, names.values())}
    for spec in specs:
        later = groups[groups.index(spec.group) + 1 :]
        # Services start in the reverse order of their end, so that receivers are ready before senders.
        before = [names[other.name] for other in specs if other.group in later]
        units[names[spec.name]] = _service(config, spec, target, before, options)
    return units


def _unit_name(config: DetectorConfig, spec: ServiceSpec) -> str:
    last = spec.name.rpartition(" ")[2]
    # The number of a writer or module, or the address of a live stream.
    is_number = re.search(r"\d", last) or spec.group == spec.program
    number = re.sub(r"[^\w:.-]", "_", last) if is_number and last != spec.name else "0"
    return f"std_daq-{config.detector_name}-{spec.program}-{number}.service"


def _target(config: DetectorConfig, names: Iterable[str]) -> str:
    return "\n".join(
        [
            "[Unit]",
            f"Description=stddaq {config.detector_name}",
            *(f"Wants={name}" for name in names),
            "",
            "[Install]",
            "WantedBy=multi-user.target",
            "",
        ]
    )


def _service(
    config: DetectorConfig, spec: ServiceSpec, target: str, before: Sequence[str], options: UnitOptions
) -> str:
    program = spec.program
    writable = _writable(spec, program, options)
    mounted = [options.config_path, *writable]
    environment = {**options.environment, **options.environments.get(spec.name, {})}
    lines = [
        "[Unit]",
        f"Description=stddaq {config.detector_name}: {spec.name}",
        f"PartOf={target}",
        # A unit changes with the keys that its service reads at the start only, and with no others.
        f"X-StartUp={_digest(spec.start_up)}",
        "Wants=network-online.target",
        "After=network-online.target",
        *(f"After={name}" for name in before),
        *(f"RequiresMountsFor={_quoted(str(path))}" for path in mounted),
        f"StartLimitIntervalSec={RESTART_WINDOW_S:g}",
        f"StartLimitBurst={len(RESTART_DELAYS_S) + 1}",
        "",
        "[Service]",
        "Type=notify",
        f"ExecStart={' '.join(map(_quoted_argument, _absolute(spec.command, options)))}",
        *_directory(spec.command),
        f"SyslogIdentifier={program}",
        f"User={options.user}",
        *(f"Environment={_quoted(f'{name}={value}')}" for name, value in environment.items()),
        f"Restart={'on-failure' if spec.may_finish else 'always'}",
        # What has finished is not started again by the next deployment.
        *["RemainAfterExit=yes"] * spec.may_finish,
        f"RestartSec={RESTART_DELAYS_S[1]:g}",
        f"WatchdogSec={RECORDER_WATCHDOG_S if program in _RECORDERS else WATCHDOG_S}",
        f"TimeoutStartSec={START_TIMEOUT_S}",
        f"TimeoutStopSec={STOP_TIMEOUT_S}",
        "KillMode=mixed",
        f"LimitNOFILE={MAX_DESCRIPTORS}",
        "LimitMEMLOCK=infinity",
        *_cores(spec, options),
        *_cache(config, program),
        "",
        _SANDBOX,
        f"RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6{' AF_NETLINK' * (program in _BINDERS)}",
        *_rights(program, options),
        f"ProtectHome={'read-only' if _is_in_a_home(spec, mounted) else 'yes'}",
        *(f"ReadWritePaths={_quoted(str(path))}" for path in writable),
        "",
        "[Install]",
        f"WantedBy={target}",
        "",
    ]
    return "\n".join(lines)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _writable(spec: ServiceSpec, program: str, options: UnitOptions) -> list[Path]:
    """Return the directories in which a service makes files or sockets."""
    paths = [Path(options.environment.get(IPC_DIRECTORY_VARIABLE, ipc_directory()))]
    if program in _RECORDERS:
        paths += options.roots
    if program == _REST:
        # It replaces the configuration file, and makes files below its own roots.
        paths += [options.config_path.parent, *_values(spec.command, "--root")]
    if program == _BUFFER_WRITER:
        paths += _values(spec.command, "--root_dir")
    return list(dict.fromkeys(path.absolute() for path in paths))


def _values(command: Sequence[str], option: str) -> list[Path]:
    """Return the directories that a command line gives with an option."""
    values = [command[i + 1] for i, word in enumerate(command[:-1]) if word == option]
    values += [word.partition("=")[2] for word in command if word.startswith(f"{option}=")]
    return [Path(value) for value in values]


def _absolute(command: Sequence[str], options: UnitOptions) -> list[str]:
    return [str(options.config_path) if Path(word) == options.config_path else word for word in command]


def _directory(command: Sequence[str]) -> list[str]:
    """Return the setting of the working directory, if arguments are relative paths."""
    relative = [word for word in command[1:] if not Path(word).is_absolute() and Path(word).exists()]
    return [f"WorkingDirectory={_quoted(str(Path.cwd()))}"] if relative else []


def _cores(spec: ServiceSpec, options: UnitOptions) -> list[str]:
    cores = options.cpus.get(spec.name) or options.cpus.get(spec.group)
    return [f"CPUAffinity={cores}"] if cores else []


def _cache(config: DetectorConfig, program: str) -> list[str]:
    if program not in _COMPILED:
        return []
    name = f"std_daq-{config.detector_name}"
    return [f"CacheDirectory={name}", f"Environment=NUMBA_CACHE_DIR=%C/{name}"]


def _rights(program: str, options: UnitOptions) -> list[str]:
    """Return the capabilities: services of root that use files act as other users; the rest need none."""
    is_root = options.user in ("root", "0")
    uses_files = program in _RECORDERS | {_REST}
    if is_root and uses_files:
        return [f"CapabilityBoundingSet={' '.join(_OF_ANOTHER_USER)}"]
    # Configurations, calibrations and tokens may belong to other users.
    lines = [f"CapabilityBoundingSet={'CAP_DAC_READ_SEARCH' if is_root else ''}"]
    lines.append("SystemCallFilter=~@privileged")
    if uses_files or GROUP_VARIABLE in options.environment:
        # For the group of a configuration that is replaced, and of shared memory.
        lines.append("SystemCallFilter=@chown")
    return lines


def _is_in_a_home(spec: ServiceSpec, mounted: Sequence[Path]) -> bool:
    """Return whether a service needs a file below the home of a user."""
    needed = [*spec.command, *map(str, mounted), sys.base_prefix, sys.prefix, str(Path(__file__).resolve())]
    return any(
        os.path.commonpath([home, word]) == home for word in needed if word[:1] == "/" for home in _HOMES
    )


def _quoted(text: str) -> str:
    """Return a value for a setting: percent signs are not specifiers, and spaces do not separate."""
    text = text.replace("%", "%%")
    if re.fullmatch(r"[\w@%+=:,./*~^{}\[\]!?&-]+", text, re.ASCII):
        return text
    inner = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{inner}"'


def _quoted_argument(text: str) -> str:
    """Return a word of a command line, in which a dollar sign would name a variable."""
    return _quoted(text).replace("$", "$$")
