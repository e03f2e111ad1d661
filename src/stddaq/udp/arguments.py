"""The command lines of the UDP services, as std_daq (C++) has them: a missing argument is exit code 1."""

from __future__ import annotations

import re
from typing import NoReturn

from stddaq.daemon.arguments import ArgumentParser, IntegerRange, refuse

MISSING_ARGUMENT = 1


class UdpArgumentParser(ArgumentParser):
    """The arguments of a UDP service: a configuration file, and for services of one module its number."""

    def add_module(self) -> None:
        """Add `module_id`, the second positional argument."""
        self.add_argument("module_id", type=IntegerRange(0, 65535), help="number of the module")

    def error(self, message: str) -> NoReturn:
        # The words are argparse's.
        if missing := re.match(r"the following arguments are required: (\w+)", message):
            reason = f"{missing[1]}: 1 argument expected, 0 given (see {self.prog} --help)"
            refuse(self.prog, reason, MISSING_ARGUMENT)
        super().error(message)
