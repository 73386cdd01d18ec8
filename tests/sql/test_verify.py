"""verify names each broken invariant: each of I1 to I6 is broken by hand here."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from shim.database import call, connect
from tests.support import World


@pytest.fixture
def world(dsn: str) -> Iterator[World]:
    """A world that is not recounted at the end: it will be broken. Two slices are done, two leased, one is ready, one
    quarantined, and two blocks are not cut yet."""
    with connect(dsn) as db:
        world = World(db, dsn)
        world.set(max_failures=1)
        world.add_file(8)
        for process in range(6):
            world.checkout(process)
        for process, code in ((0, 0), (1, 0), (4, 143), (5, 1)):
            world.report(process, code)
        assert faults(world) == []
        yield world


def faults(world: World, **more: object) -> list[str]:
    return [row["fault"] for row in call(world.db, "verify", project="p", **{"deep": True, **more})]


BREAKAGES = {
    "overlap or leave a gap": "DELETE FROM osgprod_data.slices WHERE block1 = 2",
    "slices overlap": "ALTER TABLE osgprod_data.slices DROP CONSTRAINT slices_end_once CASCADE;"
    " UPDATE osgprod_data.slices SET block2 = 4 WHERE block1 = 2",
    "slices reach beyond the work of the file": "UPDATE osgprod_data.loaded_files SET block2 = 5",
    "the work of the file is not all of it": "UPDATE osgprod_data.rawdata SET nblocks = 10, block_index = block_index"
    " || '\\x000000000000000000000000'",
    "slices of a file that is not loaded": "DELETE FROM osgprod_data.loaded_files",
    "slices of a file that is called pending": "UPDATE osgprod_data.loaded_files SET state = 'pending'",
    "allocated to block 7 but called allocated": "UPDATE osgprod_data.loaded_files SET state = 'allocated'",
    "slices of another run or number": "UPDATE osgprod_data.slices SET seqno = 7 WHERE block1 = 5",
    "quarantined, but not before 2": "UPDATE osgprod_data.slices SET state = 'quarantined' WHERE block1 = 5",
    "ready, but without an end of its backoff": "UPDATE osgprod_data.slices SET state = 'ready' WHERE block1 = 6",
    "done without a success on record": "UPDATE osgprod_data.slices SET state = 'done' WHERE block1 = 3",
    "leased by an attempt that reported done": "UPDATE osgprod_data.slices SET state = 'leased' WHERE block1 = 1",
    "which was leased another slice": "UPDATE osgprod_data.slices SET process = 1 WHERE block1 = 1",
    "which is not on record": "DELETE FROM osgprod_data.attempts WHERE process = 0",
    "one of 2 slices that job 1.2 holds": "UPDATE osgprod_data.slices SET process = 2 WHERE block1 = 4",
    "2 attempts did it": "UPDATE osgprod_data.attempts a SET (block1, block2, opened_at) = (b.block1, b.block2,"
    " b.opened_at)"
    " FROM osgprod_data.attempts b WHERE b.process = 0 AND a.process = 1",
}


@pytest.mark.parametrize("named", BREAKAGES)
def test_verify_names_each_broken_rule(world: World, named: str) -> None:
    world.db.execute("SET session_replication_role = replica")  # switches the foreign keys off
    for statement in BREAKAGES[named].split(";"):
        world.db.execute(statement)
    assert any(named in fault for fault in faults(world)), faults(world)


@pytest.mark.parametrize(
    ("what", "statement"),
    [
        ("an overlap", "INSERT INTO osgprod_data.slices SELECT (s).* FROM (SELECT s FROM osgprod_data.slices s"
         " WHERE block1 = 2) x"),
        ("another beginning", "INSERT INTO osgprod_data.slices"
         " (project_id, rawdata_id, block1, block2, run, seqno, state, is_ready, not_before, opened_at)"
         " SELECT project_id, rawdata_id, 7, 9, 1, 1, 'ready', true, now(), now() FROM osgprod_data.slices LIMIT 1"),
        ("a gap", "INSERT INTO osgprod_data.slices (project_id, rawdata_id, block1, block2, follows, run, seqno, state,"
         " is_ready, not_before, opened_at)"
         " SELECT project_id, rawdata_id, 8, 9, 8, 1, 1, 'ready', true, now(), now() FROM osgprod_data.slices LIMIT 1"),
        ("a longer slice", "UPDATE osgprod_data.slices SET block2 = 4 WHERE block1 = 2"),
        ("a slice without blocks", "UPDATE osgprod_data.slices SET block2 = 6 WHERE block1 = 6"),
        ("a lease of nobody", "UPDATE osgprod_data.slices SET cluster = NULL WHERE block1 = 3"),
        ("a ready slice that is leased", "UPDATE osgprod_data.slices SET is_ready = true WHERE block1 = 3"),
        ("a ready slice that is not", "UPDATE osgprod_data.slices SET is_ready = NULL WHERE block1 = 5"),
        ("a slice done by nobody", "UPDATE osgprod_data.slices SET nstart = NULL WHERE block1 = 1"),
    ],
)  # fmt: skip
def test_tables_refuse_rows_that_break_the_rules(world: World, what: str, statement: str) -> None:
    with pytest.raises(psycopg.errors.IntegrityError):
        world.db.execute(statement)
