"""The measures of whole tables: loading files, and recounting everything."""

from __future__ import annotations

import time
from collections.abc import Iterator

from bench.ground import Ground
from bench.rounds import Figure, in_turn
from shim.database import call, connect


def load(ground: Ground) -> Iterator[Figure]:
    """load_slices of all files against one INSERT ... SELECT of the same rows into a copy of the table."""
    ground.checkpoint()
    numbers = iter(range(1_000))
    with connect(ground.many()) as database:

        def load_slices() -> float:
            name = f"load{next(numbers)}"
            database.execute("SELECT osgprod.add_project(%s, '127.0.0.0/8', 'x.bash', '', 1, 'm')", [name])
            started = time.perf_counter()
            rows = call(database, "load_slices", project=name)
            return float(rows[0]["files"] / (time.perf_counter() - started))

        def insert() -> float:
            database.execute("TRUNCATE bench.loaded_files")
            started = time.perf_counter()
            rows = database.execute("SELECT bench.insert_loaded_files() AS files").fetchall()
            return float(rows[0]["files"] / (time.perf_counter() - started))

        measured, bound, ratio = in_turn(ground.size.rounds, load_slices, insert)
    yield Figure("load_ratio", ratio, (">=", 0.80), measured, bound, "files/s")


def verify(ground: Ground) -> Iterator[Figure]:
    """verify of all slices against one sequential count of the table."""
    with connect(ground.many()) as database:

        def verify_project() -> float:
            started = time.perf_counter()
            assert call(database, "verify", project="p") == []
            return time.perf_counter() - started

        def count() -> float:
            started = time.perf_counter()
            database.execute("SELECT count(*) FROM osgprod_data.slices")
            return time.perf_counter() - started

        count()  # into the page cache
        measured, bound, ratio = in_turn(min(3, ground.size.rounds), verify_project, count)
    yield Figure("verify_ratio", ratio, ("<=", 5), measured, bound, "s")
