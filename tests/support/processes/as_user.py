"""Run a console script of stddaq as another user: `as_user.py UID SCRIPT [ARGUMENT ...]`.

Modules are imported as the user who calls: the checkout, the environment or Python itself may be closed
to others.
"""

import codecs
import os
import sys
from importlib.metadata import distribution


def main() -> int:
    """Become the user for good, without any group of the caller, and carry out the script."""
    uid, script = int(sys.argv[1]), sys.argv[2]
    carry_out = distribution("stddaq").entry_points.select(group="console_scripts")[script].load()
    codecs.lookup("utf-8-sig")  # Of configurations; codecs are otherwise imported with the first use.
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    sys.argv = sys.argv[2:]
    return carry_out()


if __name__ == "__main__":
    sys.exit(main())
