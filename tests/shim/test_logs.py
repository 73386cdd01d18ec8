"""The log's lines look as logging makes them by itself."""

from __future__ import annotations

import logging
import sys

import pytest

from shim.web.logs import CONFIG, LineFormatter, info, log

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


def test_line_of_a_request_can_be_formatted_by_every_handler(capsys: pytest.CaptureFixture[str]) -> None:
    """Another program in the process may add handlers, which show more fields than the shim's."""
    names = [name for name in vars(logging.makeLogRecord({})) if name not in ("msg", "args")]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(" ".join(f"%({name})s" for name in names) + " %(message)s"))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        info("100 % of it")
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    line = capsys.readouterr().err
    assert line.startswith("osgprod INFO 20 ")
    assert line.endswith(" 100 % of it\n")
