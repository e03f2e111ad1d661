"""Run a console script of stddaq as another user: `as_user.py UID SCRIPT [ARGUMENT ...]`.

Modules are imported before the change of user, because the other user may not have access to the checkout,
the environment or Python itself.
"""

import codecs
import os
import sys
from importlib.metadata import distribution


def main() -> int:
    """Become the user permanently, without the caller's groups, and run the script."""
    uid, script = int(sys.argv[1]), sys.argv[2]
    carry_out = distribution("stddaq").entry_points.select(group="console_scripts")[script].load()
    # Codecs are imported on first use: for configurations and for addresses.
    for codec in ("utf-8-sig", "idna"):
        codecs.lookup(codec)
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    sys.argv = sys.argv[2:]
    return carry_out()


if __name__ == "__main__":
    sys.exit(main())
