"""`make fuzz`: rounds of tests/fuzz with different examples, until the time is over or a round fails.

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
# Of one test, which is many examples here.
TEST_TIMEOUT_S = 900


def main(argv: Sequence[str] | None = None) -> int:
    """Run rounds until the time is over; the exit code of the round that fails, if any."""
    parser = argparse.ArgumentParser(description="Rounds of the fuzzing tests with other examples each.")
    parser.add_argument("--minutes", type=float, default=10.0, help="begin no round after that (default 10)")
    parser.add_argument("--seed", type=int, help="one round only, with this seed")
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
