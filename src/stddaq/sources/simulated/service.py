"""`stddaq simulate`: publishes simulated images as a detector would."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from stddaq.config import DetectorConfig
from stddaq.daemon.arguments import ArgumentParser, IntegerRange
from stddaq.daemon.main import StopRequest, run
from stddaq.sources.image_sink import ImageProvider
from stddaq.sources.loop import run_source
from stddaq.sources.options import add_source_options, source_options
from stddaq.sources.simulated.scenes import SCENE_KINDS, Scene


class SceneProvider(ImageProvider):
    """The images of a scene. Their number is not limited."""

    length: int | None = None

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def fill(self, slot: np.ndarray, position: int, image_id: int) -> None:
        del position  # The pixels depend on the id alone.
        self._scene.write(image_id, slot)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the simulator. Return the exit code."""
    parser = ArgumentParser("stddaq simulate", "Publish simulated images of a detector.")
    parser.add_config()
    add_scene_options(parser)
    add_source_options(parser)
    return run(parser, _serve, argv)


def add_scene_options(parser: ArgumentParser) -> None:
    """Add the options of a scene."""
    parser.add_argument(
        "--scene", choices=SCENE_KINDS, default="rings", help="simulated scene (default: rings)"
    )
    parser.add_argument(
        "--seed", type=IntegerRange(0, 2**63), default=0, metavar="N", help="seed of the noise (default: 0)"
    )


def _serve(config: DetectorConfig, args: argparse.Namespace, stop: StopRequest) -> None:
    options = source_options(config, args)
    scene = Scene.of(config, args.scene, args.seed)
    run_source("simulate", config, SceneProvider(scene), options, stop)
