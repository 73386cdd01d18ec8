"""One PostgreSQL server for each worker of the run, and on it a database for each test."""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import psycopg
import pytest
from pytest_postgresql import factories

from shim.database import call
from shim.local.embedded import NOT_DURABLE, SUPERUSER, Server
from tests import prepared
from tests.databases import Databases
from tests.support import CHECKOUT, LiveShim, Run, World, run_osgprod, server_folder, server_logs

LOGS = pytest.StashKey[dict[Path, int]]()
LOG_LINES = 30  # that a failure shows of each

# Started with & by a script, or with nohup, we and all programs that the tests start would not hear Ctrl-C or a hangup:
# a signal that is ignored when a bash script starts can't be trapped there.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # these Python ignores itself
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)

# What drives a browser is installed by make test-browser alone.
collect_ignore = [] if importlib.util.find_spec("playwright") else ["browser"]

# Containers often forbid Python to keep what it compiled. Then each worker would compile all tests in each run, which
# takes 5 s of a processor, and each program that a test starts would compile what it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        prepared.begin()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):
        prepared.end()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """What -m leaves out as a whole is not even imported."""
    is_left_out = f"not {collection_path.name}" in config.getoption("markexpr")
    return True if is_left_out and collection_path.parent == CHECKOUT / "tests" else None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Collect the tests without looking for garbage: there is none, and what is there now stays."""
    gc.disable()
    try:
        import_tests(session)
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def import_tests(session: pytest.Session) -> None:
    """In a new checkout, let each worker of a whole run compile another part of the tests for all of them."""
    worker = getattr(session.config, "workerinput", None)
    if worker is None or session.config.args != session.config.getini("testpaths"):
        return
    files = sorted(
        path
        for path in CHECKOUT.glob("tests/*/test_*.py")
        if not pytest_ignore_collect(path.parent, session.config) and path.parent.name not in collect_ignore
    )
    first = len(files) * int(worker["workerid"].removeprefix("gw")) // worker["workercount"]
    for path in files[first:] + files[:first]:
        with contextlib.suppress(Exception):  # pytest imports it again, and reports it
            importlib.import_module(".".join(path.relative_to(CHECKOUT).with_suffix("").parts))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes takes many on a busy machine."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(3600))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[LOGS] = server_logs()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure shows what the servers have written to their logs since the test began, and how busy the machine is."""
    report = yield
    if report.failed:
        load = ", ".join(f"{number:.1f}" for number in os.getloadavg())
        report.sections.append(("machine", f"load {load} on {os.cpu_count()} processors"))
        for path in server_logs():
            with path.open("rb") as log, contextlib.suppress(OSError):
                log.seek(item.stash.get(LOGS, {}).get(path, 0))
                lines = log.read().decode(errors="replace").splitlines()
                if lines:
                    report.sections.append((f"end of {path}", "\n".join(lines[-LOG_LINES:])))
    return report


@pytest.fixture(scope="session", autouse=True)
def compiled_templates() -> Iterator[None]:
    """Each worker compiles the templates of pages once; each shim would do it again for 0.15 s of CPU time."""
    compile_one = jinja2.Environment.compile
    kept: dict[tuple[Any, ...], Any] = {}

    def compiled(self: jinja2.Environment, source: str, *arguments: Any) -> Any:
        key = source, *arguments
        if key not in kept:
            kept[key] = compile_one(self, source, *arguments)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jinja2.Environment, "compile", compiled)
        yield


@pytest.fixture(scope="session")
def our_server() -> Iterator[Server]:
    folder = server_folder("test")
    prepared.put_data(folder)
    # Autovacuum is on, as doctor demands, but never comes: plans would depend on when it does.
    settings = {**NOT_DURABLE, "max_connections": "200", "autovacuum_naptime": "2000000"}
    server = Server(folder, settings)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def address(our_server: Server) -> SimpleNamespace:
    """Where pytest-postgresql finds our server, and the database of which it makes the template."""
    return SimpleNamespace(
        host=our_server.dsn.split()[0].removeprefix("host="),
        port=5432,
        user=SUPERUSER,
        password="",
        options="",
        maintenance_dbname="postgres",
        template_dbname=prepared.MIGRATED,
    )


template = factories.postgresql_noproc(dbname="template", depends_on="address")


@pytest.fixture(scope="session")
def databases(our_server: Server, template: Any) -> Iterator[Databases]:
    databases = Databases(our_server.dsn, template.template_dbname)
    yield databases
    databases.close()


@pytest.fixture
def dsn(databases: Databases, request: pytest.FixtureRequest) -> Iterator[str]:
    """A migrated database; with the project "p" for tests that name world or a fixture that needs it."""
    of = "world" if "world" in request.fixturenames else "migrated"
    with databases.copy(of, fresh=request.node.get_closest_marker("fresh_database") is not None) as dsn:
        yield dsn


@pytest.fixture
def migrated(databases: Databases) -> Iterator[str]:
    """The DSN of a new migrated database; a test of migrations that begins with it need not migrate first."""
    with databases.copy("migrated", fresh=True) as dsn:
        yield dsn


@pytest.fixture
def empty(databases: Databases) -> Iterator[str]:
    """The DSN of a new database with nothing in it."""
    with databases.empty() as dsn:
        yield dsn


@pytest.fixture
def another(databases: Databases) -> Iterator[str]:
    """The DSN of a second new database."""
    with databases.empty() as dsn:
        yield dsn


@pytest.fixture
def db(
    databases: Databases, dsn: str, request: pytest.FixtureRequest
) -> Iterator[psycopg.Connection[dict[str, Any]]]:
    """A connection as the superuser; at the end everything is recounted."""
    deep = request.node.get_closest_marker("history_by_hand") is None
    with databases.session(dsn) as connection:
        yield connection
    with databases.session(dsn) as connection:
        for row in connection.execute(WITH_WORK).fetchall():
            found = call(connection, "verify", project=row["name"], deep=deep)
            # What a job said of its events may contradict the index; the tables may not contradict each other.
            assert [fault for fault in found if not fault["fault"].startswith("done, but ")] == []


# In the others there is nothing to recount.
WITH_WORK = """
    SELECT p.name FROM osgprod_data.projects p
     WHERE EXISTS (SELECT FROM osgprod_data.loaded_files x WHERE x.project_id = p.project_id)
        OR EXISTS (SELECT FROM osgprod_data.slices x WHERE x.project_id = p.project_id)
        OR EXISTS (SELECT FROM osgprod_data.attempts x WHERE x.project_id = p.project_id)
        OR EXISTS (SELECT FROM osgprod_data.reports x WHERE x.project_id = p.project_id)"""


@pytest.fixture
def world(db: psycopg.Connection[dict[str, Any]], dsn: str) -> World:
    """The project "p" with the magic "m", no files, and short ways to ask and report as a job."""
    world = World(db, dsn)
    has_project = db.execute("SELECT FROM osgprod_data.projects WHERE name = 'p'").fetchall()
    return world if has_project else world.with_project("p")


@pytest.fixture
def operator(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """The world whose database the operator's commands and Python calls use in this process."""
    monkeypatch.setenv("OSGPROD_DSN", world.dsn)
    monkeypatch.delenv("OSGPROD_MAGIC", raising=False)
    return world


@pytest.fixture
def run(operator: World) -> Run:
    """Runs a command on the test's database: run("status", "p").output."""
    return run_osgprod


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of the shim wait for a connection no longer than it takes to see that there is none."""
    monkeypatch.setattr("shim.database.CONNECTION_WAIT_S", 0.5)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the server's and everybody's jobs can enter, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="osgprod-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def shim(world: World, folder: Path) -> Iterator[LiveShim]:
    """The shim on real HTTP, with the work script of this repository for project "p"."""
    # One connection has to learn the functions; a second one would, too, which costs more than a test's requests.
    with LiveShim(world.dsn, folder / "www", OSGPROD_POOL_SIZE="1") as live:
        live.add_template("p")
        yield live
