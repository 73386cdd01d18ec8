"""The log of the shim, on the standard error output: one line a request, at little cost.

Nothing here changes how other libraries of the process log.
"""

from __future__ import annotations

import logging
import time

log = logging.getLogger("osgprod")

FORMAT = "%(asctime)s %(levelname)s %(message)s"
# Only these loggers are configured: under mod_wsgi the process may have others.
CONFIG = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"()": "shim.web.logs.LineFormatter", "fmt": FORMAT}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {
        "osgprod": {"level": "INFO", "handlers": ["stderr"], "propagate": False},
        "uvicorn": {"level": "WARNING", "handlers": ["stderr"], "propagate": False},
        "psycopg": {"level": "WARNING", "handlers": ["stderr"], "propagate": False},
        "psycopg.pool": {"level": "ERROR"},
    },
}


# What all records of info() have in common.
_INFO = logging.LogRecord(log.name, logging.INFO, "", 0, "", None, None).__dict__


def info(message: str) -> None:
    """Log a line at level INFO, without finding out what no line shows (its place, thread and process).

    That would take most of the time.

    Parameters
    ----------
    message : str
        The line.
    """
    if log.isEnabledFor(logging.INFO):
        now = time.time()
        record = logging.LogRecord.__new__(logging.LogRecord)
        record.__dict__ |= _INFO
        record.msg, record.created, record.msecs = message, now, now % 1 * 1000
        log.handle(record)


def hide_queries() -> None:
    """Take queries, which may hold a magic, out of the access log of uvicorn, if somebody switches that on."""
    logging.getLogger("uvicorn.access").addFilter(_without_query)


def _without_query(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple):
        record.args = tuple(a.partition("?")[0] if isinstance(a, str) else a for a in record.args)
    return True


class LineFormatter(logging.Formatter):
    """logging's own formatter for lines in FORMAT, but it formats the time once a second and not for each line."""

    _second, _text = 0, ""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record.

        Parameters
        ----------
        record : logging.LogRecord
            What is logged.
        """
        if record.exc_info or record.stack_info:
            return super().format(record)
        return f"{self.formatTime(record)} {record.levelname} {record.getMessage()}"

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Return the local time of a record, in logging's own form.

        Parameters
        ----------
        record : logging.LogRecord
            What is logged.
        datefmt : str, optional
            Ignored.
        """
        second = int(record.created)
        if second != self._second:
            self._second, self._text = second, time.strftime(self.default_time_format, self.converter(second))
        return f"{self._text},{int(record.msecs):03}"
