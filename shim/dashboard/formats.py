"""How pages write numbers, times, ages and sizes."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from markupsafe import Markup, escape

# A command ends with its sentence, or where punctuation follows its last word.
COMMAND = re.compile(r"\bosgprod(?: [\w./=@:%+\-\[\]]*[\w/=%+\-\]])+")


def number(value: float | None, digits: int = 0) -> str:
    """Return a number with thousands separated, and so many digits behind the point."""
    return "–" if value is None else f"{value:,.{digits}f}"


def time(value: datetime | None) -> str:
    """Return a time in UTC, to the second."""
    return "–" if value is None else f"{value.astimezone(UTC):%d %b %Y %H:%M:%S}"


def minute(value: datetime | None) -> str:
    """Return a time in UTC, to the minute, as short as a column of a table wants it."""
    return "–" if value is None else f"{value.astimezone(UTC):%d\N{NO-BREAK SPACE}%b %H:%M}"


def day(value: datetime) -> str:
    """Return a time in UTC with its weekday, to the minute."""
    return f"{value.astimezone(UTC):%a %d %b %Y %H:%M}"


def age(seconds: float | None) -> str:
    """Return a time span in its two largest units."""
    if seconds is None:
        return "–"
    sign, seconds = ("-" if seconds < 0 else ""), abs(round(seconds))
    for unit, name, more in ((86400, "d", "h"), (3600, "h", "min"), (60, "min", "s")):
        if seconds >= unit:
            smaller = {"h": 3600, "min": 60, "s": 1}[more]
            return f"{sign}{seconds // unit} {name} {seconds % unit // smaller:02} {more}"
    return f"{sign}{seconds} s"


def size(value: float | None) -> str:
    """Return a number of bytes in a unit that suits it."""
    if value is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


def file_name(path: str) -> Markup:
    """Return a path's last part as HTML that may be broken behind each underscore."""
    return Markup("_<wbr>").join(escape(part) for part in path.rpartition("/")[2].split("_"))


def short(value: float | None) -> str:
    """Return a count in a unit that suits it: 12,345 as it is, then k, M, G."""
    if value is None:
        return "–"
    for unit in ("", " k", " M", " G"):
        if abs(value) < (100_000 if unit == "" else 1000):
            return f"{value:,.0f}" if unit == "" else f"{value:,.1f}{unit}"
        value /= 1000
    return f"{value:,.1f} T"


def commands(text: str) -> list[tuple[bool, str]]:
    """Return the pieces of an advice, in order: whether it is a command, and its text.

    Parameters
    ----------
    text : str
        As osgprod.health and osgprod.find write it: no prose follows a command without punctuation.
    """
    pieces, at = [], 0
    for match in COMMAND.finditer(text):
        if match.start() > at:
            pieces.append((False, text[at : match.start()]))
        pieces.append((True, match[0]))
        at = match.end()
    if at < len(text):
        pieces.append((False, text[at:]))
    return pieces
