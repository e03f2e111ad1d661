"""What a server lacks for a configuration: each check has a finding, and the command that mends it."""

from __future__ import annotations

import ctypes
import os
import pwd
import re
import resource
import shlex
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path

from stddaq.cli.findings import Finding, Server, State
from stddaq.cli.network_checks import network_findings
from stddaq.cli.ring_space import machine_memory, rings_bytes, sends_packets, to_enlarge
from stddaq.config import DetectorConfig
from stddaq.config.live_streams import LiveStreamSetting
from stddaq.config.model import KEYS
from stddaq.config.modules import expected_modules
from stddaq.daemon.main import MAX_DESCRIPTORS
from stddaq.daemon.user_switch import groups_of
from stddaq.text import bytes_text, escaped, os_error_text
from stddaq.wire.default_addresses import ipc_directory

# Users with smaller uids are of the system; systemd-logind leaves their shared memory alone.
FIRST_LOGIN_UID = 1000
STA_UNSYNC = 0x40
# The measurement of a disk ends when one of these is reached.
MEASURED_S = 2.0
MEASURED_BYTES = 2**30
_BLOCK = bytes(4 * 2**20)
# Of difflib: one or two wrong letters in a key, but no other word.
SIMILARITY = 0.85


def check_server(config: DetectorConfig, server: Server, rate: float | None) -> list[Finding]:
    """Return all findings, in the order in which a server is prepared. `rate`: images per second.

    Raise `ConfigError` if the server does not have the named interface.
    """
    findings = [_keys(config), _installation(server), _shared_memory(config, server), _huge_pages(server)]
    if sends_packets(config):
        findings += network_findings(config, server)
    findings += [_descriptors(), _sockets(server), _protected_regular(config, server), _remove_ipc(server)]
    findings += [_clock(), _cores(config)]
    for root in config.allowed_roots:
        findings.append(_directory(Path(root), server))
        if findings[-1].state == "ok":
            findings.append(_disk(config, Path(root), rate))
    return findings


def _keys(config: DetectorConfig) -> Finding:
    """Services ignore keys that they do not know, so a misspelt key leaves the default of the right one."""
    of_streams = [key.name for key in fields(LiveStreamSetting)]
    found = [(key, KEYS, key) for key in config.others]
    for address, setting in config.live_stream_configs.items():
        where = f"live_stream_configs.{address}"
        found += [(key, of_streams, f"{where}.{key}") for key in setting.others]
    misspelt = {
        shown: close[0]
        for key, known, shown in found
        if (close := get_close_matches(key, known, 1, SIMILARITY))
    }
    if misspelt:
        keys = ", ".join(escaped(shown) for shown in misspelt)
        expected = ", ".join(misspelt.values())
        return Finding("keys", "advice", f"ignored: {keys}", f"{expected}, unless another service reads it")
    return Finding("keys", "ok", f"{len(found)} for other services" if found else "all are known")


def _installation(server: Server) -> Finding:
    """The user of the services must be able to reach the interpreter, which a link may point to."""
    name, user = "installation", _name_of(server.uid)
    programs = {Path(sys.executable).absolute(), Path(sys.executable).resolve()}
    for directory in sorted({directory for program in programs for directory in program.parents}):
        found = directory.stat()
        if not _has_rights(found, server.uid, stat.S_IXOTH):
            shown = f"{directory} has owner {_name_of(found.st_uid)}, mode {stat.S_IMODE(found.st_mode):04o}"
            return Finding(name, "missing", shown, f"an environment that {user} can use, as in /opt")
    return Finding(name, "ok", f"{user} can use {sys.prefix}")


def _shared_memory(config: DetectorConfig, server: Server) -> Finding:
    name, directory = "shared memory", server.root / "dev/shm"
    needed = rings_bytes(config)
    try:
        room = os.statvfs(directory)
    except OSError as error:
        return Finding(name, "missing", os_error_text(error), "a tmpfs", "mount -t tmpfs tmpfs /dev/shm")
    own = [path.stat().st_blocks * 512 for path in directory.glob(f"{config.detector_name}*")]
    free = room.f_bavail * room.f_frsize + sum(own)
    found = f"{bytes_text(free)} free in /dev/shm"
    if free >= needed:
        return Finding(name, "ok", found)
    expected = f"{bytes_text(needed)} for the ring buffers"
    cure = to_enlarge(room, needed - free)
    if not cure:
        memory = bytes_text(machine_memory())
        expected += f", a smaller ram_buffer_gb (this machine has {memory})"
    return Finding(name, "missing", found, expected, cure)


def _huge_pages(server: Server) -> Finding:
    """Transparent huge pages of /dev/shm, by its mount option or for all shared memory."""
    name = "huge pages"
    mounts = [line.split() for line in (server.text("proc/mounts") or "").splitlines()]
    options = next((words[3] for words in reversed(mounts) if words[1] == "/dev/shm"), "")
    forced = server.text("sys/kernel/mm/transparent_hugepage/shmem_enabled")
    if forced is None:
        return Finding(name, "ok", "not supported by this kernel")
    if "[deny]" not in forced and (re.search(r"huge=(always|within_size)", options) or "[force]" in forced):
        return Finding(name, "ok", "used by /dev/shm")
    cure = "mount -o remount,huge=within_size /dev/shm"
    return Finding(name, "advice", "not used by /dev/shm", "huge=within_size, for faster copies", cure)


def _descriptors() -> Finding:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY or hard >= MAX_DESCRIPTORS:
        return Finding("open files", "ok", "no limit" if hard < 0 else f"up to {hard}")
    cure = f'prlimit --pid "$$" --nofile={MAX_DESCRIPTORS}:{MAX_DESCRIPTORS}'
    # Units have a limit of their own.
    shown = f"up to {hard} in this shell"
    return Finding("open files", "advice", shown, f"{MAX_DESCRIPTORS}", cure, is_for_all=False)


def _sockets(server: Server) -> Finding:
    """The directory of the ipc sockets."""
    name, path = "sockets", ipc_directory()
    finding = _directory(path, server)
    return Finding(name, finding.state, finding.found, finding.expected, finding.cure)


def _protected_regular(config: DetectorConfig, server: Server) -> Finding:
    """Services in C++ open rings with O_CREAT, which this setting forbids for those of other users."""
    name, value = "ring buffers of C++ services", server.number("proc/sys/fs/protected_regular")
    if not value or not config.switch_user_active:
        return Finding(name, "ok", f"fs.protected_regular = {value}")
    expected = "0, if services in C++ of another user share the ring buffers"
    cure = "sysctl -w fs.protected_regular=0"
    return Finding(name, "advice", f"fs.protected_regular = {value}", expected, cure, is_for_all=False)


def _remove_ipc(server: Server) -> Finding:
    """systemd-logind removes the shared memory of a user who logs out."""
    name = "RemoveIPC of systemd-logind"
    if server.uid < FIRST_LOGIN_UID:
        return Finding(name, "ok", "does not concern users of the system")
    if not (server.root / "run/systemd/system").is_dir():
        return Finding(name, "ok", "no systemd")
    if _logind_setting(server) == "no":
        return Finding(name, "ok", "no")
    drop_in = "/etc/systemd/logind.conf.d"
    cure = (
        f"mkdir -p {drop_in} && printf '[Login]\\nRemoveIPC=no\\n' > {drop_in}/90-stddaq.conf "
        "&& systemctl restart systemd-logind"
    )
    expected = "no, because it removes ring buffers when their user logs out"
    return Finding(name, "missing", "yes", expected, cure)


def _logind_setting(server: Server) -> str:
    """Return `yes` or `no`: the last setting of the main file and of the drop-ins, which follow by name."""
    drop_ins: dict[str, Path] = {}
    for directory in ("usr/lib", "run", "etc"):
        for path in sorted((server.root / directory / "systemd/logind.conf.d").glob("*.conf")):
            drop_ins[path.name] = path
    value = "yes"
    for path in [server.root / "etc/systemd/logind.conf", *(drop_ins[name] for name in sorted(drop_ins))]:
        text = path.read_text() if path.exists() else ""
        for given in re.findall(r"(?m)^\s*RemoveIPC\s*=\s*(\w+)\s*$", text):
            value = "no" if given.lower() in ("no", "false", "off", "0", "n", "f") else "yes"
    return value


class _Timex(ctypes.Structure):
    _fields_ = (
        ("modes", ctypes.c_uint),
        *((name, ctypes.c_long) for name in ("offset", "freq", "maxerror", "esterror")),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_long * 32),
    )


def _clock() -> Finding:
    clock = _Timex()
    if ctypes.CDLL(None).adjtimex(ctypes.byref(clock)) < 0 or clock.status & STA_UNSYNC:
        cure = "timedatectl set-ntp true"
        return Finding("clock", "advice", "not synchronised", "NTP, for times of logs and images", cure)
    return Finding("clock", "ok", "synchronised")


def _cores(config: DetectorConfig) -> Finding:
    """One core for each writer, receiver and converter, and one for all others."""
    n_modules = len(expected_modules(config)) if sends_packets(config) else 0
    n_wanted = config.number_of_writers + 2 * n_modules + 1
    n_cores = len(os.sched_getaffinity(0))
    if n_cores >= n_wanted:
        return Finding("cores", "ok", f"{n_cores}")
    services = f"{config.number_of_writers} writers" + (
        f", {n_modules} receivers, as many converters" * bool(n_modules)
    )
    return Finding("cores", "advice", f"{n_cores}", f"{n_wanted} at full speed: {services}, and one")


def _directory(path: Path, server: Server) -> Finding:
    """A directory in which the services must be able to create files."""
    name, quoted = f"directory {path}", shlex.quote(str(path))
    user = _name_of(server.uid)
    expected = f"a directory in which {user} may create files"
    try:
        found = path.stat()
    except FileNotFoundError:
        cure = f"install -d -o {shlex.quote(user)} {quoted}"
        return Finding(name, "missing", "does not exist", expected, cure)
    except OSError as error:
        return Finding(name, "missing", os_error_text(error), expected)
    if not stat.S_ISDIR(found.st_mode):
        return Finding(name, "missing", "not a directory", expected)
    if not _has_rights(found, server.uid, stat.S_IWOTH | stat.S_IXOTH):
        cure = f"setfacl -m u:{shlex.quote(user)}:rwx {quoted}"
        shown = f"owner {_name_of(found.st_uid)}, mode {stat.S_IMODE(found.st_mode):04o}"
        return Finding(name, "missing", shown, expected, cure)
    return Finding(name, "ok", f"{user} may create files")


def _has_rights(found: os.stat_result, uid: int, others: int) -> bool:
    """Return whether a user has the rights that the bits `others` would give to all users."""
    if uid == 0:
        return True
    if found.st_uid == uid:
        needed = others << 6
    elif found.st_gid in groups_of(uid)[1]:
        needed = others << 3
    else:
        needed = others
    return found.st_mode & needed == needed


def _disk(config: DetectorConfig, root: Path, rate: float | None) -> Finding:
    """Free space; with a rate also the measured speed of one writer's worth of files."""
    name, room = f"disk of {root}", os.statvfs(root)
    free = room.f_bavail * room.f_frsize
    if rate is None:
        state: State = "ok" if free > 100 * config.image_bytes else "missing"
        return Finding(name, state, f"{bytes_text(free)} free", f"{bytes_text(100 * config.image_bytes)}")
    needed = rate * config.image_bytes
    minutes = free / needed / 60
    try:
        speed = write_speed(root, min(MEASURED_BYTES, free // 2))
    except OSError as error:
        return Finding(
            name, "advice", f"speed not measured: {os_error_text(error)}", bytes_text(needed) + "/s"
        )
    found = f"{bytes_text(speed)}/s, {bytes_text(free)} free (full after {minutes:.0f} min)"
    return Finding(name, "ok" if speed >= needed else "advice", found, f"{bytes_text(needed)}/s")


def write_speed(directory: Path, limit: int, clock: Callable[[], float] = time.monotonic) -> float:
    """Return the bytes per second that reach the storage of `directory`, from one file without a name."""
    # GPFS and NFS have no O_TMPFILE; there it makes a file and removes its name.
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        begin, n_bytes = clock(), 0
        while n_bytes < max(limit, len(_BLOCK)) and clock() - begin < MEASURED_S:
            n_bytes += file.write(_BLOCK)
            os.fdatasync(file.fileno())
        return n_bytes / max(clock() - begin, 1e-9)


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def is_prepared(findings: Sequence[Finding]) -> bool:
    """Return whether services can run."""
    return all(finding.state != "missing" for finding in findings)
