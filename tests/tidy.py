"""A pytest plugin (``-p tests.tidy``): the run fails when its tests leave anything behind.

``make test`` and ``make test-slow`` run with it. The run has separate temporary and home folders. At its end both
must be empty, and there must be no new file in the checkout, no osgprod folder in /dev/shm that nobody uses, and no
process that the tests have started. (The empty folder of a killed server's sockets, in /tmp, is removed by its next
start.) The names of these folders have the number of the run's process: what a killed run has left is removed by the
next one, and no other run answers for it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
CACHES = {
    "__pycache__",
    ".venv",
    ".ha",
    ".git",
    ".pytest_cache",
    ".hypothesis",
    ".mypy_cache",
    ".ruff_cache",
    ".coverage",
}
MARK = "PYTEST_TIDY_RUN"
OWNED = re.compile(r"osgprod-(\d+)-")  # see server_folder in tests/support.py
MEMORY = Path("/dev/shm")
PATIENCE_S = float(os.environ.get("PYTEST_TIDY_S", "60"))  # until the kernel has ended the killed processes


class Tidy:
    def __init__(self) -> None:
        self._began = time.time()
        remove_abandoned(MEMORY, Path(tempfile.gettempdir()))
        self._folder = Path(tempfile.mkdtemp(prefix=f"osgprod-{os.getpid()}-run-"))
        self._folder.chmod(0o755)  # the server's user walks through it
        (self._folder / "home").mkdir()
        (self._folder / "tmp").mkdir(mode=0o777)
        (self._folder / "tmp").chmod(0o1777)
        settings = os.environ.get(
            "GIT_CONFIG_GLOBAL", str(Path.home() / ".gitconfig")
        )  # whose checkouts git trusts
        os.environ |= {
            "GIT_CONFIG_GLOBAL": settings if Path(settings).exists() else os.devnull,
            "TMPDIR": str(self._folder / "tmp"),
            "HOME": str(self._folder / "home"),
            MARK: str(self._folder),
            "PYTEST_TIDY_PID": str(os.getpid()),
        }
        for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
            os.environ.pop(name, None)
        tempfile.tempdir = None
        self._before = in_checkout()

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        left = soon(self._left)
        if left:
            print("\nThe tests have left behind:", *left, sep="\n  ")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        shutil.rmtree(self._folder, ignore_errors=True)

    def _left(self) -> list[str]:
        own = (self._folder / "home", self._folder / "tmp")
        files = [
            str(path) for folder in own for path in folder.iterdir() if not path.name.startswith("pytest-of-")
        ]
        return files + sorted(in_checkout() - self._before) + unused(self._began) + self._processes()

    def _processes(self) -> list[str]:
        found = []
        mark = f"{MARK}={self._folder}".encode()
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                is_ours = entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0")
                if is_ours and int(entry.name) != os.getpid():
                    found.append(f"process {entry.name}: {command(entry)}")
        return found


def in_checkout() -> set[str]:
    """All files of the checkout, ignored ones included, but for caches."""
    found = set()
    for folder, folders, names in os.walk(CHECKOUT):
        folders[:] = [name for name in folders if name not in CACHES]  # walks on in these
        found |= {str(Path(folder) / name) for name in names}
    return found


def unused(since: float) -> list[str]:
    """New folders in memory that no process uses: servers' data, of this run or of a program that names no run."""
    found = []
    for path in MEMORY.glob("osgprod-*"):
        with contextlib.suppress(OSError):
            if owner(path) in (None, os.getpid()) and path.stat().st_mtime >= since and not is_used(path):
                found.append(str(path))
    return found


def remove_abandoned(*places: Path) -> None:
    """Removes the folders of runs whose process is gone."""
    for path in (path for place in places for path in place.glob("osgprod-*")):
        pid = owner(path)
        if pid and not Path(f"/proc/{pid}").exists() and not is_used(path):
            shutil.rmtree(path, ignore_errors=True)


def owner(path: Path) -> int | None:
    """The number of the process whose run made a folder, by its name."""
    found = OWNED.match(path.name)
    return int(found[1]) if found else None


def is_used(path: Path) -> bool:
    """Does a process have the folder in its command line?"""
    return any(str(path) in command(entry) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def command(entry: Path) -> str:
    try:
        return (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def soon(left: Callable[[], list[str]]) -> list[str]:
    """What is left all the time for a while; another run of tests makes and removes folders of the same names."""
    end, found = time.monotonic() + PATIENCE_S, left()
    while found and time.monotonic() < end:
        time.sleep(0.5)
        now = left()
        found = [path for path in found if path in now]
    return found


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # xdist's workers inherit the folders
        config.pluginmanager.register(Tidy(), "tidy")
