"""What operators who are signed in can do on the pages: each action is one call of a function that is on record.

The calls go over a connection of their own, with the login of ``OSGPROD_OPERATOR_DSN``: the shim's login can't do
what operators do. ``osgprod log`` shows the operator's name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.rows import dict_row
from starlette.requests import Request

from shim.database import SET_SESSION, connect_apart, hang_up_after, statement
from shim.web.parameters import BadRequest, number_of

Query = tuple[str, dict[str, object]]
LONGEST_CALL = "60s"
SILENCE_S = 70.0  # after which the connection of a server that is silent is ended
LONGEST_BAN_H = 24 * 30
MOST_RUNS = 5000  # of one list of files


def query_of(project: str, form: Mapping[str, str]) -> Query:
    """Return the function that an action calls, and its arguments.

    Parameters
    ----------
    project : str
        Name of the project.
    form : mapping
        ``action``: pause, resume, stop, requeue, resume-files, reclaim, retry-merges, ban, unban or stop-jobs;
        ``run`` and ``last_run`` (inclusive) of requeue and resume-files, which without them mean all runs; ``cluster``
        of reclaim; ``worker``, ``hours`` [1 .. 720] and ``reason`` of a ban; ``worker`` of unban and stop-jobs.

    Raises
    ------
    BadRequest
        No such action, or a field that it needs is missing or out of range.
    """
    worker = form.get("worker", "").strip()
    match form.get("action"):
        case "pause" | "resume" as action:
            state = "paused" if action == "pause" else "active"
            return "set_project", {"project": project, "settings": json.dumps({"state": state})}
        case "stop":
            return "stop_project", {"project": project}
        case "requeue":
            return "recycle", {"project": project, "states": ["quarantined"], "runs": _runs(form)}
        case "resume-files":
            return "resume_files", {"project": project, "runs": _runs(form)}
        case "reclaim" if form.get("cluster"):
            return "reclaim_lost", {"project": project, "cluster": _number(form, "cluster")}
        case "retry-merges":
            return "retry_merges", {"project": project}
        case "ban" if worker:
            hours = form.get("hours", "")
            if not (
                hours.isascii() and hours.isdigit() and len(hours) < 5 and 1 <= int(hours) <= LONGEST_BAN_H
            ):
                raise BadRequest(f"a ban lasts 1 to {LONGEST_BAN_H} hours", "write a whole number")
            reason = form.get("reason", "").strip()[:200] or "by the operator"
            seconds = 3600 * int(hours)
            return "ban_worker", {"project": project, "worker": worker, "seconds": seconds, "reason": reason}
        case "unban" if worker:
            return "ban_worker", {"project": project, "worker": worker, "seconds": 0, "reason": "unbanned"}
        case "stop-jobs" if worker:
            return "stop_jobs", {"project": project, "worker": worker}
    raise BadRequest("there is no such action, or it lacks a field", "use the buttons of the pages")


def _number(form: Mapping[str, str], field: str) -> int:
    number = number_of(form.get(field, ""))
    if number is None:
        raise BadRequest(f"{field} is not a whole number", "use the buttons of the pages")
    return number


def _runs(form: Mapping[str, str]) -> list[int] | None:
    """The runs that a form names; None = all."""
    if not form.get("run"):
        return None
    first, last = _number(form, "run"), _number(form, "last_run" if form.get("last_run") else "run")
    if not first <= last < first + MOST_RUNS:
        raise BadRequest(f"runs {first} to {last} are none, or too many", f"name {MOST_RUNS} runs at most")
    return list(range(first, last + 1))


async def call_as(dsn: str, operator: str, request: Request, query: Query) -> list[dict[str, Any]]:
    """Call a function in the name of an operator, in a separate transaction, and return its rows.

    Parameters
    ----------
    dsn : str
        libpq's connection string of a login that may operate.
    operator : str
        Name of the operator, for the log of operations.
    request : Request
        From where the operator acts.
    query : tuple of str and dict
        Function name and arguments.

    Raises
    ------
    psycopg.Error
        The function's own error, or that of a login without the right.
    """
    person = f"{operator} by dashboard from {request.scope['osgprod.client'] or 'unknown address'}"
    async with await connect_apart(dsn, "osgprod operator") as connection:
        with hang_up_after(connection, SILENCE_S):
            await connection.execute(SET_SESSION)
            async with connection.transaction(), connection.cursor(row_factory=dict_row) as cursor:
                await cursor.execute(f"SET LOCAL statement_timeout = '{LONGEST_CALL}'")
                await cursor.execute("SELECT set_config('osgprod.person', %s, true)", [person])
                await cursor.execute(*statement(*query))
                return await cursor.fetchall()


def is_missing_right(error: Exception) -> bool:
    """Is this the error of a login that may not operate?"""
    return isinstance(error, psycopg.errors.InsufficientPrivilege)
