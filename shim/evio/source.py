"""Where the bytes of a file come from: a file system."""

from __future__ import annotations

import os
from typing import Protocol

from shim.evio.errors import EvioError


class Source(Protocol):
    """Bytes that can be read at any offset."""

    name: str  # for messages
    path: str  # absolute, as the database keeps it
    size: int  # [bytes]

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes at `offset`, or fewer at the end of the file.

        Raises
        ------
        EvioError
            They can't be read.
        """

    def close(self) -> None:
        """Give the connection or the descriptor back."""


class LocalFile:
    """A file of a mounted file system."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        # A link keeps its name: workers know the file by that name.
        self.name = self.path = os.path.abspath(path)  # noqa: PTH100
        try:
            # Without O_NONBLOCK a pipe of that name would block.
            self.descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise EvioError(f"{self.name}: {error.strerror}") from error
        self.size = os.fstat(self.descriptor).st_size

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes at `offset`, or fewer at the end of the file."""
        try:
            return os.pread(self.descriptor, length, offset)
        except OSError as error:
            raise EvioError(f"{self.name}: {error.strerror}") from error

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.descriptor)
