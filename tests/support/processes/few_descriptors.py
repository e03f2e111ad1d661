"""Run a console script that may open few files: `few_descriptors.py LIMIT SCRIPT [ARGUMENT ...]`."""

from __future__ import annotations

import resource
import sys
from importlib.metadata import distribution


def main() -> int:
    limit = int(sys.argv[1])
    run = distribution("stddaq").entry_points.select(group="console_scripts")[sys.argv[2]].load()
    del sys.argv[:2]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    return run()


if __name__ == "__main__":
    sys.exit(main())
