"""With synchronous replication no job gets an answer that a standby would not give after a failover."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Json

from shim.database import connect
from shim.local.embedded import NOT_DURABLE, Server
from tests import prepared
from tests.support import PATIENCE_S, LiveShim, World, server_folder, wait_until

JOB = {"n": 0, "project": "p", "cluster": 1, "process": 0, "cpus": 1, "magic": "m", "client": "127.0.0.1"}


class Primary:
    """A server whose standby, n1, is connected or not: commits wait for it as long as it is not."""

    def __init__(self, server: Server) -> None:
        self.dsn = server.dsn

    def lose_standby(self) -> None:
        self._name_standby("n1")

    def find_standby(self) -> None:
        self._name_standby("")

    def _name_standby(self, name: str) -> None:
        with connect(self.dsn) as db:
            db.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'".encode())
            db.execute("SELECT pg_reload_conf()")
            # A new session has it at once, when the postmaster has read it.

            def is_read() -> bool:
                with connect(self.dsn) as other:
                    row = other.execute("SHOW synchronous_standby_names").fetchone()
                return bool(row and row["synchronous_standby_names"] == name)

            wait_until(is_read, "the server reads its settings")

    def waiting(self) -> list[int]:
        """The sessions whose commit waits for the standby, but for those of a shim's timer."""
        with connect(self.dsn) as db:
            rows = db.execute(
                "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name <> 'osgprod tick'"
            ).fetchall()
        return [row["pid"] for row in rows]

    def one_waits(self) -> int:
        wait_until(self.waiting, "a commit waits for the standby")
        return self.waiting()[0]

    def end(self, how: str, pid: int) -> None:
        with connect(self.dsn) as db:
            db.execute(f"SELECT {how}(%s)".encode(), [pid])


@pytest.fixture(scope="module")
def primary() -> Iterator[Primary]:
    folder = server_folder("sync")
    folder.chmod(0o755)
    server = Server(folder / "server", {**NOT_DURABLE, "synchronous_commit": "on", "max_connections": "30"})
    prepared.put_data(folder / "server")
    try:
        server.start()
        with connect(server.dsn) as db:
            World(db, server.dsn).with_project("p", token_required=True, max_starts_per_min=100).add_file(20)
        yield Primary(server)
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def ask(dsn: str, function: str, **more: object) -> dict[str, Any]:
    """One call, as the shim makes it."""
    with connect(dsn) as db:
        row = db.execute(
            f"SELECT * FROM osgprod.{function}(%s)".encode(), [Json([{**JOB, **more}])]
        ).fetchone()
    assert row
    return row


def test_no_answer_to_a_job_is_given_before_a_standby_has_what_it_is_based_on(primary: Primary) -> None:
    ended = ask(primary.dsn, "checkout_slices", process=1)
    failed = ask(primary.dsn, "checkout_slices", process=2)
    running = ask(primary.dsn, "checkout_slices", process=3)
    assert (
        ask(primary.dsn, "report_exits", process=1, exitcode=0, token=str(ended["token"]))["status"] == "done"
    )
    assert (
        ask(primary.dsn, "report_exits", process=2, exitcode=1, token=str(failed["token"]))["status"]
        == "failed"
    )
    questions: dict[str, tuple[str, dict[str, object]]] = {
        "work": ("checkout_slices", {"process": 4}),
        "its slice again": ("checkout_slices", {"process": 3}),
        "work that is done": ("checkout_slices", {"process": 1}),
        "a wrong magic": ("checkout_slices", {"process": 5, "magic": "x"}),
        "no such project": ("checkout_slices", {"project": "q"}),
        "a report again": ("report_exits", {"process": 1, "exitcode": 0, "token": str(ended["token"])}),
        "another report": ("report_exits", {"process": 1, "exitcode": 9, "token": str(ended["token"])}),
        "a failure again": ("report_exits", {"process": 2, "exitcode": 1, "token": str(failed["token"])}),
        "a report of nobody": ("report_exits", {"process": 77, "exitcode": 0, "token": str(ended["token"])}),
        "no exit code": ("report_exits", {"process": 3, "exitcode": 999, "token": str(running["token"])}),
        "a wrong token": ("report_exits", {"process": 3, "exitcode": 0, "token": str(ended["token"])}),
        "alive": ("heartbeats", {"process": 3, "token": str(running["token"])}),
        "alive when done": ("heartbeats", {"process": 1, "token": str(ended["token"])}),
        "alive, nobody": ("heartbeats", {"process": 77, "token": str(ended["token"])}),
    }
    primary.lose_standby()
    for what, (function, arguments) in questions.items():
        for _ in range(2):  # the second time its rows are there, and nothing is left to be written
            with ThreadPoolExecutor(1) as thread:
                answer = thread.submit(ask, primary.dsn, function, **arguments)
                try:
                    primary.end("pg_terminate_backend", primary.one_waits())
                except AssertionError:
                    raise AssertionError(f"{what}: answered {answer.result()}") from None
                assert isinstance(answer.exception(), psycopg.OperationalError), what
    primary.find_standby()
    row = ask(primary.dsn, "checkout_slices", process=4)
    assert (row["status"], row["nstarts"]) == ("assigned", 3), "the commit from here is there"


def test_commit_whose_wait_for_the_standby_is_cancelled_is_not_answered_as_a_success(
    primary: Primary, folder: Path
) -> None:
    with LiveShim(primary.dsn, folder / "www") as shim:
        shim.add_template("p")
        assert shim.checkout(50).status_code == 200
        primary.lose_standby()
        answers = []
        thread = threading.Thread(target=lambda: answers.append(shim.checkout(51)))
        thread.start()
        primary.end("pg_cancel_backend", primary.one_waits())
        thread.join(PATIENCE_S)
        assert answers[0].status_code == 503 and answers[0].headers["Retry-After"], answers[0].text
        primary.find_standby()

        def is_assigned() -> bool:
            answers.append(shim.checkout(51))
            return answers[-1].status_code == 200

        wait_until(is_assigned, "work is assigned again", seen=lambda: answers[-1].text)
        assert answers[-1].headers["Osgprod-Nstarts"] == "2", "it was committed all the same"
