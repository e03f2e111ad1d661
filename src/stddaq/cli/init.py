"""`stddaq init`: a configuration file, by options, by questions, or one of the examples."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from stddaq.cli.text import table
from stddaq.daemon.arguments import ArgumentParser, IntegerRange
from stddaq.errors import ConfigError, StdDaqError
from stddaq.text import bytes_text, mismatch

if TYPE_CHECKING:
    from stddaq.config import DetectorConfig

SUMMARY = "make a configuration file: by options, by questions, or from an example"
_DETECTORS = ("gigafrost", "eiger", "jungfrau-raw", "jungfrau-converted", "pco")
_DEFAULT_WRITERS = 2
_writers = IntegerRange(1, 1000)
T = TypeVar("T")


class AnswersMissingError(StdDaqError, EOFError):
    """There is no terminal to ask at, or its input has ended."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "file", nargs="?", metavar="FILE", help="file to write, which must not exist (default: NAME.json)"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--detector", choices=_DETECTORS, help="type of the detector; without it, init asks")
    what.add_argument("--example", metavar="EXAMPLE", help="write this example")
    what.add_argument("--list", action="store_true", help="list the examples")
    parser.add_argument(
        "--size", type=_size, metavar="WIDTHxHEIGHT", help="of an image in pixels (default: as usual)"
    )
    parser.add_argument("--bits", type=int, choices=(8, 16, 32), help="of a pixel (default: 16)")
    parser.add_argument("--name", help="of the detector, as in file names (default: its type)")
    parser.add_argument(
        "--writers",
        type=_writers,
        default=_DEFAULT_WRITERS,
        metavar="N",
        help=f"writers that share the images (default: {_DEFAULT_WRITERS})",
    )
    parser.add_argument(
        "--allowed-root",
        type=_absolute_path,
        action="append",
        default=[],
        metavar="DIRECTORY",
        help="services make files below these directories only; may be repeated",
    )


def run(args: argparse.Namespace) -> int:
    from stddaq.config import DetectorConfig
    from stddaq.config.creation import example
    from stddaq.config.model import parse_json

    if args.list:
        print("\n".join(_list()))
        return 0
    text = example(args.example) if args.example else _made(args)
    config = DetectorConfig.parse(parse_json(text.encode()))
    path = Path(args.file or f"{args.example or config.detector_name}.json")
    try:
        with path.open("x") as file:
            file.write(text)
    except FileExistsError:
        advice = "give another name: stddaq init FILE"
        raise ConfigError(mismatch(str(path), "a new file", "an existing one", advice)) from None
    print("\n".join(_summary(path, config)))
    return 0


def _made(args: argparse.Namespace) -> str:
    from stddaq.config.creation import KINDS, new_configuration

    if args.detector not in _DETECTORS:
        _ask_all(args)
    detector: str = args.detector
    kind = KINDS[detector]
    content = new_configuration(
        args.name or detector,
        detector,
        args.size or kind.size,
        args.bits or kind.bit_depths[0],
        args.writers,
        args.allowed_root,
    )
    return json.dumps(content, indent=2) + "\n"


def _ask_all(args: argparse.Namespace) -> None:
    """Ask for everything that the options leave open."""
    from stddaq.config.creation import KINDS

    if not sys.stdin.isatty():
        raise AnswersMissingError(
            mismatch("answers", "--detector, --example, or a terminal for questions", "none of them")
        )
    print("Enter accepts the value in brackets, Ctrl-C ends without a file.")
    args.detector = _ask(f"Type of the detector ({', '.join(_DETECTORS)})", _DETECTORS[0], _detector)
    kind = KINDS[args.detector]
    args.size = args.size or _ask("Size of an image in pixels", "{}x{}".format(*kind.size), _size)
    if args.bits is None and len(kind.bit_depths) > 1:
        args.bits = _ask("Bits of a pixel (8, 16, 32)", str(kind.bit_depths[0]), _bits)
    args.name = args.name or _ask("Name of the detector", args.detector, str)
    args.writers = _ask("Writers that share the images", str(args.writers), _writers)
    if not args.allowed_root:
        root = _ask("Directory below which services may make files", "any", lambda text: text)
        args.allowed_root = [] if root == "any" else [_absolute_path(root)]


def _ask(question: str, default: str, parse: Callable[[str], T]) -> T:
    """Ask until the answer is valid."""
    while True:
        try:
            return parse(input(f"{question} [{default}]: ").strip() or default)
        except argparse.ArgumentTypeError as error:
            print(f"  {error}")
        except EOFError:
            print()
            raise AnswersMissingError(mismatch("standard input", "an answer", "its end")) from None


def _detector(text: str) -> str:
    if text not in _DETECTORS:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(_DETECTORS)}, got {text!r}")
    return text


def _bits(text: str) -> int:
    if text not in ("8", "16", "32"):
        raise argparse.ArgumentTypeError(f"expected 8, 16 or 32, got {text!r}")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,5})[xX*]([1-9]\d{0,5})", text, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT in pixels such as 2016x2016, got {text!r}")
    return int(match[1]), int(match[2])


def _absolute_path(text: str) -> str:
    return str(Path(text).absolute())


def _list() -> list[str]:
    from stddaq.cli.ring_space import image_rings_bytes
    from stddaq.config import DetectorConfig
    from stddaq.config.creation import example, example_names
    from stddaq.config.model import parse_json

    rows = [("example", "detector", "image", "writers", "shared memory")]
    for name in example_names():
        config = DetectorConfig.parse(parse_json(example(name).encode()))
        rows.append(
            (
                name,
                config.detector_type,
                _size_text(config),
                f"{config.number_of_writers}",
                bytes_text(image_rings_bytes(config)),
            )
        )
    return table(rows)


def _size_text(config: DetectorConfig) -> str:
    return f"{config.image_pixel_width}x{config.image_pixel_height}, {config.dtype.name}"


def _summary(path: Path, config: DetectorConfig) -> list[str]:
    """Return what was written, whether it fits this machine, and the next commands."""
    from stddaq.cli.ring_space import free_shared_memory, image_rings_bytes
    from stddaq.config.modules import MODULE_SIZES

    needed, free = image_rings_bytes(config), free_shared_memory()
    lines = [
        f"{path}: {config.detector_name}, {config.detector_type}, {_size_text(config)}, "
        f"{config.number_of_writers} writers",
        f"shared memory: {bytes_text(needed)} for the ring buffers, {bytes_text(free)} free here",
    ]
    if needed > free:
        lines.append("  they do not fit this machine")
    if config.detector_type in MODULE_SIZES and config.module_positions:
        lines.append(
            f"modules: {config.n_modules} in a regular grid; compare module_positions with the detector"
        )
    # Services that run as root refuse to start without a limit.
    root = () if config.allowed_roots or os.geteuid() else ("--allowed-root", Path.cwd())
    up = ("stddaq", "up", path, *root, "--source", "simulate", "--rate", 10)
    commands = {"try it": shlex.join(map(str, up))}
    if needed > free:
        commands = _to_make_it_fit(path, config, needed, free, commands["try it"])
    commands["check the server"] = shlex.join(["stddaq", "doctor", str(path)])
    return lines + [f"{what + ':':<17} {command}" for what, command in commands.items()]


def _to_make_it_fit(
    path: Path, config: DetectorConfig, needed: int, free: int, to_try: str
) -> dict[str, str]:
    """Return commands by what they do: with a smaller ring buffer, a larger /dev/shm, or smaller images."""
    from stddaq.cli.ring_space import MAX_SHARE, smaller_image, smaller_ring, to_enlarge

    usable = int(MAX_SHARE * free)
    if size := smaller_ring(config, usable):
        edit = f's/"ram_buffer_gb": {config.ram_buffer_gb}/"ram_buffer_gb": {size}/'
        return {"make it fit": shlex.join(["sed", "-i", edit, str(path)]), "then try it": to_try}
    if free and (command := to_enlarge(os.statvfs("/dev/shm"), needed - free)):
        return {"make it fit": f"sudo {command}", "then try it": to_try}
    if image := smaller_image(config, usable):
        size_text, small = "{}x{}".format(*image), path.with_name(f"{path.stem}-small.json")
        make = ["stddaq", "init", str(small), "--detector", config.detector_type, "--size", size_text]
        make += ["--bits", str(config.bit_depth)]
        return {"try smaller ones": shlex.join(make)}
    return {"try another": shlex.join(["stddaq", "init", "--example", "simulated"])}
