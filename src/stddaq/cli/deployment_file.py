"""The deployment file: an Ansible playbook that says which services run on which server, on which cores.

Both published forms are read: `config_file` and `microservices` among the variables of a play, and a list of
`deployments`. Every mistake is found with its line.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from stddaq.config import DetectorConfig
from stddaq.config.services import (
    CONVERTERS,
    META_WRITERS,
    METADATA_SENDER,
    METADATA_SYNC,
    PROGRAMS,
    RECEIVERS,
    SENDER,
    STREAM_RECEIVER,
)
from stddaq.errors import ConfigError
from stddaq.text import mismatch, shown

_PLAY = ("name", "hosts", "become", "gather_facts", "roles", "vars")
_VARS = ("std_daq_sw_version", "deployments", "config_file", "microservices")
_DEPLOYMENT = ("config_file", "microservices")
_MICROSERVICE = ("prog_name", "instances", "env", "skip_watcher")
_INSTANCE = ("cpus", "params", "id")
# Variables of Ansible and of the role are its business.
_OTHER_VARS = re.compile(r"(ansible|stddaq)_\w+")
_CORES = re.compile(r"\d{1,4}(-\d{1,4})?", re.ASCII)
_FORMER_LIVE_STREAM_OPTIONS = ("-b", "-p")
# Programs of two servers, by those on the other one.
CONNECTED: Mapping[str, str] = {
    SENDER: STREAM_RECEIVER,
    STREAM_RECEIVER: SENDER,
    METADATA_SENDER: METADATA_SYNC,
    METADATA_SYNC: METADATA_SENDER,
}
# Programs whose last argument is the number of this.
_NUMBERED: Mapping[str, str] = {
    "std_det_writer": "writer",
    **dict.fromkeys([*RECEIVERS.values(), *CONVERTERS.values()], "module"),
    **dict.fromkeys([SENDER, STREAM_RECEIVER], "pair"),
}


@dataclass(frozen=True, slots=True)
class Instance:
    """One service of a deployment.

    Attributes:
        number: its `id`, or its position among the instances of its program.
        cores: as systemd reads them; empty for all.
        arguments: of its command line, without the configuration.
        environment: variables that it gets.
        line: of the file.
    """

    program: str
    number: str
    cores: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    line: int


@dataclass(frozen=True, slots=True)
class Deployment:
    """The services of one configuration on one server."""

    config_file: str
    instances: tuple[Instance, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Play:
    """The deployments of a group of servers."""

    name: str
    version: str
    deployments: tuple[Deployment, ...]


@dataclass
class _Reader:
    """Collects mistakes; `lines` has the line of each value by its place."""

    path: str
    lines: dict[tuple[Any, ...], int] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)

    def expect(self, place: tuple[Any, ...], expected: str, got: str, advice: str = "") -> None:
        key = ".".join(map(str, place))
        self.mistakes.append(mismatch(f"{self.path}:{self.line(place)}: {key}", expected, got, advice))

    def line(self, place: tuple[Any, ...]) -> int:
        while place not in self.lines:
            place = place[:-1]
        return self.lines[place]

    def value(self, node: yaml.Node, place: tuple[Any, ...] = ()) -> Any:
        """Return the value of a node, and remember the lines of all that it contains."""
        self.lines[place] = node.start_mark.line + 1
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, (*place, i)) for i, child in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            found: dict[Any, Any] = {}
            for key_node, child in node.value:
                key = key_node.value
                if key in found:
                    self.expect((*place, key), "a key once", "several")
                found[key] = self.value(child, (*place, key))
                self.lines[(*place, key)] = key_node.start_mark.line + 1
            return found
        loader = yaml.SafeLoader("")
        try:
            return loader.construct_object(node)
        finally:
            loader.dispose()

    def mapping(self, value: object, place: tuple[Any, ...], keys: Sequence[str]) -> dict[str, Any]:
        """Return a mapping with no other keys than these."""
        if not isinstance(value, dict):
            self.expect(place, f"a mapping with the keys {', '.join(keys)}", shown(value))
            return {}
        for key in value:
            if key not in keys and not (keys is _VARS and _OTHER_VARS.fullmatch(str(key))):
                close = difflib.get_close_matches(str(key), keys, n=1)
                advice = f"did you mean {close[0]}?" if close else ""
                self.expect((*place, key), f"one of the keys {', '.join(keys)}", repr(key), advice)
        return value

    def sequence(self, value: object, place: tuple[Any, ...], what: str) -> list[Any]:
        if isinstance(value, list):
            return value
        self.expect(place, f"a list of {what}", shown(value))
        return []

    def text(self, value: object, place: tuple[Any, ...], what: str) -> str:
        if isinstance(value, str) and value:
            return value
        self.expect(place, what, "nothing" if value is None else shown(value))
        return ""


def read_deployment_file(path: Path) -> list[Play]:
    """Return the plays of a file. Raise `ConfigError` with all mistakes."""
    try:
        node = yaml.compose(path.read_text(), yaml.SafeLoader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else f"{path}"
        reason = getattr(error, "problem", None) or "text of another encoding"
        raise ConfigError(mismatch(where, "YAML in UTF-8", str(reason))) from error
    if node is None:
        raise ConfigError(mismatch(str(path), "a playbook", "an empty file"))
    reader = _Reader(str(path))
    value = reader.value(node)
    plays = value if isinstance(value, list) else [value]
    offset = [(i,) for i in range(len(plays))] if isinstance(value, list) else [()]
    found = [_play(reader, play, place) for play, place in zip(plays, offset, strict=True)]
    if reader.mistakes:
        raise ConfigError("; ".join(reader.mistakes), reader.mistakes)
    return found


def _play(reader: _Reader, value: object, place: tuple[Any, ...]) -> Play:
    name = f"play {place[0]}" if place else "all"
    if isinstance(value, dict) and "hosts" in value:
        play = reader.mapping(value, place, _PLAY)
        name, place = str(play.get("name") or play["hosts"]), (*place, "vars")
        value = play.get("vars")
    if isinstance(value, list):  # One-key maps.
        merged: dict[str, Any] = {}
        for i, single in enumerate(value):
            for key, inner in reader.mapping(single, (*place, i), _VARS).items():
                merged[key] = inner
                _move(reader, (*place, i, key), (*place, key))
        value = merged
    variables = reader.mapping(value, place, _VARS)
    version = reader.text(
        _plain(variables.get("std_daq_sw_version")),
        (*place, "std_daq_sw_version"),
        "a version of stddaq as text, such as 0.13.34",
    )
    if "deployments" in variables:
        if "microservices" in variables:
            reader.expect((*place, "microservices"), "deployments or microservices", "both")
        given = reader.sequence(variables["deployments"], (*place, "deployments"), "deployments")
        places = [(*place, "deployments", i) for i in range(len(given))]
    else:
        given = [{key: variables[key] for key in _DEPLOYMENT if key in variables}]
        places = [place]
    return Play(name, version, tuple(_deployment(reader, *pair) for pair in zip(given, places, strict=True)))


def _plain(version: object) -> object:
    # YAML reads 0.13 as a number.
    return str(version) if isinstance(version, int | float) else version


def _move(reader: _Reader, old: tuple[Any, ...], new: tuple[Any, ...]) -> None:
    for place, line in list(reader.lines.items()):
        if place[: len(old)] == old:
            reader.lines[(*new, *place[len(old) :])] = line


def _deployment(reader: _Reader, value: object, place: tuple[Any, ...]) -> Deployment:
    deployment = reader.mapping(value, place, _DEPLOYMENT)
    config_file = reader.text(
        deployment.get("config_file"), (*place, "config_file"), "the name of a configuration file"
    )
    if "/" in config_file or config_file.startswith("."):
        reader.expect((*place, "config_file"), "a file name without directory", repr(config_file))
    where = (*place, "microservices")
    instances: list[Instance] = []
    for i, microservice in enumerate(reader.sequence(deployment.get("microservices"), where, "services")):
        instances += _microservice(reader, microservice, (*where, i))
    seen: dict[tuple[str, str], int] = {}
    for instance in instances:
        first = seen.setdefault((instance.program, instance.number), instance.line)
        if first != instance.line:
            what = f"{instance.program} {instance.number}"
            reader.mistakes.append(
                mismatch(f"{reader.path}:{instance.line}", f"{what} once", f"again, first in line {first}")
            )
    return Deployment(config_file, tuple(instances), reader.line(place))


def _microservice(reader: _Reader, value: object, place: tuple[Any, ...]) -> Iterator[Instance]:
    service = reader.mapping(value, place, _MICROSERVICE)
    program = reader.text(service.get("prog_name"), (*place, "prog_name"), "the name of a program")
    if program and program not in PROGRAMS:
        close = difflib.get_close_matches(program, PROGRAMS, n=1, cutoff=0.75)
        advice = f"did you mean {close[0]}?" if close else ""
        reader.expect((*place, "prog_name"), "a program of stddaq", repr(program), advice)
    environment = _environment(reader, service.get("env"), (*place, "env"))
    where = (*place, "instances")
    for i, given in enumerate(reader.sequence(service.get("instances"), where, "instances")):
        instance = reader.mapping(given, (*where, i), _INSTANCE)
        number = str(instance.get("id", i))
        if not re.fullmatch(r"[\w:.-]{1,100}", number, re.ASCII):
            reader.expect((*where, i, "id"), "letters, digits, '.', '-', '_' and ':'", repr(number))
        cores = _cores(reader, instance.get("cpus", []), (*where, i, "cpus"))
        arguments = tuple(_words(reader, instance.get("params", []), (*where, i, "params")))
        line = reader.line((*where, i))
        yield Instance(program, number, cores, arguments, environment, line)


def _environment(reader: _Reader, value: object, place: tuple[Any, ...]) -> dict[str, str]:
    if value is None:
        return {}
    try:
        words = shlex.split(reader.text(value, place, "NAME=VALUE, separated by spaces"))
    except ValueError as error:
        reader.expect(place, "NAME=VALUE, separated by spaces", f"{shown(value)} ({error})")
        return {}
    for word in words:
        if not re.match(r"[A-Za-z_]\w*=", word, re.ASCII):
            reader.expect(place, "NAME=VALUE, separated by spaces", repr(word))
    return dict(word.split("=", 1) for word in words if "=" in word)


def _cores(reader: _Reader, value: object, place: tuple[Any, ...]) -> str:
    cores = [str(core) for core in reader.sequence(value, place, "cores")]
    for i, core in enumerate(cores):
        first, _, last = core.partition("-")
        if not _CORES.fullmatch(core) or (last and int(last) < int(first)):
            reader.expect((*place, i), "a core such as 16 or a range such as '43-47'", repr(core))
    return ",".join(cores)


def _words(reader: _Reader, value: object, place: tuple[Any, ...]) -> Iterator[str]:
    for i, param in enumerate(reader.sequence(value, place, "arguments")):
        if isinstance(param, bool | list | dict) or param is None:
            reader.expect((*place, i), "a number or text", shown(param))
            continue
        try:
            yield from shlex.split(str(param))
        except ValueError as error:
            reader.expect((*place, i), "words as in a shell", f"{shown(param)} ({error})")


def check_instances(path: str, deployment: Deployment, config: DetectorConfig, n_cores: int) -> list[str]:
    """Return what does not fit the configuration and the server, in words."""
    mistakes: list[str] = []
    for instance in deployment.instances:
        where = f"{path}:{instance.line}: {instance.program} {instance.number}"
        mistakes += [
            mismatch(where, f"a core from 0 to {n_cores - 1}", core)
            for core in re.findall(r"\d+", instance.cores)
            if int(core) >= n_cores
        ]
        mistakes += _argument_mistakes(where, instance, config)
    return mistakes


def _argument_mistakes(where: str, instance: Instance, config: DetectorConfig) -> list[str]:
    program, arguments = instance.program, instance.arguments
    own = {
        "meta": META_WRITERS[config.detector_type],
        "recv": RECEIVERS.get(config.detector_type),
        "convert": CONVERTERS.get(config.detector_type),
    }
    for part, right in own.items():
        if (
            f"_{part}_" in program
            and program.startswith("std_")
            and "bsread" not in program
            and program != right
        ):
            return [mismatch(where, f"{right or 'none'} for {config.detector_type}", program)]
    if program == "std_live_stream":
        if former := [word for word in arguments if word in _FORMER_LIVE_STREAM_OPTIONS]:
            advice = "it belongs to live_stream_configs of the configuration now"
            return [mismatch(where, "options of std_live_stream", f"{former[0]} of former versions", advice)]
        if not any(word in config.live_stream_configs for word in arguments):
            known = ", ".join(config.live_stream_configs) or "it has none"
            return [mismatch(where, f"an address of live_stream_configs ({known})", shown(list(arguments)))]
    if program in CONNECTED and not any(word.startswith("tcp://") for word in arguments):
        return [mismatch(where, "an address tcp://HOST:PORT in params", shown(list(arguments)))]
    if what := _NUMBERED.get(program):
        numbers = [word for word in arguments if word.isdecimal()]
        if not numbers:
            return [mismatch(where, f"the number of the {what} in params", shown(list(arguments)))]
        if what == "writer" and int(numbers[-1]) >= config.number_of_writers:
            return [
                mismatch(where, f"a writer below number_of_writers, {config.number_of_writers}", numbers[-1])
            ]
    return []
