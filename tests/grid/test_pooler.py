"""The shim behind a real PgBouncer: it works in session mode, and refuses the other modes by name."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shim import database
from shim.cli import doctor
from shim.database import call, connect
from shim.migrate import migrate
from tests.grid.test_migrate import pgbouncer, pooled  # noqa: F401  # fixtures
from tests.support import CHECKOUT, LiveShim, World

JOBS = 40


@pytest.fixture
def direct(empty: str) -> Iterator[World]:
    """The same database without the pooler."""
    migrate(empty, say=lambda line: None)
    with connect(empty) as db:
        world = World(db, empty).with_project("p", token_required=True)
        world.add_file(JOBS)
        yield world


@pytest.mark.parametrize("pooled", ["transaction", "statement"], indirect=True)
def test_pooler_that_gives_each_transaction_another_session_is_refused_by_name(
    pooled: str,  # noqa: F811
    direct: World,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = [sys.executable, "-m", "shim", "serve", "--port", "0"]
    environment = {**os.environ, "OSGPROD_DSN": pooled, "OSGPROD_DOCUMENT_ROOT": str(folder)}
    ended = subprocess.run(
        command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 1
    assert "leads to a connection pooler in transaction mode, like PgBouncer" in ended.stderr
    assert "pool_mode = session" in ended.stderr and "Traceback" not in ended.stderr

    monkeypatch.setattr("shim.database.CONNECTION_WAIT_S", 1.0)
    with LiveShim(pooled, folder / "www") as shim:  # as inside Apache: it starts with any database
        shim.add_template("p")
        assert (shim.checkout(1).status_code, shim.raw("healthz").status_code) == (503, 503)
    assert direct.db.execute("SELECT FROM osgprod_data.attempts").fetchall() == []

    monkeypatch.setenv("OSGPROD_DSN", pooled)
    (finding,) = (row for row in doctor.examine() if row["what"] == "connection")
    assert not finding["is_well"] and "pool_mode = session" in finding["advice"]


@pytest.mark.parametrize("pooled", ["session"], indirect=True)
def test_pooler_that_leaves_connections_their_sessions_is_used(
    pooled: str,  # noqa: F811
    direct: World,
    folder: Path,
) -> None:
    with LiveShim(pooled, folder / "www", OSGPROD_CLIENT_RATE="0") as shim, ThreadPoolExecutor(8) as jobs:
        shim.add_template("p")
        assert shim.raw("healthz").text == "ok\n"
        answers = [shim.checkout(0)]  # the first one notes the work script, and waits for no file
        answers += jobs.map(shim.checkout, range(1, JOBS))
        assert {answer.headers["Osgprod-Status"] for answer in answers} == {"assigned"}
        tokens = [answer.headers["Osgprod-Token"] for answer in answers]
        reports = list(jobs.map(lambda n: shim.report(n, token=tokens[n]), range(JOBS)))
        assert {answer.headers["Osgprod-Status"] for answer in reports} == {"done"}
    assert call(direct.db, "verify", project="p", deep=True) == []


@pytest.mark.parametrize("pooled", ["transaction"], indirect=True)
def test_report_that_a_pooler_runs_as_a_heartbeat_is_not_answered_as_a_success(
    pooled: str,  # noqa: F811
    direct: World,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def unnoticed(dsn: str) -> str:
        return ""

    monkeypatch.setattr(database, "pooling", unnoticed)
    with LiveShim(pooled, folder / "www", OSGPROD_CLIENT_RATE="0") as shim, ThreadPoolExecutor(8) as jobs:
        shim.add_template("p")
        tokens = [str(direct.checkout(n)["token"]) for n in range(JOBS)]

        def beat_and_report(n: int) -> str | None:
            for _ in range(5):
                shim.get("workscript.ping", project="p", cluster=1, process=n, magic="m", token=tokens[n])
            answer = shim.report(n, token=tokens[n])
            return answer.headers.get("Osgprod-Status") if answer.status_code == 200 else None

        answers = list(jobs.map(beat_and_report, range(JOBS)))
    assert set(answers) <= {"done", None}
    rows = direct.db.execute("SELECT process FROM osgprod_data.reports WHERE outcome = 'done'").fetchall()
    assert {n for n, status in enumerate(answers) if status} <= {row["process"] for row in rows}
