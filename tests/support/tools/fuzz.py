"""`make fuzz`: rounds of tests/fuzz with new examples, until the time is up or a round fails.

Each round prints the seed that repeats it.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).parents[2] / "fuzz"
# The limit of one test, which runs many examples here.
TEST_TIMEOUT_S = 900


def main(argv: Sequence[str] | None = None) -> int:
    """Run rounds until the time is up. Return the exit code of a round that failed, else 0."""
    parser = argparse.ArgumentParser(description="Run the fuzzing tests in rounds, each with new examples.")
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="start no round after this time (default 10)"
    )
    parser.add_argument("--seed", type=int, help="run one round with this seed")
    args, of_pytest = parser.parse_known_args(argv)
    deadline = time.monotonic() + args.minutes * 60
    while True:
        seed = random.randrange(2**32) if args.seed is None else args.seed
        print(f"--- --seed {seed}", flush=True)
        command = [sys.executable, "-m", "pytest", "-n", "auto", "-q", "--timeout", str(TEST_TIMEOUT_S)]
        command += ["--hypothesis-profile", "fuzz", "--hypothesis-seed", str(seed), str(TESTS), *of_pytest]
        code = subprocess.run(command, check=False).returncode
        if code or args.seed is not None or time.monotonic() > deadline:
            return code


if __name__ == "__main__":
    sys.exit(main())
