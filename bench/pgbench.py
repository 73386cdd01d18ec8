"""The measures at SQL, with pgbench as the clients."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg

from bench.ground import HERE, WORKER_ROLE, BenchError, Ground, Size, work_script_digest
from bench.rounds import Figure, in_turn
from shim.database import connect
from shim.local.embedded import find_programs


def find_pgbench() -> str:
    """Returns where pgbench is: beside the server's programs, on the path, or as Debian has it.

    Raises
    ------
    BenchError
    """
    candidates = [find_programs() / "pgbench", *sorted(Path("/usr/lib/postgresql").glob("*/bin/pgbench"))]
    found = next((str(path) for path in candidates if path.exists()), None) or shutil.which("pgbench")
    if found is None:
        raise BenchError("pgbench is missing", "apt-get install postgresql-client-15 brings it")
    return found


def pgbench(
    size: Size,
    dsn: str,
    script: str,
    clients: int,
    transactions: int = 0,
    role: str = WORKER_ROLE,
    **variables: object,
) -> float:
    """Runs one of the scripts of this folder and returns transactions a second; none may fail.

    Parameters
    ----------
    size : Size
        How long.
    dsn : str
        Database.
    script : str
        NAME of NAME.sql.
    clients : int
        Connections.
    transactions : int
        How many for each client, instead.
    role : str
        Options of the session.
    variables
        Of the script.

    Raises
    ------
    BenchError
    """
    info = psycopg.conninfo.conninfo_to_dict(dsn)
    if size.is_small:
        transactions = transactions or 5
    length = ["-t", str(transactions)] if transactions else ["-T", str(round(size.seconds))]
    command = [
        *(find_pgbench(), "-n", "-M", "prepared", "-c", str(clients), "-j", "2", *length),
        *("-f", str(HERE / f"{script}.sql"), "-h", str(info["host"]), "-U", str(info["user"])),
        *(f"-D{name}={value}" for name, value in variables.items()),
        str(info["dbname"]),
    ]
    environment = {**os.environ, "PGOPTIONS": role}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    rate = re.search(r"^tps = ([0-9.]+)", result.stdout, re.MULTILINE)
    if result.returncode != 0 or rate is None or "failed transactions: 0 " not in result.stdout:
        lines = (result.stderr.strip() or result.stdout.strip()).splitlines()
        raise BenchError(f"pgbench {script}: {lines[-1]}", "see the server's log")
    return float(rate[1])


def pairs(ground: Ground, dsn: str, project: str = "p", clients: int = 16, transactions: int = 0) -> float:
    """Checkouts with their reports, pairs a second."""
    return pgbench(
        ground.size,
        dsn,
        "pairs",
        clients,
        transactions,
        project=project,
        cluster0=ground.next_cluster(),
        process=0,
        digest=work_script_digest(),
    )


def batches(ground: Ground, dsn: str) -> float:
    """Checkouts of 16 jobs in one call, with their reports in another: batches a second."""
    return pgbench(
        ground.size,
        dsn,
        "batches",
        16,
        cluster0=ground.next_cluster(),
        first=-16,
        digest=work_script_digest(),
    )


def sql_pairs(ground: Ground) -> Iterator[Figure]:
    """Pairs against two updates by key."""
    ground.checkpoint()
    measured, bound, ratio = in_turn(
        ground.size.rounds,
        lambda: pairs(ground, ground.few()),
        lambda: pgbench(ground.size, ground.few(), "updates", 16),
    )
    yield Figure("sql_pairs_ratio", ratio, (">=", 0.35), measured, bound, "pairs/s")


def sql_writes(ground: Ground) -> Iterator[Figure]:
    """The rows of a pair without any rule against two updates by key: what a pair can reach at most."""
    ground.checkpoint()

    def writes() -> float:
        return pgbench(ground.size, ground.few(), "writes", 16, cluster0=ground.next_cluster(), process=0)

    measured, bound, ratio = in_turn(
        ground.size.rounds, writes, lambda: pgbench(ground.size, ground.few(), "updates", 16)
    )
    yield Figure("sql_writes_ratio", ratio, None, measured, bound, "pairs/s")


def sql_statements(ground: Ground) -> Iterator[Figure]:
    """The statements of a pair without the rules around them, against two updates by key: the room for rules."""
    ground.checkpoint()
    measured, bound, ratio = in_turn(
        ground.size.rounds,
        lambda: pairs(ground, ground.bare()),
        lambda: pgbench(ground.size, ground.few(), "updates", 16),
    )
    yield Figure("sql_statements_ratio", ratio, None, measured, bound, "pairs/s")


def sql_growth(ground: Ground) -> Iterator[Figure]:
    """Pairs with large tables against pairs with small ones."""
    ground.checkpoint()
    measured, bound, ratio = in_turn(
        ground.size.rounds, lambda: pairs(ground, ground.many()), lambda: pairs(ground, ground.few())
    )
    yield Figure("sql_growth_ratio", ratio, (">=", 0.95), measured, bound, "pairs/s")


def contention(ground: Ground) -> Iterator[Figure]:
    """Pairs of 32 clients on one file against as many on a thousand files."""
    yield _contention(ground, "contention_ratio", ground.few(), (">=", 0.80))


def contention_statements(ground: Ground) -> Iterator[Figure]:
    """The same of the statements of a pair without the rules around them."""
    yield _contention(ground, "contention_statements_ratio", ground.bare(), None)


def _contention(ground: Ground, name: str, dsn: str, goal: tuple[str, float] | None) -> Figure:
    # A small run is over with each connection's first calls, which take so long that 32 of them in turn exceed 0.5 s.
    clients = 4 if ground.size.is_small else 32
    ground.checkpoint()
    measured, bound, ratio = in_turn(
        ground.size.rounds,
        lambda: pairs(ground, dsn, "one", clients),
        lambda: pairs(ground, dsn, "thousand", clients),
    )
    return Figure(name, ratio, goal, measured, bound, "pairs/s")


def horizon(ground: Ground) -> Iterator[Figure]:
    """Pairs at the end of a snapshot that was held through many, against pairs without it: of ten files, and of one."""
    size = ground.size
    yield _horizon(ground, "horizon_ratio", "ten", size.pairs)
    yield _horizon(ground, "horizon_one_file_ratio", "one", min(size.pairs, 20_000))


def _horizon(ground: Ground, name: str, project: str, while_held: int) -> Figure:
    free, held = [], []
    for _ in range(1 if ground.size.rounds == 1 else 2):
        ground.checkpoint()
        free.append(pairs(ground, ground.few(), project))
        with _held_snapshot(ground.few()):
            pairs(ground, ground.few(), project, transactions=while_held // 16 + 1)
            held.append(pairs(ground, ground.few(), project))
        free.append(pairs(ground, ground.few(), project))
    measured, bound = sum(held) / len(held), sum(free) / len(free)
    return Figure(name, measured / bound, (">=", 0.80), measured, bound, "pairs/s")


def hot_updates(ground: Ground) -> Iterator[Figure]:
    """What all these pairs left behind: the share of HOT updates, and the size of the table against its rows."""
    with connect(ground.few()) as database:
        rows = database.execute("SELECT * FROM bench.hot_updates()").fetchall()
    share = rows[0]["hot"] / max(rows[0]["updates"], 1)
    yield Figure("hot_updates_share", share, (">=", 0.95), rows[0]["hot"], rows[0]["updates"], "updates")
    yield Figure("slices_bytes_per_row", rows[0]["bytes_per_row"], ("<=", 250), unit="bytes")


@contextlib.contextmanager
def _held_snapshot(dsn: str) -> Iterator[None]:
    with connect(dsn) as connection:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT count(*) FROM osgprod_data.loaded_files")
        yield
        connection.execute("COMMIT")
