"""The error of this package."""

from __future__ import annotations


class EvioError(Exception):
    """A file that can't be sliced: one line that names the file, the byte, and the fault there."""
