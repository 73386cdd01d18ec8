"""What the shim answered is on record, also what never reached a function of the database."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from shim.database import call
from shim.web import timer
from shim.web.answers import MOST_KEYS, Answers
from tests.support import LiveShim, World


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer of a shim that starts now comes round ten times a second."""
    monkeypatch.setattr(timer, "TICK_S", 0.1)


def answers_on_record(world: World, at_least: int) -> dict[tuple[int, str], int]:
    """Status and reason of each answer, as soon as so many are on record."""
    for _ in range(300):
        rows = world.db.execute(
            "SELECT http_status, reason, sum(times)::int AS n FROM osgprod_data.answers GROUP BY 1, 2"
        ).fetchall()
        if sum(row["n"] for row in rows) >= at_least:
            break
        world.db.execute("SELECT pg_sleep(0.1)")
    return {(row["http_status"], row["reason"]): row["n"] for row in rows}


def test_health_says_that_every_request_fails_for_want_of_a_work_script(
    world: World, quick: None, shim: LiveShim
) -> None:
    world.add_file(3)
    shim.add_template("p").unlink()
    for process in range(22):
        assert shim.checkout(process).status_code == 500
    assert answers_on_record(world, 22) == {(500, "TemplateError"): 22}
    found = {row["what"]: row for row in call(world.db, "health", project="p")}["answers"]
    assert found["level"] == "bad"
    assert found["found"].startswith("22 of 22 requests of the last 15 minutes were answered 500: ")
    assert "osgprod_work.bash" in found["found"]


def test_each_answer_counts_once_with_its_reason(world: World, quick: None, shim: LiveShim) -> None:
    world.add_file(1)
    shim.checkout(0)
    shim.report(0)
    shim.checkout(0)
    shim.checkout(2, magic="wrong")
    shim.checkout(2, cpus="x")
    shim.get("healthz")
    assert answers_on_record(world, 5) == {
        (200, "assigned"): 1,
        (200, "done"): 1,
        (200, "completed"): 1,
        (403, "OG202"): 1,
        (400, "BadRequest"): 1,
    }
    named = world.db.execute(
        "SELECT count(*) AS n FROM osgprod_data.answers WHERE project_id IS NULL"
    ).fetchone()
    assert named == {"n": 1}, "of the request that could not be read"


def test_names_that_a_stranger_invents_use_up_no_kinds(world: World, quick: None, shim: LiveShim) -> None:
    world.add_file(1)
    assert shim.checkout(1, magic="wrong").status_code == 403
    for n in range(5):
        assert shim.raw(f"workscript.bash?project=x{n}&cluster=1&process=1&magic=m").status_code == 404
        assert shim.raw(f"workscript.bash?project=x{n}&cluster=x&process=1&magic=m").status_code == 400
    assert answers_on_record(world, 11) == {(403, "OG202"): 1, (404, "OG301"): 5, (400, "BadRequest"): 5}
    answers = Answers()
    for n in range(2 * MOST_KEYS):
        for status, reason in ((404, "OG301"), (503, "PoolTimeout"), (400, "OG104"), (403, "OG204")):
            answers.count(f"x{n}", "checkout", status, reason)
    answers.count("p", "checkout", 403, "OG202")
    assert {row["project"] for row in answers.take()} == {None, "p"}


def test_what_could_not_be_written_is_written_later(world: World, dsn: str) -> None:
    answers = Answers()
    answers.count("p", "checkout", 503, "PoolTimeout", "the database is away")
    answers.count("p", "checkout", 503, "PoolTimeout")

    async def note(text: str) -> None:
        async with await psycopg.AsyncConnection.connect(text, autocommit=True) as db:
            await timer._note_answers(db, answers)

    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        asyncio.run(note(f"{dsn} options='-c default_transaction_read_only=on'"))
    answers.count("p", "checkout", 200, "assigned")
    asyncio.run(note(dsn))
    asyncio.run(note(dsn))
    rows: list[dict[str, Any]] = world.db.execute(
        "SELECT reason, message, times FROM osgprod_data.answers ORDER BY 1"
    ).fetchall()
    assert rows == [
        {"reason": "PoolTimeout", "message": "the database is away", "times": 2},
        {"reason": "assigned", "message": None, "times": 1},
    ]


def test_memory_for_answers_is_bounded_and_other_pages_are_not_counted() -> None:
    answers = Answers()
    for number in range(2 * MOST_KEYS):
        answers.count(f"p{number}", "checkout", 200, "assigned")
    answers.count("p", "dashboard", 200, "-")
    rows = answers.take()
    assert len(rows) == MOST_KEYS and answers.take() == []
    answers.put_back(rows)
    answers.put_back(rows)
    assert sum(row["times"] for row in answers.take()) == 2 * MOST_KEYS
    for name in ("", "p" * 64, None):
        answers.count(name, "report", 200, "done")
    assert [(row["project"], row["times"]) for row in answers.take()] == [(None, 3)]
