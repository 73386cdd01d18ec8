"""File systems of a few megabytes, for tests that fill them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_file_system(options: str) -> Iterator[Path]:
    """A tmpfs at a new folder for the time of the block; skips the test where mounting is not allowed: it takes root.

    Parameters
    ----------
    options
        Of mount, like ``size=300k,mode=1777``.
    """
    folder = Path(tempfile.mkdtemp(prefix="osgprod-disk-", dir="/tmp"))
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    mounted = subprocess.run(command, capture_output=True)
    if mounted.returncode != 0:
        folder.rmdir()
        pytest.skip(f"no small file system: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


def fill(path: Path) -> None:
    """Writes a file until nothing more fits on its file system."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            with contextlib.suppress(OSError):
                while True:
                    file.write(os.urandom(size))
