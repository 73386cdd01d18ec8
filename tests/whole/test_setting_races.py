"""Settings that are changed in one session while another works by them; test_merge_races has those of merges."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from shim.database import call, connect
from tests.support import World
from tests.whole.test_concurrency import Db, Waiting, held


@pytest.fixture
def world(world: World) -> World:
    """Ends a call that waits although it should not."""
    world.db.execute("SET statement_timeout = '120s'")
    return world


def change(db: Db, project: str = "p", **settings: object) -> Any:
    return call(db, "set_project", project=project, settings=json.dumps(settings))


def record(world: World, db: Db, locality: str) -> Any:
    rows = world.db.execute("SELECT rawdata_id FROM osgprod_data.rawdata").fetchall()
    found = [{"file_id": row["rawdata_id"], "locality": locality} for row in rows]
    return call(db, "record_locality", found=json.dumps(found))


def on_tape(world: World) -> list[bool]:
    rows = world.db.execute("SELECT on_tape FROM osgprod_data.loaded_files ORDER BY run, seqno").fetchall()
    return [row["on_tape"] for row in rows]


def load(world: World, db: Db, how: str) -> Any:
    """Makes the registered file the project's work."""
    if how == "load_slices":
        return call(db, "load_slices", project="p")
    size = {name: world.registered[name] for name in ("path", "size_bytes", "nblocks")}
    return call(db, "import_file", project="p", slices="[]", **size)


@pytest.mark.parametrize("is_first", ["record_locality", "set_project"])
def test_file_is_skipped_that_is_found_on_tape_beside_the_change_of_skip_nearline(
    world: World, is_first: str
) -> None:
    world.add_file(1)

    def recording(db: Db) -> Any:
        return record(world, db, "nearline")

    def setting(db: Db) -> Any:
        return change(db, skip_nearline=True)

    first, second = (recording, setting) if is_first == "record_locality" else (setting, recording)
    with held(world) as db:
        first(db)
        waiting = Waiting(world, second)
    waiting.result()
    assert on_tape(world) == [True]


@pytest.mark.parametrize("how", ["load_slices", "import_file"])
@pytest.mark.parametrize("beside", ["record_locality", "set_project"])
@pytest.mark.parametrize("loads_first", [True, False])
def test_file_is_skipped_that_is_loaded_beside_what_makes_it_one_to_skip(
    world: World, how: str, beside: str, loads_first: bool
) -> None:
    world.add_file(1, project=None)
    if beside == "set_project":
        record(world, world.db, "nearline")
    else:
        change(world.db, skip_nearline=True)

    def loading(db: Db) -> Any:
        return load(world, db, how)

    def changing(db: Db) -> Any:
        return (
            record(world, db, "nearline") if beside == "record_locality" else change(db, skip_nearline=True)
        )

    first, second = (loading, changing) if loads_first else (changing, loading)
    with held(world) as db:
        first(db)
        waiting = Waiting(world, second)
    waiting.result()
    assert on_tape(world) == [True]
    assert world.checkout(1)["status"] == "wait"


def test_slice_that_was_locked_when_its_file_was_found_on_tape_is_skipped_after_the_next_look(
    world: World,
) -> None:
    """A claim that is rolled back had it, for instance: the slice stayed ready for good."""
    world.set(skip_nearline=True, backoff_s=0, max_fast_failures=1000)
    world.add_file(1)
    world.checkout(0)
    world.report(0, 1)
    with connect(world.dsn) as other, other.transaction(force_rollback=True):
        assert world.checkout(1, db=other)["status"] == "assigned"
        record(world, world.db, "nearline")
    assert on_tape(world) == [True]
    record(world, world.db, "nearline")
    assert world.checkout(2)["status"] == "wait"


@pytest.mark.parametrize("setting", [{"skip_nearline": True}, {"merge_by": "none"}], ids=str)
def test_project_is_removed_beside_changes_of_its_settings_without_a_deadlock(
    world: World, setting: dict[str, Any]
) -> None:
    world.set(merge_by="file")
    world.add_file(1)
    record(world, world.db, "nearline")
    world.checkout(0)
    world.report(0)
    call(world.db, "tick")
    with held(world) as db:
        change(db, max_failures=3)
        waiting = Waiting(world, lambda db: call(db, "remove_project", project="p", force=True))
        change(db, **setting)
    waiting.result()
    assert world.db.execute("SELECT FROM osgprod_data.projects").fetchall() == []


@pytest.mark.parametrize("how", ["load_slices", "import_file"])
def test_file_on_tape_is_skipped_from_the_moment_it_is_loaded(world: World, how: str) -> None:
    world.add_file(1, project=None)
    change(world.db, skip_nearline=True)
    record(world, world.db, "nearline")
    load(world, world.db, how)
    assert on_tape(world) == [True]


def test_two_sessions_can_not_give_two_projects_one_folder_of_merged_files(world: World) -> None:
    world.with_project("q")
    url = "https://s.example.org/m"
    with held(world) as db:
        change(db, "p", merge_output_url=url)
        waiting = Waiting(world, lambda other: change(other, "q", merge_output_url=url))
    with pytest.raises(psycopg.Error, match="is that of project p"):
        waiting.result()


def test_slices_shrink_no_longer_from_the_change_of_shrink_tail_on(world: World) -> None:
    world.set(maxblockspercore=10, shrink_tail=True)
    world.add_file(50)
    for process in (1, 2, 3):
        world.checkout(process)
    for _ in range(2):
        world.tick()
    shrunk = world.checkout(4)
    assert shrunk["block2"] - shrunk["block1"] < 10
    world.set(shrink_tail=False)
    whole = world.checkout(5)
    assert whole["block2"] - whole["block1"] == 10


@pytest.mark.parametrize("how", ["set_project", "record_locality", "import_file"])
def test_call_that_must_see_what_others_commit_refuses_another_isolation_level(
    world: World, how: str
) -> None:
    world.add_file(1, project=None)
    with held(world) as db:
        db.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        with pytest.raises(psycopg.Error) as refused:
            if how == "set_project":
                change(db, lease_s=60)
            elif how == "record_locality":
                record(world, db, "online")
            else:
                load(world, db, how)
        assert refused.value.sqlstate == "OG901"


def test_report_that_finds_a_cause_and_the_tick_wait_for_no_session_that_has_a_failure_on_record(
    world: World,
) -> None:
    world.set(suspend_after=2)
    world.add_file(5)
    for process in (1, 2):
        world.checkout(process, host=f"wn{process}")
    world.report(1, 74, fault="delivery", host="wn1")
    world.db.execute("UPDATE osgprod_data.recent_failures SET failed_at = now() - interval '7 h'")
    with held(world) as db, held(world) as ticking:
        db.execute("SELECT FROM osgprod_data.recent_failures FOR UPDATE")
        ticking.execute("SET LOCAL lock_timeout = '1s'")
        warnings: list[object] = []
        ticking.add_notice_handler(warnings.append)
        call(ticking, "tick")
        assert warnings == []
    world.db.execute("UPDATE osgprod_data.recent_failures SET failed_at = now()")
    with held(world) as db, held(world) as job:
        db.execute("SELECT FROM osgprod_data.recent_failures FOR UPDATE")
        job.execute("SET LOCAL lock_timeout = '1s'")
        assert world.report(2, 74, fault="delivery", host="wn2", db=job)["status"] == "node-fault"
    assert world.progress()["state"] == "paused"


@pytest.mark.parametrize("function", ["set_project", "set_magic", "stop_project"])
def test_project_that_is_removed_before_a_change_of_it_is_named(world: World, function: str) -> None:
    more = {"set_project": {"settings": '{"wait_s": 61}'}, "set_magic": {"magic": "another"}}.get(
        function, {}
    )

    def changing(db: Db) -> Any:
        return call(db, function, project="p", **more)

    with held(world) as db:
        call(db, "remove_project", project="p")
        waiting = Waiting(world, changing)
    with pytest.raises(psycopg.Error, match="there is no project 'p'") as refused:
        waiting.result()
    assert refused.value.sqlstate == "OG301"


def test_magic_before_last_is_void_though_two_were_given_at_the_same_time(world: World) -> None:
    """The one that was given first is valid for the overlap of the other one, as if they came one after the other."""
    world.add_file(2)
    with held(world) as db:
        call(db, "set_magic", project="p", magic="first", overlap_s=0)
        waiting = Waiting(
            world, lambda other: call(other, "set_magic", project="p", magic="second", overlap_s=60)
        )
    waiting.result()
    for process, magic in enumerate(("first", "second")):
        assert world.checkout(process, magic=magic)["status"] == "assigned"
    with pytest.raises(psycopg.Error, match="magic"):
        world.checkout(3, magic="m")
