"""Data of a server with migrated databases, made once for all workers of a run: initdb and migrations cost a second."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import psycopg

from shim.local.embedded import NOT_DURABLE, Server
from shim.migrate import migrate
from tests.support import server_folder

FOLDER = "PYTEST_PREPARED"  # the variable that names it to the workers
MIGRATED = "migrated"


def begin() -> None:
    """Makes the folder, for a process whose workers share it."""
    folder = server_folder("prepared")
    folder.chmod(0o755)  # the server's user walks through it
    os.environ[FOLDER] = str(folder)


def end() -> None:
    """Removes it; a repeated call does nothing."""
    if folder := os.environ.pop(FOLDER, ""):
        shutil.rmtree(folder, ignore_errors=True)


def put_data(folder: Path) -> None:
    """Gives the server of a folder its data: of a new server whose databases postgres and MIGRATED are migrated.

    Parameters
    ----------
    folder
        That of the Server, which is not started yet.
    """
    shared = Path(os.environ[FOLDER])
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "made").exists():
            shutil.rmtree(shared / "server", ignore_errors=True)  # of a worker that was killed
            _make(shared / "server")
            (shared / "made").touch()
    folder.mkdir(exist_ok=True)
    subprocess.run(["cp", "-a", str(shared / "server" / "data"), str(folder)], check=True)


def _make(folder: Path) -> None:
    server = Server(folder, NOT_DURABLE)
    server.start()
    try:
        migrate(server.dsn, say=lambda line: None)
        template = psycopg.conninfo.make_conninfo(server.dsn, dbname="template1")
        with psycopg.connect(template, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {MIGRATED} TEMPLATE postgres")
    finally:
        server.stop()
