"""Errors that an operator can correct."""

from __future__ import annotations


class OperatorError(Exception):
    """One line that names the problem, and a hint what to do.

    Parameters
    ----------
    exit_code : int
        Of the command line: 1 refused, 2 bad usage, 3 a database can't be reached.
    """

    def __init__(self, message: str, hint: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.hint, self.exit_code = hint, exit_code
