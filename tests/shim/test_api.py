"""The read side as JSON: every function of the dashboard over real HTTP, page by page, behind its guard."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from psycopg.rows import dict_row

from shim.dashboard import reader
from shim.dashboard.api import FUNCTIONS, LIMITED, NEEDED
from shim.database import call, open_pool
from shim.snapshot import SQL_FOLDER
from tests.support import TOKEN, LiveShim, World

REPEATED = {
    "list_attempts": "hours=24",
    "job_history": "cluster=1&process=0",
    "log_tail": "cluster=1&process=0",
    "attempts_by_worker": "order=failing",
    "find": "text=wn3",
}


@pytest.fixture
def shim(world: World, folder: Path) -> Iterator[LiveShim]:
    world.add_file(40)
    for process in range(12):
        world.checkout(process, host=f"wn{process}", site="A")
        world.report(process, 0 if process % 4 else 9)
    with LiveShim(
        world.dsn, folder / "www", OSGPROD_DASHBOARD_TOKEN=TOKEN, OSGPROD_DASHBOARD_ALLOW=""
    ) as live:
        yield live


@pytest.fixture
def get(shim: LiveShim) -> Callable[[str], httpx.Response]:
    return lambda path: shim.raw(f"api/{path}", headers={"Authorization": f"Bearer {TOKEN}"})


def test_functions_and_parameters_are_those_of_the_dashboards_role(world: World) -> None:
    grants = (SQL_FOLDER / "functions" / "grants.sql").read_text()
    shown = re.findall(
        r"osgprod\.(\w+)", grants.partition("-- What the dashboard")[2].partition("TO osgprod_worker")[0]
    )
    drawing = {"map_files"}  # cells of a picture
    assert set(FUNCTIONS) == set(shown) - drawing
    for function, parameters in FUNCTIONS.items():
        row = world.db.execute(
            "SELECT p.proargnames[1:p.pronargs] AS names, p.pronargs - p.pronargdefaults AS needed FROM pg_proc p"
            " WHERE p.proname = %s AND p.pronamespace = 'osgprod'::regnamespace",
            (function,),
        ).fetchone()
        assert row
        names = {name.removeprefix("p_") for name in row["names"]}
        assert names == {*parameters, *(["limit"] if function in LIMITED else [])}, function
        assert [f"p_{name}" for name in NEEDED[function]] == row["names"][: row["needed"]], function


@pytest.mark.parametrize("function", FUNCTIONS)
def test_answer_has_the_rows_of_the_function(
    function: str, world: World, get: Callable[[str], httpx.Response]
) -> None:
    arguments = dict(pair.split("=") for pair in REPEATED.get(function, "").split("&") if pair)
    if "project" in FUNCTIONS[function]:
        arguments["project"] = "p"
    answer = get(f"{function}?{urlencode(arguments)}")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    rows = call(world.db, function, **arguments)
    found = answer.json()
    assert found["next"] is None and len(found["rows"]) == len(rows)
    if rows:
        assert list(found["rows"][0]) == list(rows[0])


def test_pages_hold_every_row_once(get: Callable[[str], httpx.Response]) -> None:
    every = get("list_attempts?project=p").json()["rows"]
    path, found = "list_attempts?project=p&limit=5", []
    while path:
        answer = get(path).json()
        assert len(answer["rows"]) <= 5
        found += answer["rows"]
        path = (answer["next"] or "").partition("/api/")[2]
    assert len(every) == 12 and found == every


@pytest.mark.parametrize(
    ("path", "status", "word"),
    [
        ("nothing", 404, "there is no function 'nothing'"),
        ("register_rawdata?project=p", 404, "no function"),
        ("progress?projekt=p", 400, "no parameter 'projekt'"),
        ("rate?project=p&hours=many", 400, "parameter hours must be a number"),
        ("rate?project=p&hours=0", 400, "hours"),
        ("rate", 400, "parameter project is missing"),
        ("find", 400, "parameter text is missing"),
        ("log_tail?project=p&cluster=1", 400, "parameter process is missing"),
        ("rate?project=q", 404, "there is no project 'q'"),
        ("list_jobs?project=p&limit=0", 400, "limit or offset"),
        ("list_jobs?project=p&limit=1001", 400, "limit or offset"),
        ("list_jobs?project=p&offset=99999999", 400, "limit or offset"),
        ("list_jobs?project=p&cluster=2147483648", 400, "parameter cluster must be a number"),
        ("list_files?project=p&runs=x", 400, "parameter runs must be run numbers, as {90001,90002}, not 'x'"),
        ("list_files?project=p&runs={1,9999999999}", 400, "parameter runs must be"),
        ("progress?project=p&project=p", 400, "parameter project is given twice"),
        ("list_files?project=p&path=%00", 400, "NUL"),
    ],
)
def test_bad_request_gets_one_json_error_that_names_what_is_wrong(
    path: str, status: int, word: str, get: Callable[[str], httpx.Response]
) -> None:
    answer = get(path)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error", "hint"} and word in answer.json()["error"]
    assert not answer.json()["hint"].startswith("hint")


def test_without_the_dashboards_token_nothing_is_shown(shim: LiveShim) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        answer = shim.raw("api/progress", headers=headers)
        assert answer.status_code == 403 and "rows" not in answer.json()


def test_openapi_document_has_each_function(shim: LiveShim) -> None:
    paths = shim.raw("openapi.json").json()["paths"]
    assert {f"/osgprod/api/{function}" for function in FUNCTIONS} <= set(paths)


def test_a_page_of_a_long_list_is_read_alone_and_in_pieces_between_which_jobs_have_their_turn(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.db.execute(
        "CREATE FUNCTION osgprod.numbers() RETURNS TABLE (n int) LANGUAGE sql"
        " AS 'SELECT generate_series(0, 99999)'"
    )
    made: list[int] = []

    def counted(cursor: Any) -> Any:
        make = dict_row(cursor)
        return lambda values: (made.append(1), make(values))[1]

    monkeypatch.setattr(reader, "dict_row", counted)

    async def read(**part: int) -> tuple[list[dict[str, Any]], int]:
        turns, is_over = 0, False

        async def others() -> None:
            nonlocal turns
            while not is_over:
                turns += 1
                await asyncio.sleep(0)

        async with open_pool(world.dsn, 1) as pool:
            parts = SimpleNamespace(replica=None, pool=pool)
            request: Any = SimpleNamespace(app=SimpleNamespace(state=SimpleNamespace(parts=parts)))
            running = asyncio.create_task(others())
            (rows,) = await reader.Reader().read(request, ("numbers", {}), **part)
            is_over = True
            await running
        return rows, turns

    rows, turns = asyncio.run(read(offset=90_000, limit=1001))
    assert [row["n"] for row in rows] == list(range(90_000, 91_001))
    assert len(made) == 1001, "the rows before the page cost nothing"
    assert turns >= 1001 / reader.PIECE_ROWS
    assert [row["n"] for row in asyncio.run(read(offset=99_999, limit=10))[0]] == [99_999]
    assert asyncio.run(read(offset=100_000, limit=10))[0] == []
    rows, turns = asyncio.run(read())
    assert len(rows) == 100_000 and turns >= 100_000 / reader.PIECE_ROWS
