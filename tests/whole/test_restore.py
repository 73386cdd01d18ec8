"""Runs the commands of docs/backup.md: an older state is restored completely, and blocks whose reports it does not know
are processed again."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from shim.database import call, connect
from shim.local.embedded import Server, server_uid
from tests import prepared
from tests.support import CHECKOUT, World, server_folder, wait_until

RECIPES = dict(
    re.findall(r"```bash\n# ([a-z ]+)\n(.*?)```", (CHECKOUT / "docs" / "backup.md").read_text(), re.DOTALL)
)


def run(recipe: str, server: Server, **variables: str) -> None:
    """Runs a block of docs/backup.md with the programs of a server, as its user where the block is about its data."""
    done = subprocess.run(
        ["/bin/bash", "-euc", RECIPES[recipe]],
        env={
            "PATH": f"{server._programs}:{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": "/nonexistent",
            **variables,
        },
        capture_output=True,
        text=True,
        cwd="/",
        user=server_uid() if os.geteuid() == 0 and "osgprod" not in RECIPES[recipe] else None,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def backup() -> Iterator[Path]:
    folder = server_folder("backup")
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def elsewhere(backup: Path) -> Iterator[Server]:
    """Another server, with nothing in it."""
    server = Server(backup / "elsewhere", {"fsync": "off"})
    server.start()
    yield server
    server.stop()


def finish(world: World) -> int:
    """Runs one job after the other until no work is left; returns how many slices were done."""
    done = 0
    while True:
        answer = world.checkout(done, cluster=99)
        if answer["status"] == "wait":
            world.let_leases_run_out()
            world.tick()
            continue
        if answer["status"] == "no-work":
            return done
        assert world.report(done, cluster=99)["status"] == "done"
        done += 1


def test_older_dump_restored_gives_defined_answers_and_loses_no_block(
    world: World, backup: Path, elsewhere: Server
) -> None:
    world.set(token_required=True)
    world.add_file(6)
    tokens = [str(world.checkout(process)["token"]) for process in (0, 1, 2)]
    world.report(0, token=tokens[0])
    dump = {"OSGPROD_DSN": world.dsn, "BACKUP": str(backup)}
    run("dump", elsewhere, **dump)

    # What happens now, the dump does not know.
    world.report(1, token=tokens[1])
    tokens[2] = str(world.checkout(2)["token"])
    tokens.append(str(world.checkout(3)["token"]))
    for process in (2, 3):
        assert world.report(process, token=tokens[process])["status"] == "done"

    restored = elsewhere.dsn.replace("dbname=postgres", "dbname=osgprod_restored")
    run(
        "restore the dump",
        elsewhere,
        NEW_SERVER_DSN=elsewhere.dsn,
        RESTORED_DSN=restored,
        PROJECT="p",
        **dump,
    )
    with connect(restored) as db:
        after = World(db, restored)
        assert after.progress()["blocks_done"] == 1
        assert after.report(0, token=tokens[0])["status"] == "done", "the same report again, the same answer"
        assert after.report(1, token=tokens[1])["status"] == "done", "the dump knows this attempt"
        answer = after.report(2, token=tokens[2])
        assert (answer["http_status"], answer["status"]) == (403, "refused"), "the job, but not this start"
        assert after.heartbeat(2, token=tokens[2])["http_status"] == 403
        with pytest.raises(psycopg.Error, match=r"job 1\.3 has no attempt in project p") as caught:
            after.report(3, token=tokens[3])
        assert caught.value.sqlstate == "OG303"
        assert "will be done again" in str(caught.value.diag.message_hint)
        after.set(token_required=False)
        assert finish(after) == 4
        assert after.progress()["blocks_done"] == 6
        assert call(db, "verify", project="p", deep=True) == []
    with connect(f"{restored} options='-c role=osgprod_worker'") as worker:
        assert World(worker, restored).checkout(50, db=worker)["status"] == "no-work", "grants came along"


def test_a_mistake_is_undone_by_going_back_to_the_moment_before(backup: Path) -> None:
    (backup / "wal").mkdir(mode=0o777)
    (backup / "wal").chmod(0o777)
    settings = {
        "archive_mode": "on",
        "archive_command": f"test ! -f {backup}/wal/%f && cp %p {backup}/wal/%f",
        "max_connections": "20",
    }
    server = Server(backup / "server", settings)
    prepared.put_data(backup / "server")
    server.start()
    try:
        with connect(server.dsn) as db:
            world = World(db, server.dsn).with_project("p")
            world.add_file(5)
            world.checkout(0)
            run("base backup", server, OSGPROD_DSN=server.dsn, BACKUP=str(backup))
            world.report(0)
            token = str(world.checkout(1)["token"])
            row = db.execute("SELECT clock_timestamp()::text AS now").fetchone()
            assert row
            call(db, "load_slices", project="p", start_over=True)  # the mistake
            later = str(world.checkout(2)["token"])
            db.execute("SELECT pg_switch_wal()")
    finally:
        server.stop(signal.SIGINT)  # waits until all is archived

    again = Server(backup / "again", settings | {"archive_mode": "off"})
    (backup / "again").mkdir()
    (backup / "again").chmod(0o777)
    run(
        "restore to a moment",
        server,
        BACKUP=str(backup),
        DATA=str(backup / "again" / "data"),
        MOMENT=row["now"],
    )
    again.start()
    try:
        with connect(again.dsn) as db:
            recovers = "SELECT WHERE pg_is_in_recovery()"
            wait_until(lambda: not db.execute(recovers).fetchall(), "it reaches the moment")
            world = World(db, again.dsn)
            assert call(db, "verify", project="p", deep=True) == []
            assert (world.progress()["blocks_done"], world.progress()["blocks_leased"]) == (1, 1)
            assert world.report(1, token=token)["status"] == "done"
            with pytest.raises(psycopg.Error, match="has no attempt"):
                world.report(2, token=later)
            assert finish(world) == 3
            assert call(db, "verify", project="p", deep=True) == []
    finally:
        again.stop()
