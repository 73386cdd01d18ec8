"""Functions as migrations: what snapshots give, yoyo's own command, and upgrades from every former state."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import psycopg
import pytest

from shim.database import DatabaseError, call, connect
from shim.migrate import migrate, pending
from shim.snapshot import snapshots, source_digest, source_of
from shim.version import SQL_FOLDER
from sql.release import present_version, release
from tests.databases import Databases
from tests.shim.databases import WORKING_COPY, catalog, quietly, state, works, yoyo_here
from tests.support import CHECKOUT, PATIENCE_S, World, free_port, wait_until
from tests.whole.test_upgrades import CONCURRENT, CONCURRENT_ROLLBACK, LATER

MIGRATIONS = sorted((SQL_FOLDER / "migrations").glob("*.sql"))


def yoyo(dsn: str, *arguments: str, sql: Path = SQL_FOLDER) -> subprocess.CompletedProcess[str]:
    """yoyo's own command, with yoyo.ini beside a folder sql, in this process. yoyo_alone starts a separate process."""
    return yoyo_here(dsn, *arguments, "--config", str(ini_beside(sql)))


def yoyo_alone(dsn: str, *arguments: str, sql: Path = SQL_FOLDER) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "yoyo", *arguments, "--config", str(ini_beside(sql))],
        cwd=CHECKOUT, env={**os.environ, "OSGPROD_DSN": dsn}, capture_output=True, text=True,
    )  # fmt: skip


def ini_beside(sql: Path) -> Path:
    ini = sql.parent / "yoyo.ini"
    if not ini.exists():
        shutil.copy(CHECKOUT / "yoyo.ini", ini)
    return ini


def oids(dsn: str) -> dict[str, int]:
    with connect(dsn) as connection:
        rows = connection.execute(
            "SELECT proname, oid::int FROM pg_proc WHERE pronamespace = to_regnamespace('osgprod')"
        ).fetchall()
    return {row["proname"]: row["oid"] for row in rows}


NEXT_ALIVE = """
CREATE FUNCTION osgprod.alive() RETURNS TABLE (alive timestamptz, version text, more text)
LANGUAGE sql STABLE AS $fn$
    SELECT now(), 'next', 'more'
$fn$;
CREATE FUNCTION osgprod.news() RETURNS text LANGUAGE sql STABLE AS $fn$
    SELECT 'news'
$fn$;
COMMENT ON FUNCTION osgprod.news() IS 'News.';
"""


@pytest.fixture(scope="module")
def released(databases: Databases) -> Iterator[Callable[[Path, str], str]]:
    """Release, on a migrated database of the shared server instead of a separate server."""

    @contextlib.contextmanager
    def ours() -> Iterator[str]:
        with databases.copy("migrated", fresh=True) as dsn:
            yield dsn

    def release_here(sql: Path, version: str) -> str:
        with mock.patch("sql.release.temporary_server", ours):
            return release(sql, version)

    yield release_here


@pytest.fixture(scope="module")
def two_versions(released: Callable[[Path, str], str]) -> Iterator[Path]:
    """A copy of the SQL folder with a snapshot of its functions, and one of the next version, which differs.

    In the next version alive() has another result, tick() another comment, totals() is gone, and news() is new.
    """
    folder = Path(tempfile.mkdtemp(prefix="osgprod-test-"))
    sql = folder / "sql"
    shutil.copytree(SQL_FOLDER, sql, copy_function=shutil.copyfile)
    released(sql, "1.0.0")
    (sql / "functions" / "upkeep" / "alive.sql").write_text(NEXT_ALIVE)
    replace(sql / "functions" / "upkeep" / "tick.sql", "osgprod.tick() IS\n'", "osgprod.tick() IS\n'Next. ")
    (sql / "functions" / "reading" / "totals.sql").unlink()
    replace(sql / "functions" / "grants.sql", " osgprod.totals,", "")
    released(sql, "2.0.0")
    yield sql
    shutil.rmtree(folder)


@pytest.fixture
def two(two_versions: Path, folder: Path) -> Path:
    """The same, to be changed."""
    shutil.copytree(two_versions, folder / "sql", copy_function=shutil.copyfile)
    return folder / "sql"


@pytest.fixture
def of_two(databases: Databases, two_versions: Path) -> Iterator[str]:
    """The DSN of a new database with the functions of the newest of two_versions."""
    databases.prepare("of two", lambda dsn: migrate(dsn, two_versions, say=quietly), of="migrated")
    with databases.copy("of two", fresh=True) as dsn:
        yield dsn


@pytest.fixture
def of_one(databases: Databases, two_versions: Path, folder: Path) -> Iterator[str]:
    """The DSN of a new database with the functions of the version before."""
    before = without_newest(two_versions, folder)
    databases.prepare("of one", lambda dsn: migrate(dsn, before, say=quietly), of="migrated")
    with databases.copy("of one", fresh=True) as dsn:
        yield dsn


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def newest(sql: Path) -> str:
    return snapshots(sql / "migrations")[-1].stem


def without_newest(sql: Path, folder: Path) -> Path:
    """A copy of an SQL folder as it was before its newest snapshot."""
    copy = folder / "before" / "sql"
    shutil.copytree(sql / "migrations", copy / "migrations")
    shutil.copytree(SQL_FOLDER / "functions", copy / "functions")
    last = copy / "migrations" / f"{newest(sql)}.sql"
    last.unlink()
    last.with_suffix(".rollback.sql").unlink()
    return copy


def test_yoyos_own_command_gives_the_same_database_as_migrate(empty: str, of_two: str, two: Path) -> None:
    """Functions with bodies, grants, comments, types, tables: the migrations create all that sql/functions defines."""
    tables = two.parent / "tables" / "sql"
    (tables / "migrations").mkdir(parents=True)
    for path in (two / "migrations").glob("000[1-3]-*.sql"):
        shutil.copy(path, tables / "migrations")
    ended = yoyo_alone(empty, "apply", sql=tables)  # with all files yoyo would split them for 2 s of CPU time
    assert ended.returncode == 0, ended.stderr
    assert newest_applied(empty)[:4] == "0003"
    assert yoyo(empty, "apply", sql=two).returncode == 0
    assert catalog(empty) == catalog(of_two)
    assert migrate(empty, two, say=quietly) == [] and pending(empty, two) == []
    # From the source alone: no migration brings these functions.
    bare = two.parent / "bare"
    shutil.copytree(two, bare, copy_function=shutil.copyfile)
    for path in snapshots(bare / "migrations"):
        depends = re.search(r"^-- depends: .*$", path.read_text(), re.MULTILINE)
        assert depends
        path.write_text(f"{depends[0]}\nDO $$ BEGIN END $$;\n")
    with connect(empty) as connection:
        connection.execute("CREATE DATABASE from_source")
    source = psycopg.conninfo.make_conninfo(empty, dbname="from_source")
    try:
        assert migrate(source, bare, say=quietly)[-1] == WORKING_COPY
        assert catalog(source) == catalog(empty)
    finally:
        with connect(empty) as connection:
            connection.execute("DROP DATABASE from_source WITH (FORCE)")


@pytest.mark.parametrize("revision", ["0004-functions", pytest.param(None, marks=pytest.mark.slow)])
def test_yoyos_plain_backend_gives_the_same_functions(
    empty: str, another: str, two: Path, revision: str | None
) -> None:
    """Without our backend, as CONTRIBUTING.md says: the schema of yoyo's tables must be there before."""
    upto = ["--revision", revision] if revision else []
    assert yoyo(another, "apply", *upto, sql=two).returncode == 0
    with connect(empty) as connection:
        connection.execute("CREATE SCHEMA osgprod_data")
        info = connection.info
        uri = f"postgresql+psycopg://{info.user}@/{info.dbname}?host={info.host}&port={info.port}&schema=osgprod_data"
    ended = yoyo_here(
        empty, "apply", *upto, "--no-config-file", "--batch", "-d", uri, str(two / "migrations")
    )
    assert ended.returncode == 0, ended.stderr
    assert catalog(empty) == catalog(another)
    assert pending(empty, two) == pending(another, two)


def test_migration_outside_of_transactions_works_with_each_runner(another: str, tmp_path: Path) -> None:
    """osgprod migrate, yoyo's command with our backend, and with its own."""
    sql = tmp_path / "sql"
    (sql / "migrations").mkdir(parents=True)
    shutil.copytree(SQL_FOLDER / "functions", sql / "functions")
    for name in ("0001-roles-and-schema", "0002-tables"):
        for path in (SQL_FOLDER / "migrations").glob(f"{name}*"):
            shutil.copy(path, sql / "migrations")
    (sql / "migrations" / "0003-index.sql").write_text(CONCURRENT.replace("0050-functions", "0002-tables"))
    (sql / "migrations" / "0003-index.rollback.sql").write_text(CONCURRENT_ROLLBACK)
    with connect(another) as connection:
        connection.execute("CREATE SCHEMA osgprod_data")
        info = connection.info
        uri = f"postgresql+psycopg://{info.user}@/{info.dbname}?host={info.host}&port={info.port}&schema=osgprod_data"
        plain = ["--no-config-file", "--batch", "-d", uri, str(sql / "migrations")]

        def is_valid() -> bool | None:
            row = connection.execute(LATER).fetchone()
            return row["valid"] if row else None

        for apply, rollback in (
            (lambda: yoyo(another, "apply", sql=sql), lambda: yoyo(another, "rollback", sql=sql)),
            (
                lambda: yoyo_here(another, "apply", *plain),
                lambda: yoyo_here(another, "rollback", "--revision", "0003-index", *plain),
            ),
        ):
            assert apply().returncode == 0 and is_valid() is True
            assert rollback().returncode == 0 and is_valid() is None


def test_index_that_is_made_concurrently_can_be_made_again_after_a_kill() -> None:
    def faults(text: str) -> list[str]:
        made = re.findall(r"^CREATE (?:UNIQUE )?INDEX CONCURRENTLY (\S+)", text, re.MULTILINE)
        dropped = re.findall(r"^DROP INDEX CONCURRENTLY IF EXISTS osgprod_data\.(\S+);", text, re.MULTILINE)
        missing = [name for name in made if name not in dropped]
        return missing + ["transactional"] * (
            "CONCURRENTLY" in text and "\n-- transactional: false\n" not in f"\n{text}"
        )

    assert faults(CONCURRENT) == faults(CONCURRENT_ROLLBACK) == []
    assert faults("CREATE INDEX CONCURRENTLY x ON osgprod_data.slices (cluster);\n") == ["x", "transactional"]
    assert {path.name: faults(path.read_text()) for path in MIGRATIONS if faults(path.read_text())} == {}


def test_rollback_of_the_newest_snapshot_gives_the_previous_functions(of_one: str, two: Path) -> None:
    with connect(of_one) as connection:
        assert call(connection, "totals") == []
    previous, kept = catalog(of_one), oids(of_one)
    assert yoyo(of_one, "apply", sql=two).returncode == 0
    assert catalog(of_one) != previous
    assert yoyo(of_one, "rollback", sql=two).returncode == 0
    assert catalog(of_one) == previous
    listed = dict(line.split()[1::-1] for line in yoyo(of_one, "list", sql=two).stdout.splitlines()[2:])
    files = {
        path.stem for path in (two / "migrations").glob("[0-9]*[!k].sql") if ".rollback" not in path.name
    }
    assert listed == {**dict.fromkeys(files, "A"), newest(two): "U"}
    changed = {name for name, oid in oids(of_one).items() if kept[name] != oid}
    assert changed == {"alive", "totals"}, "all others were replaced in place"
    assert yoyo(of_one, "apply", sql=two).returncode == 0
    assert migrate(of_one, two, say=quietly) == []


FORMER, RELEASE = [path.stem for path in snapshots()][-2:]


def prepare_revision(databases: Databases, name: str, revision: str, of: str | None = None) -> None:
    """Prepares a database with the migrations up to one."""

    def prepare(dsn: str) -> None:
        ended = yoyo(dsn, "apply", "--revision", revision)
        assert ended.returncode == 0, ended.stderr

    databases.prepare(name, prepare, of=of)


@pytest.fixture
def of_0_14_0(databases: Databases) -> Iterator[str]:
    """The DSN of a new database of version 0.14.0."""
    prepare_revision(databases, "0.14.0", "0053-functions")
    with databases.copy("0.14.0", fresh=True) as dsn:
        yield dsn


@pytest.fixture
def former(databases: Databases, of_0_14_0: str) -> Iterator[str]:
    """The DSN of a new database of the former release."""
    prepare_revision(databases, "former release", FORMER, of="0.14.0")
    with databases.copy("former release", fresh=True) as dsn:
        yield dsn


@pytest.fixture
def taken_back(databases: Databases, former: str) -> Iterator[str]:
    """The DSN of a database with work, whose release has been taken back as docs/operations.md says."""

    def prepare(dsn: str) -> None:
        assert yoyo(dsn, "apply", "--revision", RELEASE).returncode == 0
        fill(dsn)
        while newest_applied(dsn) != FORMER:
            ended = yoyo(dsn, "rollback")
            assert ended.returncode == 0, ended.stderr

    databases.prepare("taken back", prepare, of="former release")
    with databases.copy("taken back", fresh=True) as dsn:
        yield dsn


def test_functions_of_the_former_release_work_when_a_release_is_taken_back(
    taken_back: str, former: str
) -> None:
    """Not after the snapshot alone: its functions are for the former tables."""
    wanted, functions = [
        {name: text for (kind, name), text in catalog(dsn).items() if kind in ("function", "enum")}
        for dsn in (former, taken_back)
    ]
    assert functions == wanted
    with connect(taken_back) as connection:
        names = connection.execute(
            "SELECT proname AS name FROM pg_proc WHERE pronamespace = 'osgprod'::regnamespace"
            " AND pronargs = pronargdefaults AND has_function_privilege('osgprod_operator', oid, 'EXECUTE')"
        ).fetchall()
        assert {"tick", "health", "alive", "progress"} <= {row["name"] for row in names}
        for row in names:
            call(connection, row["name"])
        World(connection, taken_back).set(lease_s=7200)
    check_filled(taken_back)


def test_shim_of_the_former_release_works_when_a_release_is_taken_back(taken_back: str, folder: Path) -> None:
    version = source_of(SQL_FOLDER / "migrations" / f"{newest_applied(taken_back)}.sql")[0]
    port = free_port()
    shim = subprocess.Popen(
        [sys.executable, "-m", "shim", "serve", "--port", str(port)],
        cwd=old_code(f"{last_commit(version)}", folder),
        env={**os.environ, "OSGPROD_DSN": taken_back, "OSGPROD_DOCUMENT_ROOT": str(folder)},
        stderr=subprocess.DEVNULL,
    )
    (folder / "p").mkdir()
    shutil.copy(CHECKOUT / "worker" / "osgprod_work.bash", folder / "p")
    job: dict[str, str | int] = {"project": "p", "cluster": 1, "process": 7, "magic": "m"}
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/osgprod", timeout=PATIENCE_S) as client:

            def is_well() -> bool:
                with contextlib.suppress(httpx.TransportError):
                    return client.get("healthz").text == "ok\n"
                return False

            wait_until(is_well, "healthz names no version that is older")
            work = client.get("workscript.bash", params=job)
            assert work.headers["Osgprod-Status"] == "assigned", work.text
            job["token"] = work.headers["Osgprod-Token"]
            report = client.get("workscript.exit", params={**job, "exitcode": 0})
            assert (report.status_code, report.headers["Osgprod-Status"]) == (200, "done")
    finally:
        shim.terminate()
        shim.wait(PATIENCE_S)


def last_commit(version: str) -> str:
    """The last commit of main that has this version."""
    found = subprocess.run(
        ["git", "log", "-1", "--format=%H^", f"-Sversion = \"{version}\"", "--", "pyproject.toml"],
        cwd=CHECKOUT, capture_output=True, text=True,
    )  # fmt: skip
    if not found.stdout:
        pytest.skip("the history is not here")
    return found.stdout.strip()


def test_first_snapshot_is_rolled_back_to_no_functions(empty: str, sql: Path) -> None:
    assert yoyo(empty, "apply", "--revision", "0004-functions", sql=sql).returncode == 0
    assert len(oids(empty)) > 100
    assert yoyo(empty, "rollback", sql=sql).returncode == 0
    assert oids(empty) == {} and ("schema", "osgprod") not in catalog(empty)


def test_present_version_has_a_snapshot_of_sql_functions() -> None:
    """Migrations = source at a release. From make release-sql on until the version is raised, this one watches."""
    made = [path for path in snapshots() if source_of(path)[0] == present_version()]
    if not made:
        pytest.skip(f"version {present_version()} has no snapshot yet: make release-sql makes it")
    assert source_of(made[-1])[1] == source_digest(), "sql/functions is newer: run make release-sql"


def test_release_writes_one_snapshot_a_version(sql: Path, released: Callable[[Path, str], str]) -> None:
    path = sql / "functions" / "upkeep" / "tick.sql"
    path.write_text(path.read_text() + "\n-- newer than the last snapshot\n")
    assert "rollback gives the functions of 0" in released(sql, "1.0.0")
    assert released(sql, "1.0.0").endswith("is of these functions already")
    first = newest(sql)
    path.write_text(path.read_text() + "\n-- a remark\n")
    released(sql, "1.0.0")
    assert newest(sql) == first, "the version was not released, so its snapshot is replaced"
    path.write_text(path.read_text() + "\n-- another remark\n")
    released(sql, "1.1.0")
    assert int(newest(sql)[:4]) == int(first[:4]) + 1
    text = (sql / "migrations" / f"{newest(sql)}.sql").read_text()
    assert text.startswith("-- Generated by `make release-sql`") and f"-- depends: {first}\n" in text


@pytest.mark.slow
def test_release_takes_a_server_of_its_own(sql: Path, released: Callable[[Path, str], str]) -> None:
    """As make release-sql does; the other tests migrate a database of the shared server, for a second less."""
    path = sql / "functions" / "upkeep" / "tick.sql"
    path.write_text(path.read_text() + "\n-- newer than the last snapshot\n")
    assert "rollback gives the functions of 0" in release(sql, "1.0.0")
    assert released(sql, "1.0.0").endswith("is of these functions already")


def test_snapshot_that_was_applied_is_not_applied_to_a_working_copy_again(of_two: str, two: Path) -> None:
    path = two / "functions" / "upkeep" / "tick.sql"
    path.write_text(path.read_text() + "\n-- a remark\n")
    assert pending(of_two, two) == [WORKING_COPY]
    assert migrate(of_two, two, say=quietly) == [WORKING_COPY]
    assert migrate(of_two, two, say=quietly) == [] == pending(of_two, two)


def old_code(commit: str, folder: Path) -> Path:
    """The product as it was at a commit of main."""
    if not (CHECKOUT / ".git").exists():
        pytest.skip("this is not a clone, so it lacks the code of former versions")
    archive = subprocess.run(["git", "archive", commit, "shim", "sql"], cwd=CHECKOUT, capture_output=True)
    if archive.returncode:
        pytest.skip(f"the clone is shallow: commit {commit} is not in it")
    target = folder / commit
    target.mkdir()
    subprocess.run(["tar", "x", "-C", str(target)], input=archive.stdout, check=True)
    return target


def run_old(code: Path, dsn: str, statement: str = "migrate(dsn)") -> subprocess.CompletedProcess[str]:
    program = f"from shim.database import migrate, connect, pending; dsn = {dsn!r}; {statement}"
    return subprocess.run([sys.executable, "-c", program], cwd=code, capture_output=True, text=True)


BOTH_REFUSE = """
for call in (migrate, pending):
    try:
        print("not refused", call(dsn))
    except Exception as refusal:
        print(refusal)
"""


def fill(dsn: str) -> None:
    """A project with a file, whose first slice is done and whose second one is leased."""
    with connect(dsn) as connection:
        world = World(connection, dsn).with_project("p")
        world.add_file(5)
        assert world.checkout(0)["status"] == world.checkout(1)["status"] == "assigned"
        assert world.report(0)["status"] == "done"


def check_filled(dsn: str) -> None:
    """The same project goes on to its end, and is consistent."""
    with connect(dsn) as connection:
        world = World(connection, dsn)
        assert world.progress()["blocks_done"] == 1
        assert world.report(1)["status"] == "done"
        for process in range(2, 5):
            assert world.checkout(process)["status"] == "assigned"
            assert world.report(process)["status"] == "done"
        assert world.checkout(9)["status"] == "no-work"
        assert world.progress()["blocks_done"] == 5
        assert call(connection, "verify", project="p", deep=True) == []


@pytest.mark.parametrize(
    "commit, upto",
    [
        pytest.param("b2ac3d5", "0001", marks=pytest.mark.slow),
        pytest.param("b2ac3d5", "0002", marks=pytest.mark.slow),
        pytest.param("21acbe4", "0003", marks=pytest.mark.slow),
        pytest.param("b2ac3d5", "0003", marks=pytest.mark.slow),  # as below, with slices in all states
    ],
    ids=["0001 alone", "0002", "0003-a-file-is-work-once", "0003-once-and-due: version 0.9.0"],
)
def test_earlier_states_are_upgraded_with_what_they_hold(
    empty: str, migrated: str, folder: Path, commit: str, upto: str
) -> None:
    code = old_code(commit, folder)
    for path in (code / "sql" / "migrations").glob("*.sql"):
        if path.name[:4] > upto:
            path.unlink()
    if upto == "0001":  # its functions need tables
        for path in (code / "sql" / "functions").glob("*.sql"):
            path.unlink()
    ended = run_old(code, empty)
    assert ended.returncode == 0, ended.stderr
    if upto == "0003":
        fill(empty)
    assert pending(empty)
    migrate(empty, say=quietly)
    assert catalog(empty) == catalog(migrated)
    assert migrate(empty, say=quietly) == [] == pending(empty)
    if upto == "0003":
        check_filled(empty)


def test_state_that_was_never_released_is_refused_by_name(empty: str, folder: Path) -> None:
    code = old_code("7f0f748", folder)  # its 0002 was edited afterwards
    assert run_old(code, empty).returncode == 0
    before = state(empty)
    with pytest.raises(DatabaseError, match=r"migration 0002-tables\.sql was edited") as caught:
        migrate(empty, say=quietly)
    assert "before version 0.9.0" in caught.value.hint
    assert state(empty) == before


def test_older_checkout_is_refused_and_changes_nothing(of_two: str, two: Path) -> None:
    before = state(of_two)
    older = without_newest(two, two.parent)
    (older / "functions" / "upkeep" / "tick.sql").write_text("")
    for attempt in (migrate, pending):
        with pytest.raises(DatabaseError, match=f"checkout is older.*{newest(two)}") as caught:
            attempt(of_two, older)
        assert "update" in caught.value.hint
    ended = yoyo(of_two, "rollback", sql=older)
    assert ended.returncode == 2 and "this checkout is older" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert state(of_two) == before


def test_program_of_version_0_9_0_refuses_this_database(migrated: str, folder: Path) -> None:
    before = state(migrated)
    ended = run_old(old_code("b2ac3d5", folder), migrated, f"\n{BOTH_REFUSE}")
    assert (ended.returncode, ended.stderr) == (0, "")
    refusal = "this program is older than the database, which is of version 0.10.0 or later"
    assert ended.stdout.count(refusal) == 2, ended.stdout
    assert state(migrated) == before


def test_renamed_migration_is_refused_by_both_names(of_two: str, two: Path) -> None:
    before = state(of_two)
    for suffix in (".sql", ".rollback.sql"):
        path = two / "migrations" / f"{newest(two)}{suffix}"
        path.rename(path.with_name(f"{newest(two)[:4]}-other{suffix}"))
    with pytest.raises(DatabaseError, match=f"{newest_applied(of_two)} .* another name here: .*-other"):
        migrate(of_two, two, say=quietly)
    assert state(of_two) == before


def newest_applied(dsn: str) -> str:
    with connect(dsn) as connection:
        row = connection.execute("SELECT max(migration_id) AS m FROM osgprod_data._yoyo_migration").fetchone()
    assert row
    return str(row["m"])


def test_objects_of_others_survive_an_upgrade(of_one: str, two: Path) -> None:
    with connect(of_one) as connection:
        connection.execute("DROP ROLE IF EXISTS grafana; CREATE ROLE grafana")
        connection.execute(
            "CREATE VIEW board AS SELECT * FROM osgprod.health();"
            "CREATE FUNCTION osgprod.mine() RETURNS int LANGUAGE sql AS 'SELECT 1';"
            "GRANT EXECUTE ON FUNCTION osgprod.health, osgprod.alive, osgprod.totals TO grafana"
        )
    said: list[str] = []
    try:
        migrate(of_one, two, say=said.append)
        assert "kept, though it is not ours: function osgprod.mine() of postgres" in said
        assert "function osgprod.totals is gone, and with it the grant to grafana" in said
        with connect(of_one) as connection:
            connection.execute("SELECT * FROM board")
            rows = connection.execute(
                "SELECT has_function_privilege('grafana', 'osgprod.health(text)', 'EXECUTE') AS kept,"
                " has_function_privilege('grafana', 'osgprod.alive()', 'EXECUTE') AS kept_though_changed,"
                " osgprod.mine() AS mine"
            ).fetchall()
        assert rows == [{"kept": True, "kept_though_changed": True, "mine": 1}]
        assert migrate(of_one, two, say=quietly) == []
    finally:
        with connect(of_one) as connection:
            connection.execute("DROP OWNED BY grafana; DROP ROLE grafana")


@pytest.mark.parametrize("how", ["migrate", "yoyo"])
def test_object_that_depends_on_a_changed_function_is_named_and_nothing_changes(
    of_one: str, two: Path, how: str
) -> None:
    with connect(of_one) as connection:
        connection.execute("CREATE VIEW board AS SELECT * FROM osgprod.totals()")
    unchanged = state(of_one)
    if how == "migrate":
        with pytest.raises(
            DatabaseError, match=r"view public.board depends on function osgprod\.totals"
        ) as caught:
            migrate(of_one, two, say=quietly)
        assert caught.value.hint.startswith("drop them")
    else:
        ended = yoyo(of_one, "apply", sql=two)
        assert (
            ended.returncode == 2 and "view public.board depends on function osgprod.totals" in ended.stderr
        )
        assert "Traceback" not in ended.stderr
    assert state(of_one) == unchanged
    with connect(of_one) as connection:
        assert connection.execute("SELECT * FROM board").fetchall() == []
        connection.execute("DROP VIEW board")
    migrate(of_one, two, say=quietly)


def test_function_of_somebody_else_in_the_place_of_ours_is_named(migrated: str) -> None:
    with connect(migrated) as connection:
        connection.execute(
            "DROP FUNCTION osgprod.tick(); CREATE FUNCTION osgprod.tick() RETURNS int LANGUAGE sql AS 'SELECT 1'"
        )
    with pytest.raises(DatabaseError, match=r"osgprod\.tick\(\) \(belongs to postgres\)") as caught:
        migrate(migrated, say=quietly)
    assert "OWNER TO osgprod_owner" in caught.value.hint


def test_changed_type_is_made_anew_with_the_functions_that_use_it(migrated: str, sql: Path) -> None:
    kind = "CREATE TYPE osgprod.report_call AS (\n"
    replace(sql / "functions" / "types.sql", kind, f"{kind}    extra text,\n")
    assert migrate(migrated, sql, say=quietly) == [WORKING_COPY]
    with connect(migrated) as connection:
        rows = connection.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = 'osgprod.report_call'::regclass AND attnum = 1"
        ).fetchall()
    assert rows == [{"attname": "extra"}]
    assert migrate(migrated, sql, say=quietly) == []


def slices_of(dsn: str, tables: str) -> list[dict[str, Any]]:
    with connect(dsn) as connection:
        return connection.execute(
            "SELECT p.name, s.rawdata_id, s.block1, s.block2, s.follows, s.state, s.failures, s.faults, s.exit_codes,"
            f" s.cluster, s.process, s.nstart, s.opened_at, s.due_at FROM ({tables}) s"
            " JOIN osgprod_data.projects p USING (project_id) ORDER BY 1, 2, 3"
        ).fetchall()


COLUMNS = (
    "SELECT project_id, rawdata_id, block1, block2, follows, state, failures, faults, exit_codes, cluster, process,"
    " nstart, opened_at, due_at FROM osgprod_data."
)


@pytest.mark.slow
def test_slices_in_all_states_outlive_the_upgrade_from_0_9_0_and_a_rollback_of_all_migrations_leaves_nothing(
    empty: str, another: str, migrated: str, folder: Path
) -> None:
    """Functions are rolled back first, on tables that are still the later ones; then the tables, under them."""
    ended = run_old(old_code("b2ac3d5", folder), empty)
    assert ended.returncode == 0, ended.stderr
    with connect(empty) as connection:
        world = (
            World(connection, empty)
            .with_project("ended")
            .with_project("p", max_failures=2, backoff_s=3600, max_fast_failures=99)
        )
        world.add_file(2, project="ended")
        for process in (0, 1):
            world.checkout(process, project="ended")
            world.report(process, project="ended")
        call(connection, "archive", project="ended")
        connection.execute(
            "UPDATE osgprod_data.reports SET reported_at = reported_at - interval '1 h'"
        )  # in place of waiting
        while call(connection, "archive", project="ended")[0]["more"]:
            pass
        world.add_file(9, seqno=2)
        call(connection, "set_project", project="p", settings='{"maxblockspercore": 2}')
        for process, code in enumerate((0, 1, 137, None, 1)):
            world.checkout(process)
            if code is not None:
                world.report(process, code)  # done, in a backoff, ready, leased
        world.set(max_failures=1)
        world.checkout(5, cpus=1)
        world.report(5, 1)  # split
        world.set(maxblockspercore=1)
        connection.execute(
            "UPDATE osgprod_data.idle_slices SET not_before = now() WHERE not_before < 'infinity'"
        )
        world.checkout(6)
        world.report(6, 1)  # quarantined
    before = slices_of(empty, f"{COLUMNS}slices UNION ALL {COLUMNS}archived_slices")
    assert {row["state"] for row in before} == {"done", "leased", "ready", "quarantined"}
    assert pending(empty)
    migrate(empty, say=quietly)
    assert catalog(empty) == catalog(migrated)
    assert migrate(empty, say=quietly) == [] == pending(empty)
    after = slices_of(empty, f"{COLUMNS}slices")
    assert [{**row, "cluster": row["cluster"] or 0, "process": row["process"] or 0, "nstart": row["nstart"] or 0}
            for row in before] == after  # fmt: skip
    with connect(empty) as connection:
        world = World(connection, empty)
        for name in ("p", "ended"):
            assert call(connection, "verify", project=name, deep=True) == []
        assert world.progress("ended")["state"] == "draining"
        assert world.checkout(0, project="ended")["status"] == "completed"
        assert world.checkout(7)["status"] == "assigned", "work goes on"
        assert world.report(7)["status"] == "done"
        kept = slices_of(empty, f"{COLUMNS}slices")
    ended = yoyo(empty, "rollback", "--revision", "0005-job-keys")
    assert ended.returncode == 0, ended.stderr
    assert [{**row, "cluster": row["cluster"] or 0, "process": row["process"] or 0, "nstart": row["nstart"] or 0}
            for row in slices_of(empty, f"{COLUMNS}slices")] == kept  # fmt: skip
    with connect(empty) as connection:
        row = connection.execute("SELECT count(*) AS n FROM osgprod_data.idle_slices").fetchone()
        assert row == {"n": sum(row["state"] in ("ready", "quarantined") for row in kept)}
        row = connection.execute(
            "SELECT has_table_privilege('osgprod_operator', 'osgprod_data.idle_slices', 'SELECT') AS granted"
        ).fetchone()
        assert row == {"granted": True}, "on a table that was gone when the functions were restored"
        World(connection, empty).add_file(1, seqno=3)
    assert yoyo(another, "apply", "--revision", "0004-functions").returncode == 0
    functions = [
        {name: text for (kind, name), text in catalog(dsn).items() if kind == "function"}
        for dsn in (empty, another)
    ]
    assert functions[0] == functions[1]
    ended = yoyo(empty, "rollback", "--all")
    assert ended.returncode == 0, ended.stderr
    assert set(catalog(empty)) <= {("schema", "osgprod_data"), ("relation", "osgprod_data.migrated_files")}
    assert migrate(empty, say=quietly)
    assert works(empty)


def test_merges_in_all_states_outlive_the_upgrade_from_0_14_0(of_0_14_0: str, migrated: str) -> None:
    """Its merges got their inputs when a job got them, and kept those of a former attempt."""
    files = ("planned", "planned again", "lost", "leased", "in backoff", "waiting", "done")
    merged = json.dumps([{"kind": "a", "url": "https://s/a", "bytes": 1, "adler32": "1"}])
    with connect(of_0_14_0) as connection:
        world = World(connection, of_0_14_0).with_project(
            "p", merge_by="file", wait_s=1, max_fast_failures=99
        )
        number = dict(zip(files, range(1, 8), strict=True))
        recycled = {"project": "p", "states": ["done"]}
        for seqno in number.values():
            world.add_file(1, seqno=seqno)
        for process in range(len(files)):
            assert world.checkout(process)["task"] == "slice"
            world.report(process)
        world.tick()
        for process in number.values():
            assert world.checkout(10 + process)["filename"] == f"000001_{process:03d}"
        world.report(10 + number["done"], outputs_list=merged)
        world.report(10 + number["in backoff"], 1)
        for name in ("planned again", "waiting"):
            call(connection, "recycle", path=f"%_{number[name]:03d}.evio", **recycled)
        for process in (20, 21):
            assert world.checkout(process)["task"] == "slice"
        world.report(20)
        world.tick()
        for name in ("planned", "lost"):
            connection.execute(
                "UPDATE osgprod_data.merges SET due_at = now() - interval '1 s' WHERE seqno = %s",
                [number[name]],
            )
        connection.execute("UPDATE osgprod_data.projects SET next_due_at = '-infinity'")
        world.tick()
        assert states_of_merges(connection) == [
            "ready",
            "ready",
            "ready",
            "leased",
            "ready",
            "waiting",
            "done",
        ]
        connection.execute(
            "UPDATE osgprod_data.merges SET inputs = NULL, nstart = 0 WHERE seqno = %s", [number["planned"]]
        )
    migrate(of_0_14_0, say=quietly)
    assert catalog(of_0_14_0) == catalog(migrated)
    with connect(of_0_14_0) as connection:
        world = World(connection, of_0_14_0)
        assert states_of_merges(connection) == [
            "ready",
            "ready",
            "ready",
            "leased",
            "ready",
            "waiting",
            "done",
        ]
        assert world.checkout(30)["status"] == "wait", "none has its inputs yet"
        for name in ("lost", "leased"):
            assert world.report(10 + number[name], outputs_list=merged)["status"] == "done"
        world.tick()
        assert call(connection, "verify", project="p", deep=True) == []
        for process, name in ((31, "planned"), (32, "planned again")):
            assert world.checkout(process)["filename"] == f"000001_{number[name]:03d}"
            assert world.report(process, outputs_list=merged)["status"] == "done"
        connection.execute("UPDATE osgprod_data.merges SET not_before = now() WHERE is_ready IS FALSE")
        world.report(21)
        world.tick()
        for process, name in ((33, "in backoff"), (34, "waiting")):
            assert world.checkout(process)["filename"] == f"000001_{number[name]:03d}"
            assert world.report(process, outputs_list=merged)["status"] == "done"
        assert call(connection, "verify", project="p", deep=True) == []
        assert world.progress()["is_complete"]


def states_of_merges(connection: psycopg.Connection[Any]) -> list[str]:
    rows = call(connection, "list_merges", project="p")
    return [row["state"] for row in rows if row["state"] != "superseded"]
