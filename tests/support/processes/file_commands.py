"""A process that runs one `stddaq` command after another, for tests with damaged files.

Each line of JSON on standard input holds the arguments of a command. The answer, a line of JSON, holds its
exit code, its output, a traceback if there was one, and the largest memory use of the process so far.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from stddaq.closing import Closing

HANG_S = 60.0
# How long a command may read one file.
READING_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Done:
    """The result of a command; memory in KiB."""

    code: int | None
    out: str
    err: str
    traceback: str
    max_memory: int


class FileCommands(Closing):
    """The process, which is restarted after a command that ended it; a context manager."""

    def __init__(self) -> None:
        self._process = self._start()

    @staticmethod
    def _start() -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, *arguments: object) -> Done:
        """Run `stddaq ARGUMENTS`. Fail when that ends the process, or does not finish."""
        if self._process.poll() is not None:
            self._close()
            self._process = self._start()
        process = self._process
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps([str(argument) for argument in arguments]) + "\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], HANG_S)[0]:
            process.kill()
            process.wait()
            pytest.fail(f"stddaq {arguments}: still running after {HANG_S:g} s")
        answer = process.stdout.readline()
        assert answer, f"stddaq {arguments}: the process ended with {process.wait()}"
        return Done(**json.loads(answer))

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.communicate(timeout=60)
        self._close()

    def _close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()


def carry_out(arguments: list[str]) -> Done:
    """Run a command in this process. The output of child processes is collected as well."""
    from stddaq.cli import main
    from stddaq.files import opening, repair

    opening.READING_TIMEOUT_S = READING_TIMEOUT_S
    repair.UNCHANGED_S = repair.TOUCHED_WITHIN_S = 0.0
    code, trace = None, ""
    with collected(1) as out, collected(2) as err:
        try:
            code = main(arguments)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:  # noqa: BLE001  (the test checks for it)
            trace = traceback.format_exc()
    memory = max(
        resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return Done(code, "".join(out), "".join(err), trace, memory)


@contextlib.contextmanager
def collected(fd: int) -> Iterator[list[str]]:
    """Collect what the block writes to a descriptor. Yield a list that holds it after the block."""
    content: list[str] = []
    with tempfile.TemporaryFile() as file, contextlib.ExitStack() as stack:
        before = os.dup(fd)
        stack.callback(os.close, before)
        sys.stdout.flush()
        os.dup2(file.fileno(), fd)
        try:
            yield content
        finally:
            sys.stdout.flush()
            os.dup2(before, fd)
            file.seek(0)
            content.append(file.read().decode(errors="replace"))


def main() -> None:
    for line in sys.stdin:
        done = carry_out(json.loads(line))
        answer = {name: getattr(done, name) for name in Done.__slots__}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
