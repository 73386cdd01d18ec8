"""Calls beside the removal of their project, or of their raw data file: what is gone is named, in our words."""

from __future__ import annotations

import importlib.util
import threading
from typing import Any

import psycopg
import pytest

from shim.database import call, connect
from tests.support import CHECKOUT, World, wait_until
from tests.whole.test_concurrency import Db, Waiting, held

# With what the examples of the documents leave out: calls that change a project, which has files and merges.
MORE = (
    """load_slices(p_project => 'spring-2026', p_runs => '{71727}')""",
    """load_slices(p_project => 'spring-2026', p_start_over => true)""",
    """unload_slices(p_project => 'spring-2026', p_runs => '{71728}')""",
    """import_file(p_project => 'spring-2026', p_path => '/data/hd_rawdata_071727_001.evio', p_size_bytes => 5032,
                   p_nblocks => 6, p_slices => '[]')""",
    """import_merge(p_project => 'spring-2026', p_path => '/data/hd_rawdata_071728_000.evio', p_ended_at => now())""",
    """recycle(p_project => 'spring-2026', p_states => '{done,quarantined}')""",
    """retry_merges(p_project => 'spring-2026')""",
    """set_project(p_project => 'spring-2026', p_settings => '{"merge_by": "run"}')""",
    """set_project(p_project => 'spring-2026', p_settings => '{"skip_nearline": true}')""",
    """set_project(p_project => 'spring-2026', p_settings => '{"merge_output_url": "https://example.org/m"}')""",
    """set_magic(p_project => 'spring-2026', p_magic => 'another')""",
    """ban_worker(p_project => 'spring-2026', p_worker => 'wn8', p_seconds => 0)""",
    """add_notify_target(p_name => 'chat', p_place => 'file:/etc/chat.url', p_project => 'spring-2026')""",
    """remove_project(p_project => 'spring-2026', p_force => true)""",
)


@pytest.fixture
def statements(db: Db) -> list[str]:
    """A call of each public function, for a project that is as after the examples of docs/sql.md; no job has work."""
    spec = importlib.util.spec_from_file_location("generate_sql", CHECKOUT / "docs" / "generate_sql.py")
    assert spec and spec.loader
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    generator.generate(db)
    for seqno in range(2):
        db.execute(generator._registration(seqno).replace("71728", "71727"))
    call(db, "set_project", project="spring-2026", settings='{"merge_by": "file", "state": "active"}')
    call(db, "reclaim_lost", project="spring-2026", cluster=4711)
    # A tick tallies, and note_health notes.
    db.execute(
        "UPDATE osgprod_data.projects SET tallied_until = '-infinity', pause_reason = 'all fail alike'"
    )
    examples = [
        statement
        for name, statement in generator.EXAMPLES
        if "spring-2026" in statement or name in ("tick", "note_health")
    ]
    names = {name for name, statement in generator.EXAMPLES if statement in examples}
    assert len(names) > 50
    token = "00000000-0000-0000-0000-000000000000"
    return [
        statement.replace("TOKEN", token) for statement in examples if "osgprod.add_project(" not in statement
    ] + [f"SELECT * FROM osgprod.{more}" for more in MORE]


def test_no_call_beside_the_removal_of_its_project_ends_with_an_error_of_postgresql(
    world: World, statements: list[str]
) -> None:
    """Each begins while the removal is not committed, and ends when it is, or before."""
    ends: dict[str, str] = {}
    pids: dict[str, int] = {}

    def run(statement: str) -> None:
        with connect(world.dsn) as db:
            pids[statement] = db.info.backend_pid
            try:
                db.execute(statement)
                ends[statement] = "done"
            except psycopg.Error as error:
                ends[statement] = f"{error.sqlstate} {error}"

    def each_waits_or_is_done() -> bool:
        rows = world.db.execute("SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'").fetchall()
        waiting = {row["pid"] for row in rows}
        return all(statement in ends or pids.get(statement) in waiting for statement in statements)

    threads = [threading.Thread(target=run, args=[statement]) for statement in statements]
    with held(world) as db:
        call(db, "remove_project", project="spring-2026", force=True)
        for thread in threads:
            thread.start()
        wait_until(
            each_waits_or_is_done, "each call waits or is done", seen=lambda: set(statements) - set(ends)
        )
        before = dict(ends)
    for thread in threads:
        thread.join()
    assert {end for end in ends.values() if end != "done" and not end.startswith("OG")} == set()
    waited = set(statements) - set(before)
    assert len(waited) > 10
    assert [statement for statement in waited if ends[statement] == "done"] == [], (
        "what is gone is not changed"
    )


@pytest.mark.parametrize("how", ["load_slices", "import_file"])
@pytest.mark.parametrize("forgets_first", [True, False])
def test_file_that_is_forgotten_while_a_project_loads_it_is_named(
    world: World, how: str, forgets_first: bool
) -> None:
    world.add_file(1, project=None)

    def load(db: Db) -> Any:
        if how == "load_slices":
            return call(db, "load_slices", project="p")
        size = {name: world.registered[name] for name in ("path", "size_bytes", "nblocks")}
        return call(db, "import_file", project="p", slices="[]", **size)

    def forget(db: Db) -> Any:
        return call(db, "forget_rawdata", path=world.registered["path"])

    first, second = (forget, load) if forgets_first else (load, forget)
    with held(world) as db:
        first(db)
        waiting = Waiting(world, second)
    if forgets_first and how == "import_file":
        assert waiting.result()[0]["status"] == "unknown"
        return
    with pytest.raises(psycopg.Error) as refused:
        waiting.result()
    assert refused.value.sqlstate == ("OG302" if forgets_first else "OG407")
