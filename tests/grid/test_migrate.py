"""``osgprod migrate`` on the installed servers, and through a real PgBouncer."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from shim.database import DatabaseError, call, connect
from shim.local.embedded import NOT_DURABLE, Server, find_programs, server_user, temporary_server
from shim.migrate import migrate, pending
from tests.databases import Databases
from tests.grid.parts import SEARCH, need
from tests.grid.pool import newer
from tests.shim.databases import catalog, quietly
from tests.shim.test_snapshots import yoyo
from tests.support import World, free_port, wait_until

SERVERS = sorted(str(path) for path in Path("/usr/lib/postgresql").glob("*/bin"))


@pytest.fixture(params=["installed", "newer"])
def pgbouncer(request: pytest.FixtureRequest) -> list[str]:
    """PgBouncer: the installed one (1.18 in Debian 12), and one that knows prepared statements (1.24)."""
    if request.param == "newer":
        return newer("/usr/sbin/pgbouncer", "pgbouncer")
    need("pgbouncer")
    return ["pgbouncer"]


@pytest.fixture(params=["transaction", "session", "statement"])
def pooled(
    request: pytest.FixtureRequest,
    pgbouncer: list[str],
    empty: str,
    folder: Path,
) -> Iterator[str]:
    """The DSN of a new database through PgBouncer, in each of its modes."""
    port = free_port()
    server = psycopg.conninfo.conninfo_to_dict(empty)
    name = server["dbname"]
    folder.chmod(0o777)
    settings = folder / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n{name} = host={server['host']} port={server['port']} user={server['user']}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\n"
        f"unix_socket_dir =\npool_mode = {request.param}\n"
        f"ignore_startup_parameters = options\nlogfile = {folder}/pgbouncer.log\n"
    )
    user = server_user()
    process = subprocess.Popen(
        [*pgbouncer, "-q", str(settings)],
        env={**os.environ, "PATH": SEARCH},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **({} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}),
    )
    try:
        yield _answering(f"host=127.0.0.1 port={port} user={server['user']} dbname={name}", process)
    finally:
        process.kill()  # since 1.23 it waits for its clients at SIGTERM
        process.wait()


def _answering(dsn: str, process: subprocess.Popen[bytes]) -> str:
    def answers() -> bool:
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(dsn):
            return True
        return False

    wait_until(answers, "PgBouncer answers", process, pause_s=0.05)
    return dsn


def test_migration_through_a_pooler_is_refused_by_name(pooled: str, empty: str) -> None:
    with pytest.raises(DatabaseError, match="connection pooler, like PgBouncer") as caught:
        migrate(pooled, say=quietly)
    assert "the server itself" in caught.value.hint
    with connect(empty) as connection:
        row = connection.execute("SELECT to_regnamespace('osgprod_data') IS NULL AS is_empty").fetchone()
    assert row == {"is_empty": True}
    assert migrate(empty, say=quietly)


@pytest.mark.parametrize("programs", SERVERS)
def test_migrations_come_and_go_on_each_installed_server(
    programs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSGPROD_PG_BINDIR", programs)
    with temporary_server() as dsn:
        migrate(dsn, say=quietly)
        assert migrate(dsn, say=quietly) == [] == pending(dsn)
        before = catalog(dsn)
        assert yoyo(dsn, "rollback", "--all").returncode == 0
        assert yoyo(dsn, "apply").returncode == 0
        migrate(dsn, say=quietly)
        assert catalog(dsn) == before
        with connect(dsn) as connection:
            assert call(connection, "tick") == []


@pytest.mark.parametrize("programs", SERVERS)
def test_production_moves_to_a_newer_server_by_dump_and_goes_on(
    programs: str, databases: Databases, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dump is made by the newer server's pg_dump, as its manual says."""
    tools = find_programs()
    with monkeypatch.context() as older:
        older.setenv("OSGPROD_PG_BINDIR", programs)
        with temporary_server() as dsn:
            migrate(dsn, say=quietly)
            with connect(dsn) as db:
                world = World(db, dsn).with_project("p")
                world.add_file(20)
                running, done = world.checkout(1), world.checkout(2)
                assert world.report(2)["status"] == "done"
            for program, arguments in (
                ("pg_dumpall", ["--globals-only", f"--dbname={dsn}", f"--file={folder}/globals.sql"]),
                ("pg_dump", ["--format=custom", f"--dbname={dsn}", f"--file={folder}/dump"]),
            ):
                subprocess.run([f"{tools}/{program}", *arguments], check=True, capture_output=True)
    with databases.empty() as moved:
        subprocess.run(
            [
                f"{tools}/psql",
                "--quiet",
                f"--dbname={databases.dsn('postgres')}",
                f"--file={folder}/globals.sql",
            ],
            capture_output=True,  # it complains of roles that are there
        )
        subprocess.run(
            [
                f"{tools}/pg_restore",
                "--exit-on-error",
                "--single-transaction",
                f"--dbname={moved}",
                f"{folder}/dump",
            ],
            check=True,
            capture_output=True,
        )
        migrate(moved, say=quietly)  # it may renew functions, whose text another server shows differently
        assert pending(moved) == []
        with connect(moved) as db:
            world = World(db, moved)
            assert world.report(1, token=str(running["token"]))["status"] == "done"
            assert world.report(2, token=str(done["token"]))["status"] == "done"
            assert world.checkout(3)["status"] == "assigned"
            assert call(db, "verify", project="p", deep=True) == []


@pytest.mark.parametrize("programs", SERVERS)
def test_production_moves_to_a_newer_server_by_pg_upgrade_and_goes_on(
    programs: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data stay in their files; only the catalogs are made again."""
    folder.chmod(0o777)
    with monkeypatch.context() as older:
        older.setenv("OSGPROD_PG_BINDIR", programs)
        old = Server(folder / "old", NOT_DURABLE)
        old.start()
        try:
            migrate(old.dsn, say=quietly)
            with connect(old.dsn) as db:
                world = World(db, old.dsn).with_project("p")
                world.add_file(20)
                running, done = world.checkout(1), world.checkout(2)
                assert world.report(2)["status"] == "done"
        finally:
            old.stop()
    new = Server(folder / "new", NOT_DURABLE)
    new.start()  # makes the data folder, by initdb
    new.stop()
    versions = [int((folder / name / "data" / "PG_VERSION").read_text()) for name in ("old", "new")]
    if versions[0] > versions[1]:
        pytest.skip(f"{programs} is newer than the programs of our own")
    checksums = subprocess.run(
        [*new._command("pg_checksums"), "--disable", "-D", f"{folder}/new/data"],
        **new._as_server(),
        check=False,
    )  # as the old one has it; an initdb before version 18 has none
    assert checksums.returncode in (0, 1)
    upgraded = subprocess.run(
        [
            *new._command("pg_upgrade"),
            *(f"--old-bindir={programs}", f"--new-bindir={Path(new._command('postgres')[0]).parent}"),
            *(f"--old-datadir={folder}/old/data", f"--new-datadir={folder}/new/data"),
            *("--username=postgres", f"--socketdir={folder}", "--no-sync"),
        ],
        capture_output=True,
        text=True,
        **{**new._as_server(), "cwd": str(folder)},
    )
    assert upgraded.returncode == 0, upgraded.stdout + upgraded.stderr
    new.start()
    try:
        migrate(new.dsn, say=quietly)  # it may renew functions, whose text another server shows differently
        assert pending(new.dsn) == []
        with connect(new.dsn) as db:
            db.execute("ANALYZE")
            world = World(db, new.dsn)
            assert world.report(1, token=str(running["token"]))["status"] == "done"
            assert world.report(2, token=str(done["token"]))["status"] == "done"
            assert world.checkout(3)["status"] == "assigned"
            assert call(db, "verify", project="p", deep=True) == []
    finally:
        new.stop()
