"""Errors that an operator can correct."""

from __future__ import annotations

# Exit codes of the command line; docs/operations.md has the rule.
REFUSED, WRONG, UNREACHABLE = 1, 2, 3


class OperatorError(Exception):
    """One line that names the problem, and a hint what to do.

    Parameters
    ----------
    exit_code : int
        Of the command line: REFUSED, WRONG (an argument or an environment variable is wrong), or UNREACHABLE (a
        database can't be reached).
    """

    def __init__(self, message: str, hint: str, exit_code: int = REFUSED) -> None:
        super().__init__(message)
        self.hint, self.exit_code = hint, exit_code
