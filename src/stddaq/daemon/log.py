"""Log lines of the daemons: `[MM-DD HH:MM:SS.mmm][service][vVERSION][level] message` on standard output.

The messages of user-visible events start with `[event] ` (see `event`). The statistics line may have the line
protocol of InfluxDB instead (see `line_protocol`).

systemd's journal takes the level from `<6>` in front of each line, and removes that.

Logging never blocks: lines that the reader of the output does not take are dropped, and a warning counts them
as soon as it reads again.
"""

from __future__ import annotations

import logging
import sys
import threading
import time

from stddaq import __version__
from stddaq.config.model import StatisticsFormat
from stddaq.daemon.line_protocol import line_protocol
from stddaq.daemon.output import LineOutput
from stddaq.daemon.service_manager import service_manager
from stddaq.text import escaped

_COLOURS = {"debug": "36", "info": "32", "warning": "33", "error": "31", "critical": "1;31"}
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
# The levels of syslog.
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_DROPPED = "%d log lines were dropped because the output was not read"
logger = logging.getLogger("stddaq")
_ready = threading.Event()
# Lines since the start of the process, by level.
n_logged = {"warning": 0, "error": 0, "critical": 0}


class _Formatter(logging.Formatter):
    def __init__(
        self, service: str, statistics_format: StatisticsFormat, *, colour: bool, for_journal: bool
    ) -> None:
        super().__init__()
        self._service, self._colour, self._for_journal = service, colour, for_journal
        self._for_influxdb = statistics_format == "influxdb"

    def format(self, record: logging.LogRecord) -> str:
        text = self._text(record)
        if not self._for_journal:
            return text
        priority = _PRIORITIES.get(record.levelname.lower(), _PRIORITIES["info"])
        return "\n".join(f"<{priority}>{line}" for line in text.split("\n"))

    def _text(self, record: logging.LogRecord) -> str:
        if self._for_influxdb and (pairs := getattr(record, "statistics", None)):
            return line_protocol(self._service, pairs, time.time_ns())
        level = record.levelname.lower()
        if self._colour:
            level = f"\x1b[{_COLOURS.get(level, '0')}m{level}\x1b[0m"
        stamp = time.strftime("%m-%d %H:%M:%S", time.localtime(record.created))
        # One line, even if a path or the text of a peer contains line breaks.
        message = escaped(record.getMessage())
        if record.exc_info and record.exc_info[0] is not None:
            message += "\n" + self.formatException(record.exc_info)
        return f"[{stamp}.{int(record.msecs):03d}][{self._service}][v{__version__}][{level}] {message}"


class _Handler(logging.Handler):
    def __init__(self, output: LineOutput) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        if (level := record.levelname.lower()) in n_logged:
            n_logged[level] += 1
        try:
            self._output.write(self.format(record), self._report)
        except Exception:  # noqa: BLE001  (as all handlers do: an error in logging must not end the service)
            self.handleError(record)

    def _report(self, n_dropped: int) -> str:
        return self.format(
            logger.makeRecord(logger.name, logging.WARNING, "", 0, _DROPPED, (n_dropped,), None)
        )


def set_up(service: str, level: str, statistics_format: StatisticsFormat = "std_daq") -> None:
    """Log to standard output. `level` is `log_level` of the configuration."""
    output = LineOutput(sys.stdout)
    handler = _Handler(output)
    handler.setFormatter(
        _Formatter(
            service,
            statistics_format,
            colour=output.is_terminal,
            for_journal=output.is_journal,
        )
    )
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(_LEVELS.get(level, logging.CRITICAL + 1))


def event(message: str, *args: object) -> None:
    """Log an event that users see: a run starts, a file is closed."""
    logger.info("[event] " + message, *args)


def ready(message: str, *args: object) -> None:
    """Log that the service is ready, which is the end of its start, and notify systemd."""
    _ready.set()
    event("ready: " + message, *args)
    service_manager.ready(message % args)


def is_ready() -> bool:
    """Return whether the service of this process has started."""
    return _ready.is_set()
