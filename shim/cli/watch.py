"""Receives the notifications of channel ``osgprod``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Event
from typing import Any

import psycopg

from shim.cli.terminal import cell
from shim.database import connect

CHANNEL = "osgprod"
RETRY_S = 5.0
# An idle connection that a firewall has forgotten looks alive: it is asked now and then.
CHECK_S = 60.0


@dataclass(frozen=True)
class Notice:
    """One event.

    Parameters
    ----------
    details : dict[str, Any]
        Event, project, at, and what else belongs to it (docs/sql.md, Events).
    """

    details: dict[str, Any]

    @property
    def line(self) -> str:
        """The event in one line. Any database login can send an event, so control characters are replaced."""
        head = " ".join(cell(self.details.get(name, "-")) for name in ("at", "project", "event"))
        more = {name: value for name, value in self.details.items() if name not in ("at", "project", "event")}
        return " ".join([head, *(f"{name}={cell(value)}" for name, value in more.items())])


def listen(say: Callable[[str], None], is_stopped: Event, count: int | None = None) -> Iterator[Notice]:
    """Yield events as they arrive. After a lost connection it reconnects; events sent in between are missed.

    Parameters
    ----------
    say : Callable[[str], None]
        Is called with one line when the connection is made, lost, or restored.
    is_stopped : Event
        Ends it within a second, see until_ctrl_c.
    count : int | None
        Of events after which to end; None = never.

    Raises
    ------
    psycopg.OperationalError
        The first connection can't be made.
    """
    given = 0
    connection: psycopg.Connection[Any] | None = connect()
    while not is_stopped.is_set():
        try:
            if connection is None:
                connection = connect()
            connection.execute(f"LISTEN {CHANNEL}")
            say("listening")
            checked_at = time.monotonic()
            while not is_stopped.is_set():
                for notify in connection.notifies(timeout=1, stop_after=1):
                    yield _notice(notify.payload)
                    given += 1
                    if given == count:
                        connection.close()
                        return
                if time.monotonic() - checked_at > CHECK_S:
                    connection.execute("SELECT")
                    checked_at = time.monotonic()
        except psycopg.OperationalError:
            if connection is not None:
                say("the connection is lost; events until it is there again are not shown")
                connection.close()
                connection = None
            is_stopped.wait(RETRY_S)


def _notice(payload: str) -> Notice:
    try:
        details = json.loads(payload)
    except ValueError:
        details = None
    return Notice(details if isinstance(details, dict) else {"event": "unknown", "text": payload})
