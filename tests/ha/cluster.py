"""A PostgreSQL cluster of three nodes on the loopback: Patroni as its manager, etcd as what Patroni trusts.

Each node is a Patroni process with its own PostgreSQL, ports and data folder. The nodes run as an ordinary user
(nobody, when the tests run as root, since PostgreSQL refuses root).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from shim.local.embedded import programs_for, server_user
from tests.support import CHECKOUT, free_port, server_folder

PACKAGES = CHECKOUT / ".ha"  # Patroni and what it needs, by `make test-ha`
PYTHON = "/usr/bin/python3"  # one that an ordinary user may run, wherever the one of the tests lies
SCOPE = "osgprod"
# The shortest ttl that Patroni allows, and the longest retry_timeout: loop_wait + 2 * retry_timeout <= ttl. A primary
# steps down when etcd is silent for so long; on a loaded machine it is silent for seconds.
TTL_S, LOOP_WAIT_S, RETRY_TIMEOUT_S = 20, 1, 9
# No promise, only where a test gives up: how fast a loaded machine makes three servers says nothing of the product.
PATIENCE_S = 240.0

PARAMETERS = {"max_connections": 150, "wal_keep_size": "512MB", "hot_standby": "on"}


class Node:
    """One node: a Patroni process that starts, promotes and demotes its PostgreSQL."""

    def __init__(
        self, folder: Path, programs: Path, name: str, etcd_port: int, settings: dict[str, Any]
    ) -> None:
        self.name = name
        self._programs, self._packages = programs, folder / "packages"
        self.port, self.rest_port = free_port(), free_port()
        self._folder = folder / name
        self._folder.mkdir(mode=0o755)
        self._data = self._folder / "data"
        self._config = self._folder / "patroni.json"
        self._config.write_text(json.dumps(self._configuration(etcd_port, settings), indent=1))
        self._process: subprocess.Popen[bytes] | None = None

    def _configuration(self, etcd_port: int, settings: dict[str, Any]) -> dict[str, Any]:
        address = f"127.0.0.1:{self.port}"
        return {
            "scope": SCOPE,
            "name": self.name,
            "restapi": {"listen": f"127.0.0.1:{self.rest_port}", "connect_address": f"127.0.0.1:{self.rest_port}"},
            "etcd3": {"host": f"127.0.0.1:{etcd_port}"},
            "bootstrap": {
                "dcs": {
                    "ttl": TTL_S,
                    "loop_wait": LOOP_WAIT_S,
                    "retry_timeout": RETRY_TIMEOUT_S,
                    "primary_start_timeout": 0,  # a crashed primary is not restarted while a standby can take over
                    "postgresql": {"use_pg_rewind": True, "use_slots": True, "parameters": PARAMETERS},
                    **settings,
                },
                "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, "data-checksums"],
            },
            "postgresql": {
                "listen": address,
                "connect_address": address,
                "data_dir": str(self._data),
                "bin_dir": str(self._programs),
                "pgpass": str(self._folder / "pgpass"),
                "authentication": {name: {"username": "postgres", "password": "x"}
                                   for name in ("superuser", "replication", "rewind")},
                "parameters": {"unix_socket_directories": "", "shared_buffers": "64MB", "fsync": "off"},
                "pg_hba": ["host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"],
            },
        }  # fmt: skip

    def start(self) -> None:
        user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        if user:
            for path in (self._folder, self._config):
                os.chown(path, user.pw_uid, user.pw_gid)
        with (self._folder / "patroni.log").open("ab") as log:
            self._process = subprocess.Popen(
                [PYTHON, "-m", "patroni", str(self._config)],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={
                    "PATH": f"{self._programs}:/usr/bin:/bin",
                    "PYTHONPATH": str(self._packages),
                    "HOME": str(self._folder),
                    "LC_ALL": "C",
                },
                **({"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}),
            )

    def pids(self) -> list[int]:
        """The processes of the node: Patroni, the postmaster and its children."""
        assert self._process
        roots = [self._process.pid]
        with contextlib.suppress(OSError, ValueError, IndexError):
            roots.append(int((self._data / "postmaster.pid").read_text().split()[0]))
        found = list(roots)
        for pid in found:
            with contextlib.suppress(OSError):
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                found += [int(child) for child in children if int(child) not in found]
        return found

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to every process of the node, the ones that hold the others first."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop_receiving(self) -> bool:
        """Lets a standby fall behind: its receiver of WAL is stopped until SIGCONT. False: it has none now."""
        for pid in self.pids():
            with contextlib.suppress(OSError):
                if b"walreceiver" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGSTOP)
                    return True
        return False

    def has_sent(self, lsn: str) -> bool:
        """Has this primary sent a place of its WAL to any standby?"""
        row = self._ask(f"SELECT EXISTS (SELECT FROM pg_stat_replication WHERE sent_lsn >= '{lsn}')")
        return row is None or bool(row[0])

    def standbys_at(self, lsn: str) -> int:
        """How many standbys of this primary have a place of its WAL on their disks."""
        row = self._ask(f"SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= '{lsn}'")
        return int(row[0]) if row else 0

    def place(self) -> str:
        """Where the WAL of this primary ends now."""
        row = self._ask("SELECT pg_current_wal_insert_lsn()::text")
        return str(row[0]) if row else ""

    def write_filler(self) -> str:
        """Writes more WAL than the buffers of the network hold; returns the place behind it, '' when that failed."""
        self._ask("SELECT pg_logical_emit_message(false, 'osgprod', repeat('x', 1 << 26))")
        return self.place()

    def _ask(self, query: str, seconds: int = 20) -> tuple[Any, ...] | None:
        """The first row; None: no answer, or a commit whose wait for the standby ended with a warning."""
        warnings: list[str] = []
        try:
            with psycopg.connect(
                f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres connect_timeout={seconds}"
                f" options='-c statement_timeout={1000 * seconds}'",
                autocommit=True,
            ) as db:
                db.add_notice_handler(lambda notice: warnings.append(notice.message_primary or ""))
                row = db.execute(query.encode()).fetchone()
                return None if warnings else row
        except psycopg.Error:
            return None

    def kill(self) -> None:
        """As when the power fails: every process of the node ends at once."""
        for _ in range(3):  # processes that were forked since
            self.signal(signal.SIGKILL)
        if self._process:
            self._process.wait()

    def takes_writes(self) -> bool:
        """Does a transaction that writes commit here, with the synchronous standby that it may need?"""
        return self._ask("SELECT pg_logical_emit_message(true, 'osgprod', 'probe')", 2) is not None

    def log_tail(self) -> str:
        return (self._folder / "patroni.log").read_text(errors="replace")[-3000:]

    def rest(self, path: str = "/patroni") -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.rest_port}{path}", timeout=10) as answer:
            loaded: dict[str, Any] = json.loads(answer.read())
            return loaded

    def is_primary(self) -> bool:
        row = self._ask("SELECT NOT pg_is_in_recovery()", 5)
        return bool(row and row[0])


class Cluster:
    """Three nodes and their etcd; a context manager. `settings` are Patroni's dynamic ones (synchronous_mode ...)."""

    def __init__(self, **settings: Any) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="osgprod-ha-"))
        self._folder.chmod(0o755)
        # etcd syncs every lease to its disk: on one that is busy it answers too late, and the primary steps down.
        self._etcd_data = server_folder("etcd")
        self._is_synchronous = bool(settings.get("synchronous_mode"))
        self._etcd_port, peer = free_port(), free_port()
        self._etcd_command = [
            "etcd", "--data-dir", str(self._etcd_data), "--name", "e1", "--log-level", "error",
            "--listen-client-urls", f"http://127.0.0.1:{self._etcd_port}",
            "--advertise-client-urls", f"http://127.0.0.1:{self._etcd_port}",
            "--listen-peer-urls", f"http://127.0.0.1:{peer}",
            "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}",
            "--initial-cluster", f"e1=http://127.0.0.1:{peer}",
        ]  # fmt: skip
        self._etcd: subprocess.Popen[bytes] | None = None
        shutil.copytree(PACKAGES, self._folder / "packages", symlinks=True)
        programs = programs_for(server_user(), self._folder)
        self.nodes = [
            Node(self._folder, programs, f"n{number}", self._etcd_port, settings) for number in (1, 2, 3)
        ]

    def __enter__(self) -> Cluster:
        with (self._folder / "etcd.log").open("ab") as log:
            self._etcd = subprocess.Popen(
                self._etcd_command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            self.nodes[0].start()
            wait_for(
                lambda: self.nodes[0].is_primary(),
                PATIENCE_S,
                "the first node is primary",
                self.nodes[0].log_tail,
            )
            for node in self.nodes[1:]:
                node.start()
            wait_for(self.is_whole, PATIENCE_S, "both standbys follow", self.nodes[1].log_tail)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for node in self.nodes:
            node.signal(signal.SIGCONT) if node._process else None
            if node._process:
                node.kill()
        if self._etcd:
            self._etcd.kill()
            self._etcd.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
        shutil.rmtree(self._etcd_data, ignore_errors=True)

    def dsn(self, dbname: str = "postgres", user: str = "postgres") -> str:
        """All nodes; libpq goes to the one that takes writes."""
        ports = ",".join(str(node.port) for node in self.nodes)
        return (
            f"host=127.0.0.1,127.0.0.1,127.0.0.1 port={ports} user={user} dbname={dbname}"
            " target_session_attrs=read-write connect_timeout=2"
        )

    def primary(self) -> Node:
        found: list[Node] = []

        def look() -> bool:
            found[:] = [node for node in self.nodes if node.is_primary()]
            return len(found) == 1

        wait_for(look, PATIENCE_S, "one node is primary")
        return found[0]

    def is_whole(self) -> bool:
        """Is there one primary that two standbys stream from (and, in synchronous mode, is one of them synchronous)?"""
        try:
            members = self.nodes[0].rest("/cluster")["members"]
        except (OSError, http.client.HTTPException, ValueError):  # it is busy
            return False
        states = sorted((member["role"], member["state"]) for member in members)
        roles = [role for role, _ in states]
        return (
            len(states) == 3
            and sum(role in ("leader", "primary", "master") for role in roles) == 1
            and all(state in ("running", "streaming") for _, state in states)
            and ("sync_standby" in roles or not self._is_synchronous)
        )

    def switch_over(self, node: Node) -> None:
        """A planned switchover from the primary to another node; asked again while Patroni finds no candidate."""

        def is_away() -> bool:
            request = urllib.request.Request(
                f"http://127.0.0.1:{node.rest_port}/switchover",
                json.dumps({"leader": node.name}).encode(),
                {"Content-Type": "application/json"},
            )
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return answer.status in (200, 202)
            except (OSError, http.client.HTTPException):  # HTTPError too
                return not node.is_primary()

        wait_for(is_away, PATIENCE_S, "a switchover")


def wait_for(is_so: Callable[[], bool], seconds: float, what: str, more: Callable[[], str] = str) -> float:
    """Waits until something is so; returns how long it took [s]."""
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() - began < seconds, f"not so after {seconds:.0f} s: {what}\n{more()}"
        time.sleep(0.1)
    return time.monotonic() - began
