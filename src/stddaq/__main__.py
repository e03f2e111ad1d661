"""`python -m stddaq` is the command `stddaq`."""

import sys

from stddaq.cli import main

if __name__ == "__main__":
    sys.exit(main())
