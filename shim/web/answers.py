"""What this process answered to jobs, counted until the timer writes it into the database, where health reads it.

Most errors never reach a function of the database: a missing work script, a busy pool, a server that is away.
"""

from __future__ import annotations

import time
from typing import Any

from shim.web.failures import Failure
from shim.workscript import TemplateError

ROUTES = frozenset(("checkout", "heartbeat", "report"))
MOST_KEYS = 1000  # kept at most; an answer of a further kind is not counted
LONGEST_NAME = 63  # of a project
# Reasons that say nothing of whether there is such a project: unknown, or rejected before the database was asked.
NOT_OF_A_PROJECT = ("OG301", "OG204", "OG503", "OG1")

_Key = tuple[int, str | None, str, int, str]  # minute [s since 1970], project, route, HTTP status, reason


class Answers:
    """Counts answers by minute, project, route, HTTP status and reason."""

    def __init__(self) -> None:
        self._counts: dict[_Key, int] = {}
        self._messages: dict[_Key, str | None] = {}
        self._projects: set[str] = set()  # that there are; a stranger may name any other

    def count(
        self, project: str | None, route: str, status: int, reason: str, message: str | None = None
    ) -> None:
        """Count one answer.

        Parameters
        ----------
        project : str or None
            As the job named it; None: it named none that can be read. A name is kept only of a project that the
            database knows, so that a stranger's inventions use up no kinds.
        route : str
            Name of the endpoint; those that are not for jobs are not counted.
        status : int
            HTTP status.
        reason : str
            One word: Osgprod-Status, or what cause() returns.
        message : str, optional
            One line; the first one of a kind in a minute is kept.
        """
        if route not in ROUTES:
            return
        if project not in self._projects:
            if project and len(project) <= LONGEST_NAME and _is_known(status, reason):
                self._projects.add(project)
            else:
                project = None
        key = (int(time.time()) // 60 * 60, project, route, status, reason)
        if key in self._counts:
            self._counts[key] += 1
        elif len(self._counts) < MOST_KEYS:
            self._counts[key] = 1
            self._messages[key] = message

    def take(self) -> list[dict[str, Any]]:
        """Return the counts, as note_answers() takes them, and count from 0 again."""
        rows = [
            {
                "minute": minute,
                "project": project,
                "route": route,
                "status": status,
                "reason": reason,
                "message": self._messages[key],
                "times": times,
            }
            for key, times in self._counts.items()
            for minute, project, route, status, reason in [key]
        ]
        self._counts, self._messages = {}, {}
        return rows

    def put_back(self, rows: list[dict[str, Any]]) -> None:
        """Count again what could not be written.

        Parameters
        ----------
        rows : list of dict
            As take() returned them.
        """
        for row in rows:
            key = (row["minute"], row["project"], row["route"], row["status"], row["reason"])
            if key in self._counts or len(self._counts) < MOST_KEYS:
                self._counts[key] = self._counts.get(key, 0) + row["times"]
                self._messages.setdefault(key, row["message"])


def _is_known(status: int, reason: str) -> bool:
    """Did the database know the project, as this answer shows?"""
    is_verdict = reason.startswith("OG") and not reason.startswith(NOT_OF_A_PROJECT)
    return status < 400 or reason == TemplateError.__name__ or is_verdict


def cause(error: Exception, failure: Failure) -> tuple[str, str]:
    """Return the reason of an answer to a request that failed, without spaces, and a line without secrets.

    Parameters
    ----------
    error : Exception
        What the route has raised.
    failure : Failure
        What explain() makes of it.
    """
    code = getattr(error, "sqlstate", None) or getattr(error, "code", None) or type(error).__name__
    if isinstance(error, TemplateError):
        return str(code), str(error)
    first = failure.body.decode(errors="replace").partition("\n")[0]
    return str(code), first.partition(": ")[2] or first
