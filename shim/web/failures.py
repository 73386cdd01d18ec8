"""Answers for errors: the full text of osgprod's own errors, and no detail of any other."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from shim.database import SchemaChanged
from shim.web.batches import SERVERS_TROUBLE, CallError
from shim.web.bearer import BearerError
from shim.web.parameters import BadRequest
from shim.workscript import TemplateError, error_text

# The group g of an error code OGgxx decides its HTTP status (docs/design.md).
STATUS_OF_GROUP = {"1": 400, "2": 403, "3": 404, "4": 409, "5": 503, "6": 429, "9": 500}
RETRY_AFTER_S = {503: 15, 429: 60}
# 40...: the server ended a transaction to let others go on; 55P03: a lock; 57014: statement_timeout.
# 26000, 42P05: a prepared statement that a pooler has lost or has made before.
TRY_AGAIN = (*SERVERS_TROUBLE, "26000", "40001", "40P01", "42P05", "55P03", "57014")
DURING_MIGRATION = ("0A000", "42883", "3F000")
TELL_OPERATOR = "tell the operator the Osgprod-Request number"


class TooOften(Exception):
    """A request over one of the rate limits.

    Parameters
    ----------
    message : str
        One line.
    wait_s : int
        When the next request may come [s].
    """

    def __init__(self, message: str, wait_s: int) -> None:
        super().__init__(message)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Failure:
    """The answer to a request that failed.

    Parameters
    ----------
    status : int
        HTTP status.
    body : bytes
        Comment lines: the message, and a hint.
    retry_s : int or None
        For the header Retry-After [s].
    is_a_fault : bool
        It is a fault of the server's that should be looked at: the log gets its traceback.
    """

    status: int
    body: bytes
    retry_s: int | None = None
    is_a_fault: bool = False

    @property
    def lines(self) -> list[str]:
        """The message and the hint, without the comment signs."""
        return [line.removeprefix("# ") for line in self.body.decode().splitlines()]


def explain(error: Exception) -> Failure:
    """Return the answer for an error.

    Parameters
    ----------
    error : Exception
        The exception that a route raised.
    """
    status, body = _response_for(error)
    retry_s = getattr(error, "wait_s", RETRY_AFTER_S.get(status))
    return Failure(status, body, retry_s, status == 500 and not isinstance(error, TemplateError))


def _response_for(error: Exception) -> tuple[int, bytes]:
    match error:
        case BadRequest():
            return 400, error_text(str(error), error.hint, "OG100")
        case BearerError():
            return error.status, error_text(str(error), error.hint, error.code)
        case TooOften():
            return 429, error_text(
                str(error),
                f"try again in {error.wait_s} s; OSGPROD_CLIENT_RATE and OSGPROD_PROJECT_RATE set the limits",
                "OG604",
            )
        case PoolTimeout() | TooManyRequests() | PoolClosed():
            message = "all connections to the database are in use, or the database is away"
            return 503, error_text(message, "try again in a while")
        case TemplateError():
            message = "the work script or merge script of this project can't be used"
            return 500, error_text(message, "tell the operator: osgprod doctor")
        case ClientDisconnect():
            return 400, b""
        case HTTPException(status_code=404):
            message = "nothing is served at this path"
            return 404, error_text(
                message,
                "pages begin at /osgprod/ (OSGPROD_ROOT_PATH), and docs/protocol.md has the routes of jobs",
            )
        case HTTPException(status_code=405):
            allowed = sorted((error.headers or {}).get("Allow", "GET").split(", "))
            return 405, error_text("this method does nothing here", f"use {' or '.join(allowed)}")
        case SchemaChanged():
            return _response_for_migration()
        case CallError():
            return _response_for_call(str(error), error.hint, error.sqlstate)
        case psycopg.Error():
            return _response_for_database(error)
    return 500, error_text("internal error", TELL_OPERATOR)


def _response_for_migration() -> tuple[int, bytes]:
    return 503, error_text(
        "the database is being brought up to date", "try again in a while; osgprod migrate"
    )


def _response_for_database(error: psycopg.Error) -> tuple[int, bytes]:
    return _response_for_call(
        error.diag.message_primary or "", error.diag.message_hint, error.sqlstate or "08000"
    )


def _response_for_call(message: str, hint: str | None, code: str) -> tuple[int, bytes]:
    if code.startswith("OG") and code[2:3] in STATUS_OF_GROUP:
        return STATUS_OF_GROUP[code[2]], error_text(message, hint, code)
    if code == "25006":
        return 503, error_text("the database takes no writes", "try again in a while; osgprod doctor")
    if code == "53100":
        return 503, error_text("the disk of the database is full", "try again in a while; make room there")
    if code.startswith(TRY_AGAIN):
        return 503, error_text("the database is away or busy", "try again in a while")
    if code in DURING_MIGRATION:
        return _response_for_migration()
    if code.startswith("22"):  # a value that no argument type takes, like a malformed address
        return 400, error_text("a parameter has a value that can't be", "see docs/protocol.md", "OG100")
    return 500, error_text("internal error", TELL_OPERATOR)
