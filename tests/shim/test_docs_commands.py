"""Every command in README and docs is run here, as it stands there.

Blocks marked ``console`` hold commands behind ``$``, those marked ``sh`` only commands. The commands of a document are
run one after another in one shell, with what the document presupposes; each must end with 0. What can't be run here is
listed with its reason.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from shim.cli.serving import seed
from shim.database import call, connect
from shim.local import demo
from shim.local.embedded import NOT_DURABLE, Server
from shim.migrate import migrate
from tests.shim.test_original import TABLES
from tests.support import CHECKOUT, LiveShim, free_port, server_folder

DOCUMENTS = [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", *sorted((CHECKOUT / "docs").glob("*.md"))]

# The beginning of a command, and why it is not run.
NOT_RUN = {
    "make demo": "tests/shim/test_serve.py runs the demo",
    "make test": "this is it",
    "make release-sql": "tests/shim/test_migrate.py does the same",
    "make docs": "tests/shim/test_docs_sql.py does the same",
    "make lint": "a separate command in CI",
    "make bench": "takes minutes",
    "make fuzz": "takes minutes",
    "make setup": "the environment is there already",
    "mkdir -p logs": "belongs to condor_submit",
    "condor_submit": "needs an HTCondor pool: tests/grid",
    "pipx run": "asks the network",
    "gitleaks": "no part of this project",
    "git grep": "needs a checkout with its history",
    "input_eviofile_list": "is an example of a script",
    "output_filename": "is an example of a script",
    "curl -H 'Authorization: Bearer TOKEN' 'http://HOST": "names a server that is none: tests/shim/test_api.py",
    ".venv/bin/pip install": "asks the network",
    "(umask 077; echo 'mailtos:": "has an address that is none: tests/shim/test_notify.py",
    "pg_basebackup": "makes a server on another machine: tests/shim/test_replica.py",
    "osgprod notify": "sends mail, and runs for ever: tests/shim/test_notify.py",
}  # fmt: skip
# Documents whose commands need a real site.
NOT_RUN_AT_ALL = {"grid.md": "tests/grid runs what it describes", "performance.md": "make bench measures it"}


def commands(path: Path) -> list[str]:
    found = []
    for kind, block in re.findall(r"^```(console|sh)\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
        lines = block.replace("\\\n", " ").splitlines()
        if kind == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        found += [
            re.sub(r"\s+#\s.*", "", line) for line in lines if line.strip() and not line.startswith("#")
        ]
    return found


LONGEST_COMMAND_S = 60.0


def is_run(command: str) -> bool:
    return not any(command.startswith(beginning) for beginning in NOT_RUN)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A separate server, since the documents create databases and roles."""
    folder = server_folder("docs")
    server = Server(folder, NOT_DURABLE)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def site(server: Server, folder: Path, request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """What a document presupposes; for README an empty server, for the others the project that README has made."""
    name = request.node.callspec.params["path"].name
    (folder / "magic.txt").write_text("my magic\n")
    (folder / "new-magic.txt").write_text("another magic\n")
    (folder / "rawdata").mkdir()
    (folder / "www").mkdir()
    (folder / "worker").symlink_to(CHECKOUT / "worker")  # documents name scripts as in a checkout
    if name != "README.md":  # which makes it
        (folder / "osgprod-files").mkdir()
        (folder / "osgprod-files" / "magic.txt").write_text("my magic\n")
    demo.write_files(folder / "rawdata")
    host, port, user, _ = (part.partition("=")[2] for part in server.dsn.split())
    base = f"host={host} port={port} user={user}"
    with psycopg.connect(f"{base} dbname=postgres", autocommit=True) as maintenance:
        for database in ("osgprod", "original"):
            maintenance.execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")
        maintenance.execute("DROP DATABASE IF EXISTS osgprod WITH (FORCE)")
        if name != "README.md":
            maintenance.execute("CREATE DATABASE osgprod")
        for role in ("shim", "shim_of_spring", "operator_of_spring"):
            maintenance.execute(f"DROP ROLE IF EXISTS {role}")
    environment = {
        # pg_dump has to be of the server's version
        "PATH": f"{Path(sys.executable).parent}:{server._programs}:{os.environ['PATH']}",
        "HOME": str(folder), "PGHOST": host, "PGPORT": port, "PGUSER": user, "FOLDER": str(folder),
    }  # fmt: skip
    if name == "README.md":  # it starts from an empty server, and runs a shim itself
        yield {**environment, "PORT": str(free_port())}
        return
    dsn = f"{base} dbname=osgprod"
    seed(dsn, folder, say=lambda line: None)
    prepare(dsn, folder, is_new=name == "moving.md")
    if name == "moving.md":
        make_original(base, folder)
    if name == "workscripts.md":
        (folder / "my_work.bash").write_text(re.search(r"```bash\n(.*?)```", (CHECKOUT / "docs" / name).read_text(),
                                                       re.DOTALL)[1])  # type: ignore[index]  # fmt: skip
    with LiveShim(dsn, folder / "www") as shim:
        yield {
            **environment, "PORT": str(shim.port),
            "OSGPROD_DOCUMENT_ROOT": str(folder / "www"), "OSGPROD_DSN": "dbname=osgprod",
        }  # fmt: skip


def prepare(dsn: str, folder: Path, is_new: bool) -> None:
    """The project spring26 with some history."""
    migrate(dsn, say=lambda line: None)
    if is_new:
        return
    with connect(dsn) as db:
        demo.load(db, "spring26", "my magic", folder / "rawdata")
        call(db, "set_project", project="spring26", settings='{"max_failures": 1, "maxblockspercore": 1}')
        (folder / "www" / "spring26").mkdir()
        shutil.copy(CHECKOUT / "worker" / "osgprod_work.bash", folder / "www" / "spring26")
        job = {
            "project": "spring26",
            "cluster": 4711,
            "magic": "my magic",
            "client": "127.0.0.1",
            "host": "wn1",
        }
        for process, code in ((0, 0), (1, 6), (2, None)):
            call(db, "checkout_slice", **job, process=process)
            if code is not None:
                call(db, "report_exit", **job, process=process, exitcode=code)


def make_original(base: str, folder: Path) -> None:
    with psycopg.connect(f"{base} dbname=postgres", autocommit=True) as maintenance:
        maintenance.execute("CREATE DATABASE original")
    with psycopg.connect(f"{base} dbname=original", autocommit=True) as original:
        original.execute(TABLES)
        original.execute("UPDATE projects SET projectname = 'spring26' WHERE projectname = 'spring'")
        for path in sorted((folder / "rawdata").iterdir()):
            seqno, nblocks = int(path.stem[-3:]), {"000": 82, "001": 71, "002": 72}[path.stem[-3:]]
            original.execute("INSERT INTO rawdata (run, seqno, path, nbytes, nblocks) VALUES (90001, %s, %s, %s, %s)",
                             [seqno, str(path), path.stat().st_size, nblocks])  # fmt: skip
        original.execute("INSERT INTO slices (iraw, block1, block2) SELECT id, 1, nblocks FROM rawdata")


@pytest.mark.slow
@pytest.mark.timeout(3600)  # some have a hundred commands, and the machine may be busy
@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_of_the_document_do_what_they_should(path: Path, site: dict[str, str]) -> None:
    if path.name in NOT_RUN_AT_ALL:
        return
    lines = [command for command in commands(path) if is_run(command)]
    script = [
        "set -e",
        "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT",  # what a document runs in the background
        f"cd {CHECKOUT}" if path.parent == CHECKOUT else f"cd {site['FOLDER']}",
    ]
    for command in lines:
        here = re.sub(r"(127\.0\.0\.1:|--port )8080", rf"\g<1>{site['PORT']}", command).replace(
            "/path/to/rawdata", f"{site['FOLDER']}/rawdata"
        )
        for name in ("magic.txt", "new-magic.txt"):
            here = re.sub(rf"(?<= ){re.escape(name)}", f"{site['FOLDER']}/{name}", here)
        script += [f"echo + {shlex.quote(here)} >&2", here]
    result = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        env=site,
        capture_output=True,
        text=True,
        timeout=LONGEST_COMMAND_S * (len(lines) + 1),
    )
    assert result.returncode == 0, f"{result.stdout[-2000:]}\n{result.stderr[-3000:]}"
    assert "Traceback" not in result.stderr
    assert list(CHECKOUT.glob("job_*")) == []  # what README makes stays outside of the checkout


def test_most_commands_are_run_and_each_exception_has_a_command() -> None:
    all_commands = [
        command for path in DOCUMENTS if path.name not in NOT_RUN_AT_ALL for command in commands(path)
    ]
    assert sum(map(is_run, all_commands)) > 40
    for beginning in NOT_RUN:
        if beginning not in ("make fuzz", "make bench"):
            assert any(command.startswith(beginning) for command in all_commands), beginning


def test_each_link_of_the_documents_leads_to_something() -> None:
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_each_error_code_of_the_documents_is_explained_in_design() -> None:
    design = (CHECKOUT / "docs" / "design.md").read_text()
    explained = set(re.findall(r"^\| (OG\d{3}) \|", design, re.MULTILINE))
    assert len(explained) > 20
    for path in DOCUMENTS:
        assert set(re.findall(r"\bOG\d{3}\b", path.read_text())) <= explained, path.name
