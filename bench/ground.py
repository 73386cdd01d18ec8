"""The ground that the measures stand on: a durable PostgreSQL of our own, and databases filled for them."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from shim.database import call, connect
from shim.local.embedded import Server
from shim.migrate import migrate

HERE = Path(__file__).resolve().parent
# The server's own defaults are durable (fsync, synchronous_commit, full_page_writes on). Memory as on a machine that
# the database has for itself; no checkpoint by volume in the middle of one round and not of the next.
SETTINGS = {
    "shared_buffers": "2GB",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
    "max_connections": "120",
}
# The bench need not survive a crash while it fills the tables: it would make a new folder.
FILLING = {**SETTINGS, "fsync": "off", "wal_level": "minimal", "max_wal_senders": "0", "autovacuum": "off"}
WORKER_ROLE = "-c role=osgprod_worker"
MAGIC = "m"
PENDING_RUN = 700_000  # of the first file of the large tables that stays pending


class BenchError(Exception):
    """Something that this machine lacks for a benchmark; one line and a hint."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class SkipMeasure(BenchError):
    """Something that one measure lacks: the others go on without it."""


@dataclass(frozen=True)
class Size:
    """How large a run is.

    files      files in the large tables; half of them complete, the others pending
    finished   finished slices in the large tables, a multiple of files / 2
    few        finished slices in the small tables
    rounds     rounds of each side;  seconds  of each round
    pairs      that are done while a snapshot is held
    requests   between the two looks at the shim's memory
    scan_files, scan_blocks  of the scan;  slow_blocks  of each file where a read takes long
    is_small   for the tests: the numbers mean nothing
    """

    files: int = 100_000
    finished: int = 10_000_000
    few: int = 1_000
    rounds: int = 11  # short ones, since the machine is never the same for long
    seconds: float = 2.5
    pairs: int = 200_000
    requests: int = 100_000
    scan_files: int = 64
    scan_blocks: int = 2_000
    slow_blocks: int = 60
    is_small: bool = False


SMALL = Size(
    files=40,
    finished=2_000,
    few=100,
    rounds=1,
    seconds=0.3,
    pairs=200,
    requests=200,
    scan_files=8,
    scan_blocks=100,
    slow_blocks=20,
    is_small=True,
)


class Ground:
    """The server with its databases: few() and many(), which differ in the number of rows, and bare().

    bare() is as few(), but its functions apply no rule (bench/bare.sql).

    Each has the projects p (1,000 open files of 1,000 slices), ten, one and thousand, named by their open files.
    """

    def __init__(self, server: Server, folder: Path, size: Size) -> None:
        self.size = size
        self.folder = folder
        self._server = server
        self._clusters = itertools.count(1_000_000_000, 1000)

    def few(self) -> str:
        """DSN, as superuser, of the database with few finished slices."""
        return self._dsn("few")

    def many(self) -> str:
        """DSN, as superuser, of the database with many finished slices and files."""
        return self._dsn("many")

    def bare(self) -> str:
        """DSN, as superuser, of the database with few finished slices whose functions apply no rule."""
        return self._dsn("bare")

    def next_cluster(self) -> int:
        """The first of a thousand numbers of job clusters that nobody has used."""
        return next(self._clusters)

    def check(self) -> None:
        """Asks all databases whether anything that was done in them was wrong.

        Raises
        ------
        BenchError
        """
        for dsn in (self.few(), self.many(), self.bare()):
            with connect(dsn) as database:
                for row in call(database, "progress"):
                    if call(database, "verify", project=row["project"]):
                        raise BenchError(
                            f"verify finds faults in project {row['project']}", "see the server's log"
                        )

    def checkpoint(self) -> None:
        """Writes dirty pages, so that no round pays for the one before."""
        with connect(self._server.dsn) as connection:
            connection.execute("CHECKPOINT")

    def new_database(self, name: str) -> str:
        """Make an empty database on the same server; return its DSN, as superuser."""
        with connect(self._server.dsn) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name}".encode())
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self._dsn(name)

    def _dsn(self, name: str) -> str:
        return self._server.dsn.replace("dbname=postgres", f"dbname={name}")


def work_script_digest() -> str:
    """SHA-256 of the work script, which the shim sends with each checkout, and which the database records."""
    return hashlib.sha256((HERE.parent / "worker" / "osgprod_work.bash").read_bytes()).hexdigest()


def as_worker(dsn: str) -> str:
    """The DSN with the rights of a shim."""
    return f"{dsn} options='{WORKER_ROLE}'"


@contextlib.contextmanager
def ground(size: Size, say: Callable[[str], None]) -> Iterator[Ground]:
    """Makes server and databases on disk, and removes them at the end.

    Parameters
    ----------
    size : Size
        How much is filled in.
    say : Callable[[str], None]
        Is called with one line for each thing that takes long.

    Raises
    ------
    BenchError
        Too little room.
    """
    parent = Path(os.environ.get("TMPDIR", "/tmp"))
    needed = 2_000 * size.finished + (4 << 30)
    if not size.is_small and shutil.disk_usage(parent).free < needed:
        raise BenchError(
            f"{parent} has less than {needed >> 30} GiB free", "name a folder on a larger disk with TMPDIR"
        )
    folder = Path(tempfile.mkdtemp(prefix="osgprod-bench-", dir=parent))
    folder.chmod(0o755)
    try:
        filling = Server(folder / "server", FILLING)
        filling.start()
        try:
            _fill(filling.dsn, size, say)
        finally:
            filling.stop()
        os.sync()
        durable = Server(folder / "server", SETTINGS)
        durable.start()
        try:
            yield Ground(durable, folder, size)
        finally:
            durable.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fill(dsn: str, size: Size, say: Callable[[str], None]) -> None:
    started = time.monotonic()
    with connect(dsn) as connection:
        connection.execute("CREATE DATABASE few")
        few = dsn.replace("dbname=postgres", "dbname=few")
        migrate(few, say=lambda line: None)
        with connect(few) as database:
            _open_files(database, size)
        connection.execute("CREATE DATABASE many TEMPLATE few STRATEGY file_copy")
        many = dsn.replace("dbname=postgres", "dbname=many")
        say(f"making {size.finished:,} finished slices in {size.files:,} files (for some minutes)")
        _finish(few, size.few // 100 or 1, size.few // (size.few // 100 or 1), size.few // 100 or 1)
        connection.execute("CREATE DATABASE bare TEMPLATE few STRATEGY file_copy")
        with connect(dsn.replace("dbname=postgres", "dbname=bare")) as database:
            database.execute((HERE / "bare.sql").read_text())
        _finish(many, size.files, size.finished // (size.files // 2), size.files // 2)
    say(f"tables filled in {time.monotonic() - started:.0f} s")


def _open_files(database: psycopg.Connection[dict[str, Any]], size: Size) -> None:
    """The projects that the jobs work for, each with files of separate runs."""
    database.execute((HERE / "functions.sql").read_text())
    scale = 100 if size.is_small else 1
    for number, (name, files, blocks) in enumerate(
        [
            ("p", 1_000 // scale, 10_000),
            ("ten", 10, 100_000 // scale),
            ("one", 1, 400_000 // scale),
            ("thousand", 1_000 // scale, 400),
        ]
    ):
        call(
            database,
            "add_project",
            project=name,
            subnet_pattern="127.0.0.0/8",
            workscript="osgprod_work.bash",
            xrootd_prefix="root://xrootd.example.org/",
            maxblockspercore=10 if name == "p" else 1,
            magic=MAGIC,
        )
        call(database, "set_project", project=name, settings='{"probe_jobs": 0}')
        # As if a job had got it before: the first one to bring it writes that down, and waits for no file then.
        database.execute(
            "UPDATE osgprod_data.projects SET tested_scripts = ARRAY[%s]", [work_script_digest()[:16]]
        )
        run = 500_000 + 1_000 * number  # behind the runs of the finished files
        database.execute("SELECT bench.add_files(%s, %s, %s)", [run, files, blocks])
        call(database, "load_slices", project=name, runs=list(range(run, run + 1_000)))


def _finish(dsn: str, files: int, slices: int, finished: int) -> None:
    """Adds files to project p, the first of which are finished.

    The others come behind the open files, so that jobs in both databases get slices of equally long files.
    """
    with connect(dsn) as database:
        for run, number in ((1, finished), (PENDING_RUN, files - finished)):
            if number:
                database.execute("SELECT bench.add_files(%s, %s, %s)", [run, number, slices])
                call(database, "load_slices", project="p", runs=list(range(run, run + number // 100 + 1)))

    def add(what: str) -> None:
        with connect(dsn) as database:
            database.execute("SELECT bench.add_finished('p', %s, %s)", [what, finished])

    with ThreadPoolExecutor(2) as two:
        list(two.map(add, ("slices", "attempts", "reports", "files")))
        # Frozen and counted, as tables of this size have long been when somebody works on them.
        list(
            two.map(
                lambda table: _vacuum(dsn, table),
                ("slices", "attempts", "reports", "rawdata", "loaded_files"),
            )
        )


def _vacuum(dsn: str, table: str) -> None:
    with connect(dsn) as database:
        database.execute(f"VACUUM (FREEZE, ANALYZE) osgprod_data.{table}".encode())
