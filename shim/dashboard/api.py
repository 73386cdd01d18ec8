"""The read side as JSON: ``api/FUNCTION?project=...``, behind the dashboard's guard, for notebooks and scripts.

Each route calls the function of its name. docs/sql.md has parameters and columns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from shim.dashboard.reader import Reader, freshness
from shim.web.failures import explain
from shim.web.guard import Guard
from shim.web.parameters import MOST_NUMBER, number_of

PAGE_ROWS = 1000
MOST_ROWS = 100_000  # that the functions return, and so where the pages of a list end
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
OF_PROJECT = {"project": "string"}
# Functions and their parameters; a test compares them with the database.
FUNCTIONS: dict[str, dict[str, str]] = {
    "progress": OF_PROJECT,
    "amounts": OF_PROJECT,
    "done_over_time": {**OF_PROJECT, "points": "integer"},
    "find": {"text": "string"},
    "health": OF_PROJECT,
    "totals": OF_PROJECT,
    "idle_and_leased": OF_PROJECT,
    "quarantined": OF_PROJECT,
    "blocked_workers": OF_PROJECT,
    "rate": {**OF_PROJECT, "hours": "integer"},
    "estimate": {**OF_PROJECT, "hours": "integer"},
    "attempts_by_exit": {**OF_PROJECT, "hours": "integer", "site": "string"},
    "attempts_by_site": {**OF_PROJECT, "hours": "integer", "site": "string"},
    "attempts_by_worker": {**OF_PROJECT, "hours": "integer", "order": "string", "site": "string"},
    "list_attempts": {
        **OF_PROJECT,
        "hours": "integer",
        "outcome": "string",
        "exit_code": "integer",
        "worker": "string",
        "site": "string",
    },
    "live_attempts": {**OF_PROJECT, "site": "string"},
    "resources": {**OF_PROJECT, "hours": "integer", "by": "string", "cores": "integer", "site": "string"},
    "slice_size": {**OF_PROJECT, "cpus": "integer", "site": "string", "time_left_s": "integer"},
    "delivery": OF_PROJECT,
    "list_merges": {**OF_PROJECT, "runs": "string", "state": "string"},
    "outputs_of": {**OF_PROJECT, "file_id": "integer", "cluster": "integer", "process": "integer"},
    "list_jobs": {**OF_PROJECT, "cluster": "integer", "hours": "integer"},
    "job_history": {**OF_PROJECT, "cluster": "integer", "process": "integer"},
    "log_tail": {**OF_PROJECT, "cluster": "integer", "process": "integer", "nstart": "integer"},
    "list_files": {
        **OF_PROJECT,
        "runs": "string",
        "path": "string",
        "state": "string",
        "file_id": "integer",
    },
    "list_slices": {
        **OF_PROJECT,
        "state": "string",
        "runs": "string",
        "path": "string",
        "file_id": "integer",
    },
}
LIMITED = (
    "blocked_workers",
    "attempts_by_site",
    "attempts_by_worker",
    "list_attempts",
    "live_attempts",
    "quarantined",
    "list_merges",
    "list_jobs",
    "list_files",
    "list_slices",
    "find",
)
OF_ALL_PROJECTS = (  # where none is named
    "progress",
    "amounts",
    "health",
    "totals",
    "idle_and_leased",
    "blocked_workers",
    "delivery",
)
OF_A_JOB = ("project", "cluster", "process")
NEEDED = {
    **dict.fromkeys(FUNCTIONS, ("project",)),
    **dict.fromkeys(OF_ALL_PROJECTS, ()),
    **dict.fromkeys(("job_history", "log_tail"), OF_A_JOB),
    "find": ("text",),
}
_RUNS = re.compile(r"\{(\d{1,9}(,\d{1,9})*)?\}", re.ASCII)
PAGING = {"limit": "integer", "offset": "integer"}
MEANINGS = {
    "limit": f"rows of a page [1 .. {PAGE_ROWS}]; default: {PAGE_ROWS}",
    "offset": f"rows before this page [0 .. {MOST_ROWS - PAGE_ROWS}]; default: 0",
    "points": "rows at most [2 .. 10000]; default: 200",
    "text": "what to look for: a job, cluster, run, file, worker, site or project",
    "runs": "run numbers, as {90001,90002}",
}


class Api:
    """The routes below ``api/``.

    Parameters
    ----------
    root : str
        Path of the URL before all pages, without a slash at its end.
    guard : Guard
        Decides which callers may read.
    reader : Reader
        Reads for the pages of this process.
    """

    def __init__(self, root: str, guard: Guard, reader: Reader) -> None:
        self._root, self._guard, self._reader = root, guard, reader

    def routes(self) -> list[BaseRoute]:
        """Return a route for each function."""
        return [Route(f"{self._root}/api/{{function}}", self._answer)]

    async def _answer(self, request: Request) -> Response:
        if not self._guard.admits(request):
            return _error(403, "not allowed", "send the dashboard's token: Authorization: Bearer TOKEN")
        function = request.path_params["function"]
        known = FUNCTIONS.get(function)
        if known is None:
            return _error(404, f"there is no function {function[:63]!r}", f"one of {', '.join(FUNCTIONS)}")
        query: dict[str, str] = {}
        for name, text in request.query_params.multi_items():
            kind = {**known, **PAGING}.get(name)
            if kind is None:
                names = ", ".join((*known, *PAGING))
                return _error(400, f"{function} has no parameter {name[:63]!r}", f"it has {names}")
            if name in query:
                return _error(400, f"parameter {name} is given twice", "give each parameter once")
            if kind == "integer" and number_of(text) is None:
                return _error(
                    400,
                    f"parameter {name} must be a number, not {text[:40]!r}",
                    f"write digits: 0 to {MOST_NUMBER}",
                )
            if name == "runs" and not _RUNS.fullmatch(text):
                return _error(
                    400, f"parameter runs must be {MEANINGS['runs']}, not {text[:40]!r}", "write digits"
                )
            if "\0" in text:
                return _error(400, f"parameter {name} has a NUL byte", "leave it out")
            query[name] = text
        for name in NEEDED[function]:
            if name not in query:
                return _error(
                    400, f"parameter {name} is missing", f"{function} needs {', '.join(NEEDED[function])}"
                )
        limit, offset = int(query.pop("limit", PAGE_ROWS)), int(query.pop("offset", 0))
        if not 1 <= limit <= PAGE_ROWS or offset > MOST_ROWS - PAGE_ROWS:
            return _error(
                400, "limit or offset is out of range", f"{MEANINGS['limit']}; {MEANINGS['offset']}"
            )
        arguments: dict[str, object] = dict(query)
        if function in LIMITED:
            arguments["limit"] = str(min(offset + limit + 1, MOST_ROWS))
        try:
            (rows,) = await self._reader.read(request, (function, arguments), offset=offset, limit=limit + 1)
        except Exception as error:
            failure = explain(error)
            if failure.is_a_fault:
                raise
            message, *hint = failure.lines
            return _error(failure.status, message, " ".join(hint).removeprefix("hint: "), failure.retry_s)
        more = None
        if len(rows) > limit:
            more = f"{request.url.path}?{urlencode({**query, 'limit': limit, 'offset': offset + limit})}"
        fresh = freshness.get()
        answer = {
            "rows": rows[:limit],
            "next": more,
            "as_of": fresh.as_of or datetime.now(UTC),
            "is_replica": fresh.is_replica,
        }
        body = await run_in_threadpool(_json, answer)
        return Response(body, 200, HEADERS, media_type="application/json")


def paths() -> dict[str, Any]:
    """Return the routes as paths of an OpenAPI document."""
    return {
        f"api/{function}": {
            "get": {
                "operationId": f"api_{function}",
                "summary": f"The rows of osgprod.{function} (docs/sql.md)",
                "security": [{}, {"bearer": []}],
                "parameters": [
                    {
                        "name": name,
                        "in": "query",
                        "required": name in NEEDED[function],
                        "schema": {"type": kind, "description": MEANINGS.get(name, name)},
                    }
                    for name, kind in {**known, **PAGING}.items()
                ],
                "responses": {
                    "200": {
                        "description": "rows, their time in as_of, and the path of the next page in next"
                    },
                    "400": {"description": "a parameter is wrong; error names it"},
                    "403": {"description": "not allowed to see the dashboard"},
                    "404": {"description": "no such project"},
                    "503": {"description": "the database is away or busy"},
                },
            }
        }
        for function, known in FUNCTIONS.items()
    }


def _error(status: int, message: str, hint: str, retry_s: int | None = None) -> Response:
    headers = {**HEADERS, **({"Retry-After": str(retry_s)} if retry_s else {})}
    return Response(_json({"error": message, "hint": hint}), status, headers, media_type="application/json")


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, default=_plain).encode()


def _plain(value: object) -> object:
    """A value that JSON has no type for: times in ISO 8601, numbers as numbers, all else as text."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    return str(value)
