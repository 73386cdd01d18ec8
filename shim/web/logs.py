"""The lines of the shim's log on stderr: how they look, and that they are cheap.

Each request has one, and making it through logging as it comes took a tenth of the time of a request.
"""

from __future__ import annotations

import logging
import time

# None of this is in our lines, and each costs a look-up for each of them (Python's logging HOWTO, "Optimization").
logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
logging._srcfile = None

CONFIG = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {"()": "shim.web.logs.LineFormatter", "fmt": "%(asctime)s %(levelname)s %(message)s"}
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"level": "WARNING", "handlers": ["stderr"]},
    "loggers": {"osgprod": {"level": "INFO"}, "psycopg.pool": {"level": "ERROR"}},
}


class LineFormatter(logging.Formatter):
    """logging's own formatter, which works the time out once a second and not for each line."""

    _second, _text = 0, ""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Returns the local time as logging does by itself."""
        second = int(record.created)
        if second != self._second:
            self._second, self._text = second, time.strftime(self.default_time_format, self.converter(second))
        return f"{self._text},{int(record.msecs):03}"
