"""Numbers with their nouns, for messages and pages; texts for CSV."""

from __future__ import annotations

import re

_FORMULA = re.compile(r"[=+\-@\t\r].")


def noun(number: float | None, one: str, more: str | None = None) -> str:
    """Return a noun as it follows a number.

    Parameters
    ----------
    number : number or None
        How many.
    one, more : str
        The words behind 1, and behind any other number; ``more`` None: ``one`` with an s.
    """
    return one if number == 1 else more or f"{one}s"


def counted(number: float, one: str, more: str | None = None) -> str:
    """Return a number with its noun, and with the verb where that follows: 1 file, 2 files; see noun()."""
    return f"{number} {noun(number, one, more)}"


def for_csv(value: object) -> object:
    """Return a value for CSV.

    A job may have sent the text: with a quote in front of what begins as a formula, no spreadsheet computes it.

    Parameters
    ----------
    value : object
        As psycopg returned it.
    """
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value
