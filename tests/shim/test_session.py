"""What a database, a login or the environment gives each session changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

from shim.database import SESSION
from tests.support import LiveShim, Run, World

ODD = {
    "DateStyle": "German",
    "IntervalStyle": "iso_8601",
    "TimeZone": "America/St_Johns",
    "standard_conforming_strings": "off",
    "quote_all_identifiers": "on",
    "array_nulls": "off",
    "default_transaction_isolation": "serializable",
}


def give(world: World) -> None:
    assert ODD.keys() == SESSION.keys()
    for name, value in ODD.items():
        world.db.execute(f"ALTER DATABASE {world.db.info.dbname} SET {name} = '{value}'".encode())


def test_commands_work_whatever_sessions_are_given(operator: World, run: Run, tmp_path: Path) -> None:
    operator.add_file(3)
    operator.checkout(0, host="wn0")
    operator.report(0, exitcode=3, host="wn0")
    operator.checkout(1, host="wn0")
    give(operator)
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
    give(world)
    with LiveShim(world.dsn, folder / "www") as shim:
        shim.add_template("p")
        assert shim.checkout(1).headers["osgprod-status"] == "assigned"
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
