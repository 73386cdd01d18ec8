"""Helpers that several test folders share: a project with files, and a running shim."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psycopg
import uvicorn
from click.testing import CliRunner, Result

from shim.app import create_app
from shim.cli import osgprod
from shim.config import Settings
from shim.database import call, connect
from shim.evio import scan
from shim.local.embedded import memory_or_temporary
from shim.registry import register
from shim.web.bounds import BoundedProtocol

CHECKOUT = Path(__file__).resolve().parent.parent
PATIENCE_S = 120.0  # of a test for anything that must come, on a busy machine: no promise about speed
Run = Callable[..., Result]  # see run_osgprod
TOKEN = "a long enough token"  # of viewers or operators, at least 16 characters
WORKER_ROLE = " options='-c role=osgprod_worker'"
BLOCK_BYTES, BLOCK_EVENTS = 1000, 10
SERVER_FOLDERS: list[Path] = []  # made by this process; see server_folder
_ports = itertools.count()  # see free_port


def real_files() -> Path:
    """The folder with raw data files of real experiments: they are too large, and not ours, to be in the repository.

    The variable REAL_EVIO_FILES names it; by default it is a folder ``data``, in a folder beside the checkout, that
    has them. Tests that need them are skipped where there is none.
    """
    if named := os.environ.get("REAL_EVIO_FILES"):
        return Path(named)
    beside = CHECKOUT.parent.glob("*/data/rawdata_001068_10evt.evio")
    return next((path.parent for path in sorted(beside)), CHECKOUT / "no-real-files")


class World:
    """Short ways to drive the functions as an operator and as jobs."""

    def __init__(self, db: psycopg.Connection[dict[str, Any]], dsn: str) -> None:
        self.db, self.dsn = db, dsn
        self.registered: dict[str, Any] = {}  # of the last file that was added

    def with_project(self, name: str, maxblockspercore: int = 1, **settings: object) -> Self:
        call(
            self.db,
            "add_project",
            project=name,
            subnet_pattern="127.0.0.0/8",
            workscript="osgprod_work.bash",
            xrootd_prefix="",
            maxblockspercore=maxblockspercore,
            magic="m",
        )
        usual = {"token_required": False, "probe_jobs": 0}
        rows = self.db.execute(  # version 0.9.0 has fewer settings
            "SELECT attname FROM pg_attribute WHERE attrelid = 'osgprod_data.projects'::regclass AND attnum > 0"
        ).fetchall()
        known = {row["attname"] for row in rows}
        usual = {setting: value for setting, value in usual.items() if setting in known}
        call(self.db, "set_project", project=name, settings=json.dumps({**usual, **settings}))
        return self

    def set(self, project: str = "p", **settings: object) -> None:
        call(self.db, "set_project", project=project, settings=json.dumps(settings))

    def add_file(self, nblocks: int, run: int = 1, seqno: int = 1, project: str | None = "p") -> str:
        """Registers a file of nblocks blocks of work behind a block 0, and loads it."""
        path = f"/dcache/hd_rawdata_{run:06d}_{seqno:03d}.evio"
        entries = []
        for n in range(nblocks + 2):
            entries += [n * BLOCK_BYTES, 1 + (n - 1) * BLOCK_EVENTS if n else 0]
        self.registered = {
            "path": path,
            "run": run,
            "seqno": seqno,
            "size_bytes": (nblocks + 1) * BLOCK_BYTES + 32,
            "nblocks": nblocks + 1,
            "first_block": 1,
            "byte_order": "big",
            "has_trailer": True,
            "last_has_bit": False,
            "trailer": bytes(32),
            "preamble": '[{"from_block": 1, "offset": 0, "bytes": 1000, "events": 1}]',
            "block_index": struct.pack(">" + "QI" * (nblocks + 2), *entries),
        }
        call(self.db, "register_rawdata", **self.registered)
        if project:
            call(self.db, "load_slices", project=project)
        return path

    def load_raw(self, *paths: Path, project: str = "p", **more: object) -> None:
        """Registers real raw data files, and makes them a project's work; more: parameters of load_slices."""
        for index in scan.indexes(paths):
            register(self.db, index)
        call(self.db, "load_slices", project=project, **more)

    def checkout(
        self,
        process: int,
        cluster: int = 1,
        cpus: int = 1,
        project: str = "p",
        db: psycopg.Connection[dict[str, Any]] | None = None,
        **more: object,
    ) -> dict[str, Any]:
        return call(
            db or self.db,
            "checkout_slice",
            **{
                "project": project,
                "cluster": cluster,
                "process": process,
                "cpus": cpus,
                "magic": "m",
                "client": "127.0.0.1",
                **more,
            },
        )[0]

    def report(
        self,
        process: int,
        exitcode: int = 0,
        cluster: int = 1,
        project: str = "p",
        db: psycopg.Connection[dict[str, Any]] | None = None,
        **more: object,
    ) -> dict[str, Any]:
        return call(
            db or self.db,
            "report_exit",
            **{
                "project": project,
                "cluster": cluster,
                "process": process,
                "exitcode": exitcode,
                "magic": "m",
                "client": "127.0.0.1",
                **more,
            },
        )[0]

    def heartbeat(self, process: int, cluster: int = 1, project: str = "p", **more: object) -> dict[str, Any]:
        return call(
            self.db,
            "heartbeat",
            **{
                "project": project,
                "cluster": cluster,
                "process": process,
                "magic": "m",
                "client": "127.0.0.1",
                **more,
            },
        )[0]

    def progress(self, project: str = "p") -> dict[str, Any]:
        return call(self.db, "progress", project=project)[0]

    def let_leases_run_out(self) -> None:
        """Moves all leases into the past, in place of waiting."""
        self.db.execute(
            "UPDATE osgprod_data.slices SET due_at = now() - interval '1 s' WHERE state = 'leased'"
        )
        self.db.execute("UPDATE osgprod_data.projects SET next_due_at = '-infinity'")

    def lose_leases(self) -> None:
        """Lets all leases expire, and requeues their slices."""
        self.let_leases_run_out()
        call(self.db, "reclaim_lost")

    def let_backoff_pass(self) -> None:
        """Moves the ends of all backoffs into the past, in place of waiting for them and for the timer."""
        self.db.execute(
            "UPDATE osgprod_data.slices SET not_before = now() - interval '1 s'"
            " WHERE NOT is_ready AND not_before IS NOT NULL"
        )
        self.tick()

    def tick(self) -> int:
        """Does what the shim's timer does; returns how many slices and merges were requeued after their leases."""
        rows = self.db.execute("SELECT sum(t.reclaimed)::int AS n FROM osgprod.tick() t").fetchall()
        return rows[0]["n"] or 0

    def attempts_pass(self, seconds: int) -> None:
        """Moves all that was recorded into the past, in place of waiting."""
        for table, column in (
            ("attempts", "started_at"),
            ("attempts", "opened_at"),
            ("reports", "reported_at"),
            ("recent_failures", "started_at"),
            ("recent_failures", "failed_at"),
            ("recent_failures", "opened_at"),
            ("slices", "opened_at"),
            ("worker_bans", "banned_at"),
            ("worker_bans", "until"),
        ):
            self.db.execute(
                f"UPDATE osgprod_data.{table} SET {column} = {column} - make_interval(secs => %s)", [seconds]
            )

    def at_once(self, count: int, function: Any) -> list[Any]:
        """Calls function(n, connection) from so many connections at the same moment."""
        barrier = threading.Barrier(count, timeout=PATIENCE_S)

        def one(n: int) -> Any:
            with connect(self.dsn) as connection:
                barrier.wait()
                return function(n, connection)

        with ThreadPoolExecutor(count) as threads:
            return list(threads.map(one, range(count)))


def run_osgprod(*arguments: object, **more: Any) -> Result:
    """Runs an operator's command in this process; more: see CliRunner.invoke."""
    return CliRunner().invoke(osgprod, [str(argument) for argument in arguments], **more)


# Forks for each command after the imports, which take most of the time of a command that ends soon.
_RUN_EACH = """
import json, os, sys
from pathlib import Path
import shim.cli.serving
from shim.cli import run
folder, commands = Path(sys.argv[1]), json.loads(sys.argv[2])
for n, (arguments, environment) in enumerate(commands):
    child = os.fork()
    if not child:
        for number in (1, 2):
            os.dup2(os.open(folder / f"{n}-{number}", os.O_WRONLY | os.O_CREAT), number)
        os.environ |= environment
        sys.argv[1:] = arguments
        run()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def run_each(
    commands: list[tuple[list[str], dict[str, str]]], folder: Path, **environment: str
) -> list[subprocess.CompletedProcess[str]]:
    """Run commands of ``osgprod``, each in a process of its own, one after the other.

    Parameters
    ----------
    commands
        Arguments of each, and variables beside those of the environment.
    folder
        Gets their output.
    environment
        Of all, beside PATH.
    """
    done = subprocess.run(
        [sys.executable, "-c", _RUN_EACH, str(folder), json.dumps(commands)],
        cwd=CHECKOUT, env={"PATH": "/usr/bin:/bin", **environment}, stdout=subprocess.PIPE, text=True,
        check=True, timeout=PATIENCE_S * len(commands),
    )  # fmt: skip
    return [
        subprocess.CompletedProcess(
            arguments, int(code), *((folder / f"{n}-{number}").read_text() for number in (1, 2))
        )
        for n, ((arguments, _), code) in enumerate(zip(commands, done.stdout.split(), strict=True))
    ]


def wait_until(
    is_so: Callable[[], object],
    what: str,
    process: subprocess.Popen[Any] | None = None,
    seen: Callable[[], object] = str,
    pause_s: float = 0.01,
) -> None:
    """Asks until it is so.

    Parameters
    ----------
    is_so
        Returns a value that is true then.
    what
        Is awaited; for the error after PATIENCE_S.
    process
        Has to run until then; its end is an error at once.
    seen
        Returns what an error shows, like the end of a log.
    pause_s
        Between two questions.
    """
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        if process is not None and process.poll() is not None and not is_so():
            raise AssertionError(f"the process ended with {process.returncode} before: {what}\n{seen()}")
        assert time.monotonic() < end, f"not so after {PATIENCE_S:.0f} s: {what}\n{seen()}"
        time.sleep(pause_s)


def server_folder(what: str) -> Path:
    """A new folder for a server's data, in memory where there is room. Its name says whose it is: see tests/tidy.py."""
    run = os.environ.get("PYTEST_TIDY_PID", os.getpid())
    folder = Path(tempfile.mkdtemp(prefix=f"osgprod-{run}-{what}-", dir=memory_or_temporary()))
    SERVER_FOLDERS.append(folder)
    return folder


def server_logs() -> dict[Path, int]:
    """The logs of the servers in these folders that are there now, and their sizes [bytes]."""
    SERVER_FOLDERS[:] = [folder for folder in SERVER_FOLDERS if folder.exists()]
    logs = [
        path
        for folder in SERVER_FOLDERS
        for path in (*folder.glob("server.log"), *folder.glob("*/server.log"))
    ]
    return {path: path.stat().st_size for path in logs}


def free_port() -> int:
    """A TCP port of 127.0.0.1 where nobody listens, for a program that has to be told one.

    It is below those that the kernel gives to sockets that ask for any: another test does not get it meanwhile.
    """
    lowest, count = 10_000, 20_000  # Linux gives ports from 32768 on
    while True:
        # Each process begins elsewhere, and none gives a port twice.
        port = lowest + (97 * os.getpid() + next(_ports)) % count
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def blocks_of(answers: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """All blocks of the slices that answers assign, sorted; a block that is assigned twice is there twice."""
    return sorted(
        (answer["url"], block)
        for answer in answers
        if answer["status"] == "assigned"
        for block in range(answer["block1"], answer["block2"])
    )


class LiveShim:
    """The real application behind a real uvicorn on a loopback port, or on the unix socket `unix`, in a thread."""

    def __init__(self, dsn: str, document_root: Path, unix: Path | None = None, **environment: str) -> None:
        self._root = document_root
        self._root.mkdir(parents=True, exist_ok=True)
        variables = {
            "OSGPROD_DSN": dsn + WORKER_ROLE,
            "OSGPROD_DOCUMENT_ROOT": str(document_root),
            **environment,
        }
        application = create_app(Settings.read(variables))
        config = uvicorn.Config(
            application, http=BoundedProtocol, lifespan="on", log_config=None, proxy_headers=False
        )
        self._server = uvicorn.Server(config)
        self._socket = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        self._socket.bind(str(unix) if unix else ("127.0.0.1", 0))
        self.port = 0 if unix else self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/osgprod"
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})
        # Without TLS, whose authorities httpx would read for each client: 30 ms of a processor.
        # Without limits, since httpcore closes idle connections over 20, now and then one that a thread has just taken.
        transport = httpx.HTTPTransport(verify=False, uds=str(unix) if unix else None, limits=httpx.Limits())
        self.client = httpx.Client(timeout=PATIENCE_S, transport=transport)

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: self._server.started, "the shim serves")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    def connections(self) -> int:
        """How many there are."""
        return len(self._server.server_state.connections)

    def add_template(self, project: str, text: bytes | None = None) -> Path:
        path = self._root / project / "osgprod_work.bash"
        path.parent.mkdir(exist_ok=True)
        if text is None:
            shutil.copy(CHECKOUT / "worker" / "osgprod_work.bash", path)
        else:
            path.write_bytes(text)
        return path

    def get(self, route: str, **parameters: object) -> httpx.Response:
        return self.client.get(f"{self.url}/{route}?{urllib.parse.urlencode(parameters)}")

    def raw(self, target: str, method: str = "GET", **arguments: Any) -> httpx.Response:
        return self.client.request(method, f"{self.url}/{target}", **arguments)

    def checkout(self, process: int, **more: object) -> httpx.Response:
        parameters = {"project": "p", "cluster": 1, "process": process, "magic": "m", **more}
        return self.get("workscript.bash", **parameters)

    def report(self, process: int, exitcode: int = 0, **more: object) -> httpx.Response:
        parameters = {"project": "p", "cluster": 1, "process": process, "magic": "m", **more}
        return self.get("workscript.exit", exitcode=exitcode, **parameters)
