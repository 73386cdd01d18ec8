"""Uses a recognisable magic in all ways, then looks for it everywhere."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.rows import dict_row

from shim.cli import osgprod as command_line
from shim.database import call, connect
from shim.local.embedded import Server
from tests.support import CHECKOUT, PATIENCE_S, LiveShim, Run, World, run_osgprod

MAGIC, OLD_MAGIC, GUESS = "zaubertrank-4711-geheim", "zaubertrank-0815-alt", "zaubertrank-9999-geraten"
SECRET = "zaubertrank"
LOGIN = "test_logged_login"


class Watch:
    """Looks, over and over, at all new command lines of this machine and at what the database's sessions show."""

    def __init__(self, dsn: str) -> None:
        self._dsn, self._stop = dsn, threading.Event()
        self.command_lines: set[str] = set()
        self.queries: set[str] = set()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        before = set(Path("/proc").iterdir())  # they are not the test's, and there may be hundreds
        with connect(self._dsn) as db:
            while not self._stop.wait(0.01):
                for entry in set(Path("/proc").iterdir()) - before:
                    with contextlib.suppress(OSError):
                        words = (entry / "cmdline").read_bytes().split(b"\0")
                        self.command_lines.add(b" ".join(words).decode(errors="replace"))
                rows = db.execute(
                    "SELECT query FROM pg_stat_activity WHERE query LIKE '%osgprod%'"
                ).fetchall()
                self.queries.update(row["query"] for row in rows)


def run(arguments: list[str], folder: Path, stdin: str | None = None, **environment: str) -> str:
    """Runs a command and returns all that it says."""
    done = subprocess.run(
        arguments, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, input=stdin,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(CHECKOUT), **environment},
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.fixture
def served(world: World, folder: Path) -> Iterator[tuple[str, Path]]:
    """``osgprod serve`` as its own process, with its own login, on the world's database."""
    if not world.db.execute("SELECT FROM pg_roles WHERE rolname = %s", [LOGIN]).fetchall():
        world.db.execute(f"CREATE ROLE {LOGIN} LOGIN IN ROLE osgprod_worker")
    log = folder / "serve.log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "shim", "serve", "--port", "0"], cwd=folder,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTHONUNBUFFERED": "1",
                 "OSGPROD_DSN": f"{world.dsn} user={LOGIN}", "OSGPROD_DOCUMENT_ROOT": str(folder / "www")},
            stdout=subprocess.PIPE, stderr=file,
        )  # fmt: skip
        assert server.stdout is not None
        line = server.stdout.readline().decode()
        assert line.startswith("serving "), line
        yield line.split()[1].rstrip(","), log
        server.terminate()
        server.wait(PATIENCE_S)
        server.stdout.close()


def test_magic_is_in_no_log_process_list_file_or_answer(
    world: World, folder: Path, our_server: Server, served: tuple[str, Path]
) -> None:
    url, log = served
    server_log = our_server.folder / "server.log"
    begin = server_log.stat().st_size
    world.add_file(9)
    (folder / "www" / "p").mkdir(parents=True)
    (folder / "www" / "p" / "osgprod_work.bash").write_text(
        "# source:\nenv >env.txt\nps axww >ps.txt || true\necho done\n"
    )
    (folder / "magic").write_text(MAGIC + "\n")
    osgprod = [sys.executable, "-m", "shim"]
    said: list[str] = []
    with Watch(world.dsn) as watch:
        # The operator gives it in each of the three ways.
        dsn = {"OSGPROD_DSN": world.dsn}
        said.append(run([*osgprod, "project", "set-magic", "p"], folder, OSGPROD_MAGIC=OLD_MAGIC, **dsn))
        said.append(
            run(
                [*osgprod, "project", "set-magic", "p", "--magic-file", "-"],
                folder,
                stdin=GUESS + "\n",
                **dsn,
            )
        )
        file = str(folder / "magic")
        said.append(
            run(
                [*osgprod, "project", "set-magic", "p", "--magic-file", file, "--overlap", "60"],
                folder,
                **dsn,
            )
        )
        assert said[-1].startswith("project p has a new magic")
        said.append(run_osgprod("project", "show", "p", env=dsn).output)
        # Jobs work with it, from the environment and from a file; one has a wrong one.
        job = {"OSGPROD_URL": url, "OSGPROD_PROJECT": "p", "OSGPROD_TRIES": "1", "OSGPROD_MAX_WAIT_S": "0"}
        exec_script = str(CHECKOUT / "condor" / "osgprod_exec.sh")
        said.append(run(["bash", exec_script, "3", "0"], folder, OSGPROD_MAGIC=MAGIC, **job))
        assert "status 200" in said[-1] or "done" in said[-1], said[-1]
        said.append(run(["bash", exec_script, "3", "1"], folder, OSGPROD_MAGIC_FILE=file, **job))
        said.append(run(["bash", exec_script, "3", "2"], folder, OSGPROD_MAGIC="zaubertrank-falsch", **job))
        assert "magic is wrong" in said[-1]
        # Requests of every kind, right, wrong and broken, as the original's clients send them.
        with httpx.Client() as client:
            good = f"project=p&cluster=1&process=5&magic={MAGIC}"
            queries = [
                good + tail for tail in ("", "&cpus=0", "&cpus=x", "&magic=2", f"&{SECRET}", "%zz", "%00")
            ]
            queries += [good.replace("project=p", "project=q"), f"project=p&magic={MAGIC}", MAGIC]
            for query in queries:
                for route in ("workscript.bash", "workscript.exit", "workscript.ping"):
                    said.append(client.get(f"{url}/{route}?{query}").text)
                    said.append(client.post(f"{url}/{route}", content=query.encode()).text)
            for page in (
                "",
                "/",
                "/metrics",
                "/project/p",
                "/project/p/attempts",
                "/project/p/workers",
                "/healthz",
            ):
                said.append(client.get(url + page, follow_redirects=True).text)
    # What a job leaves, its own environment included.
    for tarball in folder.glob("job_*.tar.gz"):
        with tarfile.open(tarball) as archive:
            members = [archive.extractfile(member) for member in archive.getmembers() if member.isfile()]
            said += [member.read().decode(errors="replace") for member in members if member is not None]
    assert any("OSGPROD_REPORT=" in text for text in said), "the job's environment was looked at"
    tables = world.db.execute(
        "SELECT c.oid::regclass::text AS name FROM pg_class c WHERE c.relnamespace = 'osgprod_data'::regnamespace"
        " AND c.relkind = 'r'"
    ).fetchall()
    for table in tables:
        said += [str(row["t"]) for row in world.db.execute(f"SELECT t::text AS t FROM {table['name']} t")]

    assert not [text for text in said if SECRET in text]
    assert any("osgprod_exec.sh" in line for line in watch.command_lines), "they were seen at work"
    assert any("curl" in line for line in watch.command_lines)
    assert not [line for line in watch.command_lines if SECRET in line]
    assert any("set_magic" in query for query in watch.queries) or any(
        "checkout" in query for query in watch.queries
    )
    assert not [query for query in watch.queries if SECRET in query]
    assert log.read_text().count("request=") > 60
    assert SECRET not in log.read_text()
    # The shim's calls get errors as rows; this one raises.
    with pytest.raises(psycopg.Error, match="parameter magic is wrong"):
        world.checkout(77, magic=SECRET + "?")
    with server_log.open(errors="replace") as lines:
        lines.seek(begin)
        text = lines.read()
    assert "parameter magic is wrong or missing" in text, "failures are in the server's log, by its defaults"
    assert SECRET not in text


def logged(world: World, our_server: Server, settings: dict[str, str]) -> str:
    """What the database server writes of good and bad calls of a login with these settings."""
    server_log = our_server.folder / "server.log"
    begin = server_log.stat().st_size
    if not world.db.execute("SELECT FROM pg_roles WHERE rolname = %s", [LOGIN]).fetchall():
        world.db.execute(f"CREATE ROLE {LOGIN} LOGIN IN ROLE osgprod_worker")
    for name, value in settings.items():
        world.db.execute(f"ALTER ROLE {LOGIN} SET {name} = {value}")
    try:
        with psycopg.connect(f"{world.dsn} user={LOGIN}", autocommit=True, row_factory=dict_row) as shim:
            job = {"project": "p", "cluster": 1, "process": 1, "client": "127.0.0.1"}
            call(shim, "checkout_slice", **job, magic=MAGIC)
            with pytest.raises(psycopg.Error):
                call(shim, "checkout_slice", **job, magic=GUESS)
    finally:
        world.db.execute(f"ALTER ROLE {LOGIN} RESET ALL")
    # The shim's calls get errors as rows; this one raises.
    with pytest.raises(psycopg.Error, match="parameter magic is wrong"):
        world.checkout(77, magic=SECRET + "?")
    with server_log.open(errors="replace") as lines:
        lines.seek(begin)
        return lines.read()


def test_a_server_that_logs_slow_statements_shows_the_magic_unless_told_not_to(
    world: World, our_server: Server
) -> None:
    """The advice of docs/security.md: what happens without it, and that it helps."""
    world.add_file(9)
    call(world.db, "set_magic", project="p", magic=MAGIC)
    careless = {"log_min_duration_statement": "0", "log_parameter_max_length_on_error": "-1"}
    assert MAGIC in logged(world, our_server, careless)
    text = logged(
        world,
        our_server,
        {**careless, "log_parameter_max_length": "0", "log_parameter_max_length_on_error": "0"},
    )
    assert "osgprod.checkout_slice" in text and "duration" in text
    assert SECRET not in text


def test_no_option_takes_a_magic_from_the_command_line() -> None:
    def options(command: Any, path: str = "osgprod") -> Iterator[tuple[str, str]]:
        for parameter in command.params:
            yield from ((path, name) for name in (*parameter.opts, *parameter.secondary_opts))
        for name, sub in getattr(command, "commands", {}).items():
            yield from options(sub, f"{path} {name}")

    found = {
        name for _, name in options(command_line) if "magic" in name or "token" in name or "password" in name
    }
    assert found == {"--magic-file", "--token-file", "--token-host"}  # they name files, and hosts


def test_a_magic_in_a_database_url_is_not_shown_either(
    shim: LiveShim, caplog: pytest.LogCaptureFixture
) -> None:
    """A DSN may contain a password: the error that the server can't be reached does not show it."""
    done = subprocess.run(
        [sys.executable, "-m", "shim", "status"], cwd=CHECKOUT, capture_output=True, text=True,
        env={"PATH": os.environ["PATH"], "OSGPROD_DSN": f"host=127.0.0.1 port=1 user=u password={SECRET}"},
    )  # fmt: skip
    assert done.returncode == 3
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "content",
    [b"SECRET1\nSECRET2\n", b"SECRET\xff\n", "SECRET\u00fc".encode(), b"SECRET\0", b"SECRET\rx", b" \n"],
)
def test_file_that_holds_no_token_is_refused_by_its_name(
    run: Run, world: World, tmp_path: Path, content: bytes
) -> None:
    """A header with a line end, for example, is refused by Python's client with an error that shows it."""
    file = tmp_path / "token"
    file.write_bytes(content)
    for command in (
        ("outputs", "check", "p"),
        ("rawdata", "check-online", "p"),
        ("rawdata", "load", "https://127.0.0.1:9/hd_rawdata_000001_000.evio"),
    ):
        done = run(*command, "--token-file", file)
        assert (done.exit_code, type(done.exception)) == (2, SystemExit), done.output
        assert f"{file} does not hold a token" in done.stderr and "SECRET" not in done.output
    file.write_bytes(b"a\0b")
    done = run("project", "set-magic", "p", "--magic-file", file)
    assert (done.exit_code, done.stderr.splitlines()[0]) == (
        2,
        f"osgprod: the magic in {file} has a NUL byte",
    )
