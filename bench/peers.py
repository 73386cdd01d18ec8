"""Other queues in PostgreSQL, on the same server in the same run.

Their SQL comes from their packages on PyPI (requirements-peers.txt). Only the SQL files are used: nothing of the
packages is imported. Where a package is missing, its measure is left out and says so.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from bench.ground import Ground, SkipMeasure
from bench.pgbench import batches, pairs, pgbench
from bench.rounds import Figure, in_turn
from shim.database import connect

WAITING_JOBS = 400_000
WAITING_MESSAGES = 4_000_000  # a batch of 16 takes as many as 16 jobs do
BATCH = 16


def procrastinate(ground: Ground) -> Iterator[Figure]:
    """Pairs against procrastinate's fetch and finish of a job, with 16 clients and with one."""
    yield from _procrastinate(ground, "procrastinate", ground.few(), (">=", 1.0))


def procrastinate_statements(ground: Ground) -> Iterator[Figure]:
    """The same of the statements of a pair without the rules around them."""
    yield from _procrastinate(ground, "procrastinate_statements", ground.bare(), None)


def _procrastinate(ground: Ground, name: str, ours: str, goal: tuple[str, float] | None) -> Iterator[Figure]:
    dsn = _database(ground, "procrastinate", "sql/schema.sql")
    jobs = WAITING_JOBS if not ground.size.is_small else 2_000
    with connect(dsn) as database:
        database.execute("INSERT INTO procrastinate_workers DEFAULT VALUES")
        database.execute(
            "INSERT INTO procrastinate_jobs (queue_name, task_name, args)"
            " SELECT 'bench', 'task', jsonb_build_object('n', g) FROM generate_series(1, %s) g",
            [jobs],
        )
        database.execute("VACUUM ANALYZE")
    for clients, end in ((16, "_ratio"), (1, "_one_client_ratio")):
        ground.checkpoint()
        measured, bound, ratio = in_turn(
            ground.size.rounds,
            lambda clients=clients: pairs(ground, ours, clients=clients),  # type: ignore[misc]
            lambda clients=clients: pgbench(ground.size, dsn, "procrastinate", clients, role=""),  # type: ignore[misc]
        )
        yield Figure(name + end, ratio, goal, measured, bound, "pairs/s")


def pgmq(ground: Ground) -> Iterator[Figure]:
    """Pairs in batches of 16 against pgmq's read and archive of 16 messages, with 16 clients."""
    dsn = _database(ground, "pgmq", "sql/pgmq.sql")
    messages = WAITING_MESSAGES if not ground.size.is_small else 5_000
    with connect(dsn) as database:
        database.execute("SELECT pgmq.create('bench')")
        database.execute(
            "INSERT INTO pgmq.q_bench (vt, message)"
            " SELECT now(), jsonb_build_object('n', g) FROM generate_series(1, %s) g",
            [messages],
        )
        database.execute("VACUUM ANALYZE")
    ground.checkpoint()
    measured, bound, ratio = in_turn(
        ground.size.rounds,
        lambda: BATCH * batches(ground, ground.few()),
        lambda: BATCH * pgbench(ground.size, dsn, "pgmq", 16, role=""),
    )
    yield Figure("pgmq_ratio", ratio, (">=", 0.5), measured, bound, "pairs/s")


def _database(ground: Ground, package: str, path: str) -> str:
    """Make a database with the SQL file of an installed package; return its DSN.

    Raises
    ------
    SkipMeasure
        The package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SkipMeasure(f"package {package} is not installed", "make bench installs requirements-peers.txt")
    dsn = ground.new_database(package)
    with connect(dsn) as database:
        database.execute((Path(spec.origin).parent / path).read_text())
    return dsn
