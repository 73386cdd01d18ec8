"""Numbers with their nouns, for messages and pages."""

from __future__ import annotations


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
