"""The programs of a real grid site. Root on Debian installs them; else tests are skipped, and name them."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

# Programs and modules of programs, and Debian's packages that have them.
PARTS = {
    "apache": (
        ("/usr/sbin/apache2", "/usr/lib/apache2/modules/mod_wsgi.so", "python3-venv", "openssl"),
        ("apache2-bin", "libapache2-mod-wsgi-py3", "python3-venv", "openssl"),
    ),
    "xrootd": (
        ("xrootd", "xrdcp", "xrdadler32", "/usr/lib/python3/dist-packages/XRootD", "xrdscitokens", "openssl"),
        (
            *("xrootd-server", "xrootd-client", "xrootd-plugins", "python3-xrootd"),
            *("xrootd-scitokens-plugins", "openssl"),
        ),
    ),
    "etcd": (("etcd",), ("etcd-server",)),
    "pgbouncer": (("pgbouncer",), ("pgbouncer",)),
    "haproxy": (("haproxy", "openssl"), ("haproxy", "openssl")),
    "nginx": (("nginx", "openssl"), ("nginx-light", "openssl")),
    "debootstrap": (("debootstrap",), ("debootstrap",)),
    "plpgsql_check": (("plpgsql_check",), ("postgresql-15-plpgsql-check",)),
}
# Where to look for files that are not programs.
FILES = {
    "plpgsql_check": "/usr/lib/postgresql/*/lib/plpgsql_check.so",
    "xrdscitokens": "/usr/lib/*/libXrdAccSciTokens-5.so",
    "python3-venv": "/usr/lib/python3*/ensurepip",
}
SEARCH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
TIMEOUT_S = 400


def need(part: str) -> None:
    """Makes sure that the programs of a part are installed; else skips the test and names the missing ones."""
    reason = why_missing(part)
    if reason:
        pytest.skip(reason)


@functools.cache
def why_missing(part: str) -> str:
    """Installs a part if possible; returns why it can't be used, empty = it is installed."""
    programs, packages = PARTS[part]
    missing = [program for program in programs if not _is_there(program)]
    if not missing:
        return ""
    what = f"{', '.join(missing)} missing: install Debian's {' '.join(packages)}"
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return what
    for command in (["update", "-q"], ["install", "-q", "-y", "--no-install-recommends", *packages]):
        done = apt(command)
        if done:
            return f"{what}; apt-get {command[0]} was refused: {done}"
    missing = [program for program in programs if not _is_there(program)]
    return f"{', '.join(missing)} missing although installed" if missing else ""


def apt(arguments: list[str], prefix: tuple[str, ...] = ()) -> str:
    """Runs apt-get; returns its last words when it failed."""
    try:
        done = subprocess.run(
            [*prefix, "apt-get", *arguments],
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return f"no end after {TIMEOUT_S} s"
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no reason given"])[-1]


def _is_there(program: str) -> bool:
    if program in FILES:
        return any(Path("/").glob(FILES[program].lstrip("/")))
    return (
        Path(program).exists() if program.startswith("/") else shutil.which(program, path=SEARCH) is not None
    )
