"""What can go wrong that a person can put right."""

from __future__ import annotations


class OperatorError(Exception):
    """One line that says what is wrong, and a hint of what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint
