"""The command lines of the services of the image buffer, and their first connection to the database."""

from __future__ import annotations

import argparse
from pathlib import Path

from stddaq.client.buffer_files import camera_directory
from stddaq.client.buffer_index import BufferIndex, ImageBufferError
from stddaq.daemon.arguments import ArgumentParser, existing_directory
from stddaq.errors import ConfigError


class BufferArgumentParser(ArgumentParser):
    """A parser with `--root_dir` and `--db_address`."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog, description)
        self.add_config()
        self.add_argument(
            "--root_dir",
            type=existing_directory,
            required=True,
            metavar="DIR",
            help="directory of the buffer, which contains that of the camera, or that of the camera itself",
        )
        self.add_argument(
            "--db_address",
            required=True,
            metavar="URL",
            help="the Redis database: tcp://HOST:PORT or redis://[user:password@]HOST:PORT[/db]",
        )


def open_index(args: argparse.Namespace, camera: str) -> BufferIndex:
    """Return the database, which has answered. Raise `ConfigError`."""
    try:
        index = BufferIndex(args.db_address, camera)
        index.check()
    except ImageBufferError as error:
        raise ConfigError(f"--db_address: {error}") from error
    return index


def directory_of(args: argparse.Namespace, camera: str) -> Path:
    """Return the directory of the camera's files. Raise `ConfigError` if it cannot be read."""
    try:
        return camera_directory(args.root_dir, camera)
    except OSError as error:
        raise ConfigError(f"--root_dir {args.root_dir}: cannot be read: {error.strerror}") from error
