"""The log's lines look as logging makes them by itself."""

from __future__ import annotations

import logging

from shim.web.logs import CONFIG, LineFormatter

FORMAT = CONFIG["formatters"]["line"]["fmt"]  # type: ignore[index]


def record(created: float) -> logging.LogRecord:
    said = {"levelname": "INFO", "msg": "said %d", "args": (7,), "created": created}
    return logging.makeLogRecord({**said, "msecs": created % 1 * 1000})


def test_lines_are_those_of_loggings_own_formatter_whatever_the_clock_does() -> None:
    ours, own = LineFormatter(FORMAT), logging.Formatter(FORMAT)
    for created in (1764140000.0, 1764140000.9999, 1764140001.25, 1764140000.5, 0.004, 1764140001.06):
        line = ours.format(record(created))
        assert line == own.format(record(created))
        assert line.endswith(" INFO said 7")
