"""Execute the code blocks of a page as a reader does."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from support.data.code_blocks import ROOT, Block, blocks_of
from support.processes.deployment import Deployment, Service, console_script

END_TIMEOUT_S = 60.0


class PageSession:
    """The blocks of a page; a context manager, which fails at its end if one was left out.

    A test names a block by a part of its text.

    Attributes:
        places: what a reader inserts: text of the page, and what replaces it.
    """

    def __init__(
        self, page: str, deployment: Deployment | None = None, directory: Path | None = None
    ) -> None:
        """Commands run in the environment of `deployment`, in `directory`, which becomes a checkout.

        There `services/config/simulated.json` is the configuration of the deployment.
        """
        self.places: Mapping[str, str] = {}
        self._deployment, self._directory = deployment, directory
        self._left = [block for block in blocks_of(page) if block.is_executed]
        if deployment is not None and directory is not None:
            deployment.env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            _make_checkout(directory, deployment.config_path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert kind or not self._left, f"not executed: {', '.join(map(str, self._left))}"

    def take(self, part: str) -> str:
        """Return the next block with this part, which the test executes."""
        return self._filled(self._next(part))

    def python(self, part: str, names: dict[str, Any]) -> dict[str, Any]:
        """Execute the next Python block with this part, with and into `names`, which are returned."""
        block = self._next(part)
        assert block.info == "python", block
        exec(compile(self._filled(block), str(block), "exec"), names)
        return names

    def commands(self, part: str) -> list[list[str]]:
        """Return the words of each command of the next block with this part."""
        lines = self.take(part).splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]

    def run(self, part: str, codes: tuple[int, ...] = (0,)) -> str:
        """Run the next shell block with this part to its end. Return its output."""
        return self._shell(self.take(part), codes)

    def start(self, part: str, ready: str | None) -> Service:
        """Run the next shell block with this part, whose last command does not end. Wait for its line."""
        *before, last = self.take(part).splitlines()
        if before:
            self._shell("\n".join(before), (0,))
        return self.start_command(shlex.split(last, comments=True), ready)

    def start_command(self, words: list[str], ready: str | None) -> Service:
        """Start a command in a terminal of its own."""
        assert self._deployment is not None
        return self._deployment.run(console_script(words[0]), *words[1:], ready=ready, cwd=self._directory)

    def _shell(self, text: str, codes: tuple[int, ...]) -> str:
        assert self._deployment is not None
        shell = self._deployment.run("bash", "-euc", text, cwd=self._directory)
        assert shell.wait(END_TIMEOUT_S) in codes, shell.output
        return "\n".join(shell.stdout)

    def _next(self, part: str) -> Block:
        block = next((block for block in self._left if part in block.text), None)
        assert block is not None, f"{part!r}: in no block that is left: {', '.join(map(str, self._left))}"
        self._left.remove(block)
        return block

    def _filled(self, block: Block) -> str:
        text = block.text.replace("\\\n", "")
        if not self.places:
            return text
        # At once: a path or port that is inserted may contain what else is replaced.
        return re.sub("|".join(map(re.escape, self.places)), lambda found: self.places[found[0]], text)


def _make_checkout(directory: Path, config: Path) -> None:
    (directory / "services" / "config").mkdir(parents=True)
    shutil.copy(config, directory / "services" / "config" / "simulated.json")
    for name, target in {"examples": ROOT / "examples", ".venv": Path(sys.prefix)}.items():
        (directory / name).symlink_to(target)
