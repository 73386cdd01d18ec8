"""What a database, a login or the environment gives each session changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shim.database import SESSION, connect
from tests.support import LiveShim, Run, World

ODD = {
    "client_encoding": "LATIN1",
    "DateStyle": "German",
    "IntervalStyle": "iso_8601",
    "TimeZone": "America/St_Johns",
    "standard_conforming_strings": "off",
    "quote_all_identifiers": "on",
    "array_nulls": "off",
    "default_transaction_isolation": "serializable",
}


def give(world: World, **settings: str) -> None:
    for name, value in settings.items():
        world.db.execute(f"ALTER DATABASE {world.db.info.dbname} SET {name} = '{value}'".encode())


def test_commands_work_whatever_sessions_are_given(operator: World, run: Run, tmp_path: Path) -> None:
    operator.add_file(3)
    operator.checkout(0, host="wn0")
    operator.report(0, exitcode=3, host="wn0")
    operator.checkout(1, host="wn\u20ac")
    assert ODD.keys() == SESSION.keys()
    give(operator, **ODD)
    for command in (
        *("status", "jobs", "attempts", "log", "health", "estimate", "rate", "resources", "workers list"),
        *("slices list", "rawdata check-online", "verify"),
    ):
        done = run(*command.split(), "p", "--json")
        assert (done.exit_code, type(done.exception)) in ((0, type(None)), (1, SystemExit)), done.output
        assert isinstance(json.loads(done.stdout), list), command
    assert run("project", "export", "p", tmp_path / "export").exit_code == 0
    assert "+00" in (tmp_path / "export" / "attempts.csv").read_text(), "times are ISO 8601, in UTC"
    assert "wait_s must be from 1 to 86400, not 0" in run("project", "set", "p", "wait_s=0").stderr
    assert run("slices", "recycle", "p", "--path", "%file\\", "--json").stdout == "[]\n"
    assert run("migrate").output == "up to date, nothing to do\n"
    assert run("doctor").exit_code in (0, 1)


def test_jobs_and_pages_work_whatever_sessions_are_given(world: World, folder: Path) -> None:
    world.add_file(3)
    give(world, **ODD)
    with LiveShim(world.dsn, folder / "www") as shim:
        shim.add_template("p")
        assert shim.checkout(1, host="wn\u20ac").headers["osgprod-status"] == "assigned"
        assert shim.report(1, 3).headers["osgprod-status"] == "failed"
        for page in (
            "",
            "project/p",
            "project/p/attempts",
            "api/list_attempts?project=p",
            "api/estimate?project=p",
        ):
            answer = shim.raw(page)
            assert answer.status_code == 200, answer.text


def test_commands_are_not_ended_by_a_time_that_the_database_gives_sessions(world: World) -> None:
    rows = world.db.execute(
        "SELECT name FROM pg_settings"
        " WHERE name ~ '^(statement|transaction|idle_session|idle_in_transaction_session)_timeout$'"
    ).fetchall()
    known = [row["name"] for row in rows]
    assert {"statement_timeout", "idle_in_transaction_session_timeout"} <= set(known)
    give(world, **dict.fromkeys(known, "1h"))
    with connect(world.dsn) as other:
        for name in known:
            assert other.execute(f"SHOW {name}".encode()).fetchall() == [{name: "0"}]


@pytest.mark.parametrize(
    ("setting", "value", "message", "hint", "code"),
    [
        ("default_transaction_read_only", "on", "in a read-only transaction", "name a server that takes writes", 1),
        ("lock_timeout", "1", "canceling statement due to lock timeout", "run the command again", 1),
    ],
)  # fmt: skip
def test_server_that_can_not_do_it_now_says_what_to_do(
    operator: World, run: Run, setting: str, value: str, message: str, hint: str, code: int
) -> None:
    give(operator, **{setting: value})
    with operator.db.transaction():
        operator.db.execute("SELECT FROM osgprod_data.projects FOR UPDATE")
        done = run("project", "set", "p", "wait_s=61")
    assert (done.exit_code, len(done.stderr.splitlines())) == (code, 2)
    assert message in done.stderr and f"hint: {hint}" in done.stderr


def test_server_that_is_starting_or_full_is_not_taken_for_a_wrong_login(
    operator: World, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = operator.db.info.dbname
    operator.db.execute(
        f"CREATE ROLE one LOGIN CONNECTION LIMIT 0; GRANT CONNECT ON DATABASE {name} TO one".encode()
    )
    monkeypatch.setenv("OSGPROD_DSN", f"{operator.dsn} user=one")
    done = run("status")
    operator.db.execute(f"REVOKE ALL ON DATABASE {name} FROM one; DROP ROLE one".encode())
    assert (done.exit_code, done.stderr.splitlines()[1]) == (3, "hint: run the command again in a while"), (
        done.stderr
    )
