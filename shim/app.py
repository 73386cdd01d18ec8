"""The web shim: a route reads parameters, calls one function of the database, formats its answer.

The protocol's GETs change state, since the original's clients use GET. A lost answer is safe: the functions are
idempotent, a job that asks again gets the same slice, a report that comes again the same answer.

Every rule is in the database (sql/functions). What is here is HTTP: parameters in, text/plain out, and which status
each group of errors has.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from shim import workscript
from shim.dashboard.routes import Dashboard
from shim.database import dsn_from_environment, open_pool
from shim.web import openapi, parameters
from shim.web.address import SettingError, TrustedProxies
from shim.web.batches import SERVERS_TROUBLE, Batches
from shim.web.bearer import BearerError, BearerTokens
from shim.web.guard import Guard
from shim.web.metrics import Metrics
from shim.web.parameters import BadRequest
from shim.web.rates import RateLimit, key_of
from shim.workscript import TemplateError, TemplateFolder, ascii_text, error_text, idle_script

log = logging.getLogger("osgprod")

# The group g of an error code OGgxx says which HTTP status it has (docs/design.md). Other classes: see _failure.
STATUS_OF_GROUP = {"1": 400, "2": 403, "3": 404, "4": 409, "5": 503, "6": 429, "9": 500}
RETRY_AFTER_S = {503: 15, 429: 60}

CLIENT_RATE = 6000  # requests a minute of one address, in each process
POOL_SIZE = 8  # connections of each process
TICK_S = 10.0
TICK_TIMEOUT_S = 60.0

CHECKOUT, REPORT, HEARTBEAT = "checkout_slices", "report_exits", "heartbeats"


class TooOften(Exception):
    """A request over one of the limits; one line, and when the next may come [s]."""

    def __init__(self, message: str, wait_s: int) -> None:
        super().__init__(message)
        self.wait_s = wait_s


async def _arguments(request: Request) -> tuple[dict[str, Any], list[str]]:
    """What the request says, as arguments of a function, and notes on what of it is ignored or changed."""
    values, notes = await parameters.read(request)
    authorization, bearer = request.headers.get("authorization"), None
    if authorization and not values.get("magic"):
        bearer = await request.app.state.tokens.claims(authorization)
    return {**values, "client": request.scope["osgprod.client"], "bearer": bearer}, notes


async def _work(request: Request, function: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """A call for work, which counts against its project's rate once the database has let the caller in."""
    rate: RateLimit = request.app.state.project_rate
    project = arguments.get("project", "")
    if wait_s := rate.wait_s(project):
        raise TooOften("project gets too many requests a minute", wait_s)
    answer: dict[str, Any] = await request.app.state.batches.call(function, arguments)
    rate.count(project)
    return answer


async def checkout(request: Request) -> Response:
    """``workscript.bash``: the script of the slice that this job shall process."""
    templates: TemplateFolder = request.app.state.templates
    arguments, notes = await _arguments(request)
    arguments.setdefault("cpus", 1)
    project = arguments.get("project", "")
    arguments["workscript"], template = templates.at_hand(project)
    answer = await _work(request, CHECKOUT, arguments)
    while answer["status"] == "template":
        # The first request of a project, or a changed template: nothing was lent without a template in hand.
        arguments["workscript"], template = templates.load(project, answer["workscript"])
        answer = await _work(request, CHECKOUT, arguments)
    headers = {"Osgprod-Status": answer["status"], **_noted(notes)}
    if answer["status"] != "assigned" or template is None:
        if answer["retry_s"]:
            headers["Retry-After"] = str(answer["retry_s"])
        return _text(idle_script(answer["message"]), headers=headers)
    headers |= {
        "Osgprod-Token": str(answer["token"]),
        "Osgprod-Nstarts": str(answer["nstarts"]),
        "Osgprod-Lease": str(answer["lease_s"]),
        "Osgprod-Heartbeat": str(answer["heartbeat_s"]),
        "Osgprod-Slice": f"{ascii_text(answer['filename'])}+{answer['block1']},{answer['block2']}",
    }
    return _text(template.fill(answer, arguments), headers=headers)


async def report(request: Request) -> Response:
    """``workscript.exit``: how the job's attempt ended."""
    arguments, notes = await _arguments(request)
    return _verdict(await _work(request, REPORT, arguments), notes)


async def heartbeat(request: Request) -> Response:
    """``workscript.ping``: the attempt is alive, and how far it is."""
    arguments, notes = await _arguments(request)
    arguments["cpu_s"] = arguments.get("cpu")
    return _verdict(await _work(request, HEARTBEAT, arguments), notes)


def _verdict(answer: Mapping[str, Any], notes: Sequence[str]) -> Response:
    """The database's answer, with a line for each thing that it or this shim ignored or changed."""
    status, (message, *ignored) = answer["http_status"], answer["message"].split("\n")
    notes = [*notes, *ignored]
    body = f"{message}\n".encode() if status == 200 else error_text(message)
    body += "".join(f"{'' if status == 200 else '# '}{note}\n" for note in notes).encode()
    return _text(body, status, {"Osgprod-Status": answer["status"], **_noted(notes)})


def _noted(notes: Sequence[str]) -> dict[str, str]:
    return {"Osgprod-Note": "; ".join(notes)[:1000]} if notes else {}


async def healthz(request: Request) -> Response:
    """``healthz``: 200 when this shim can serve."""
    async with request.app.state.pool.connection() as connection:
        await connection.execute("SELECT * FROM osgprod.alive()")
    return _text(b"ok\n")


async def describe(request: Request) -> Response:
    """``openapi.json``: what is served here, for tools."""
    return JSONResponse(openapi.document(request.scope["path"].rpartition("/")[0]))


def _text(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **(headers or {})}
    return Response(body, status, headers, media_type="text/plain")


def _failure(error: Exception) -> tuple[int, bytes]:
    """What a client is told of an error: all of one of our own, nothing of any other."""
    if isinstance(error, BadRequest):
        return 400, error_text(str(error), error.hint, "OG100")
    if isinstance(error, BearerError):
        return error.status, error_text(str(error), error.hint, error.code)
    if isinstance(error, TooOften):
        return 429, error_text(str(error), f"try again in {error.wait_s} s, and find out why", "OG604")
    if isinstance(error, PoolTimeout | TooManyRequests | PoolClosed):
        return 503, error_text(
            "all connections to the database are in use or it is away", "try again in a while"
        )
    if isinstance(error, TemplateError):
        return 500, error_text(
            "the work script of this project can't be used", "tell the production manager: osgprod doctor"
        )
    if not isinstance(error, psycopg.Error):
        return 500, error_text("internal error", "tell the production manager the Osgprod-Request number")
    code = error.sqlstate or "08000"
    if code.startswith("OG"):
        text = error_text(error.diag.message_primary or "", error.diag.message_hint, code)
        return STATUS_OF_GROUP[code[2]], text
    # 25006: a standby; 57014: a statement_timeout of the server's
    if code.startswith(SERVERS_TROUBLE) or code in ("25006", "40001", "40P01", "55P03", "57014"):
        return 503, error_text("the database is away or busy", "try again in a while")
    if code in ("0A000", "42883", "3F000") or "cache lookup failed" in str(error):
        return 503, error_text(
            "the database is being brought up to date", "try again in a while; osgprod migrate"
        )
    if code.startswith("22"):  # a value that no argument type takes, like a malformed address
        return 400, error_text("a parameter has a value that can't be", "see docs/protocol.md", "OG100")
    return 500, error_text("internal error", "tell the production manager the Osgprod-Request number")


Endpoint = Callable[[Request], Awaitable[Response]]


async def nowhere(request: Request) -> Response:
    """Any other path: answered and logged like all others, since a mistyped URL is looked for in the log."""
    return _text(
        error_text("nothing is served at this path", "is the URL right? docs/protocol.md has the routes"), 404
    )


def _endpoint(function: Endpoint) -> Endpoint:
    """Gives an endpoint its request number, its log line, its place in the metrics, and plain answers to errors."""
    name = function.__name__.lstrip("_")

    async def endpoint(request: Request) -> Response:
        started = time.perf_counter()
        number = f"{os.getpid():x}-{time.time_ns() & 0xFFFFFFFFFF:x}"
        note = ""
        state = request.app.state
        peer = request.client.host if request.client else None
        client = request.scope["osgprod.client"] = state.proxies.client(peer, request.scope["headers"])
        if request.method not in ("GET", "POST"):
            # HEAD too: whoever only looks must not take a slice.
            response = _text(error_text(f"method {request.method} does nothing here", "use GET or POST"), 405)
            response.headers["Allow"] = "GET, POST"
        else:
            try:
                if wait_s := state.client_rate.wait_s(key := key_of(client)):
                    raise TooOften("your address sends too many requests a minute", wait_s)
                state.client_rate.count(key)
                response = await function(request)
            except ClientDisconnect:
                response = _text(b"", 400)
            except Exception as error:
                status, body = _failure(error)
                note = f" error={(str(error).splitlines() or [type(error).__name__])[0][:300]!a}"
                response = _text(body, status)
                if retry_s := getattr(error, "wait_s", RETRY_AFTER_S.get(status)):
                    response.headers["Retry-After"] = str(retry_s)
                if status == 500 and not isinstance(error, TemplateError):
                    log.exception("request=%s failed", number)
        seconds = time.perf_counter() - started
        answer = response.headers.get("Osgprod-Status", "-")
        state.metrics.count(name, response.status_code, answer, seconds)
        response.headers["Osgprod-Request"] = number
        if response.status_code >= 400 and answer == "-":
            # A job believes an answer only with a status of ours: the server in front has a 404 of its own.
            response.headers["Osgprod-Status"] = "error"
        log.info(
            "request=%s client=%s path=%s status=%d answer=%s ms=%.1f%s",
            number,
            client or "-",
            _logged(request.scope["path"]),
            response.status_code,
            answer,
            seconds * 1000,
            note,
        )
        return response

    return endpoint


@functools.lru_cache(maxsize=64)
def _logged(path: str) -> str:
    """A path as the log shows it: one word, and nothing of a query that somebody put into it, with its secrets."""
    return ascii_text(re.split("[?;&]", path[:300], maxsplit=1)[0]).replace(" ", "?")


async def _tick(dsn: str) -> None:
    """Calls the database's housekeeping every few seconds, and goes on whatever happens.

    On a connection of its own, and not for ever: neither a crowded pool nor a server that hangs stands between a lease
    that ran out and its slice.
    """
    while True:
        await asyncio.sleep(TICK_S)
        try:
            async with (
                asyncio.timeout(TICK_TIMEOUT_S),
                await psycopg.AsyncConnection.connect(
                    dsn, autocommit=True, application_name="osgprod tick"
                ) as db,
            ):
                await db.execute("SELECT * FROM osgprod.tick()")
        except Exception as error:
            log.warning("tick: %s", (str(error).splitlines() or [type(error).__name__])[0])


def _without_query(record: logging.LogRecord) -> bool:
    """Takes the query, which may hold a magic, out of the access log that a server of somebody else's keeps."""
    if isinstance(record.args, tuple):
        record.args = tuple(a.partition("?")[0] if isinstance(a, str) else a for a in record.args)
    return True


def _count(setting: str, default: int, least: int = 0) -> int:
    """A number from the environment."""
    text = os.environ.get(setting, "") or str(default)
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) >= least):
        raise SettingError(f"{setting}: {text[:40]!r} is no number from {least} to 9999999999")
    return int(text)


class _Application(Starlette):
    """Starlette, but what jobs ask goes by its path straight to its endpoint.

    These answer every error themselves, so that the layers for errors and the search for a route, which are a twentieth
    of a request, have nothing to do for them.
    """

    direct: Mapping[str, Endpoint] = {}  # by path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self.direct.get(scope["path"]) if scope["type"] == "http" else None
        if endpoint is None:
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        response = await endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


def create_app(
    dsn: str | None = None, document_root: Path | None = None, root_path: str | None = None
) -> Starlette:
    """Makes the ASGI application.

    Parameters: dsn            where the database is; None = OSGPROD_DSN or libpq's own variables
                document_root  templates are at ROOT/PROJECT/WORKSCRIPT; None = see document_root()
                root_path      where the routes are; None = OSGPROD_ROOT_PATH or /osgprod
    """
    dsn = dsn_from_environment() if dsn is None else dsn
    root = workscript.document_root() if document_root is None else document_root
    path = os.environ.get("OSGPROD_ROOT_PATH", "/osgprod") if root_path is None else root_path
    if path and not path.startswith("/"):
        raise SettingError(f"OSGPROD_ROOT_PATH: {path!r} does not begin with /")
    path = path.rstrip("/")
    proxies, tokens = TrustedProxies(os.environ.get("OSGPROD_TRUSTED_PROXIES", "")), BearerTokens()
    client_rate = RateLimit(_count("OSGPROD_CLIENT_RATE", CLIENT_RATE))
    project_rate = RateLimit(_count("OSGPROD_PROJECT_RATE", 0))
    pool_size, metrics = _count("OSGPROD_POOL_SIZE", POOL_SIZE, least=1), Metrics()
    logging.getLogger("uvicorn.access").addFilter(_without_query)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        # The database may be away now: requests are answered 503 until it is there.
        app.state.templates = TemplateFolder(root)
        app.state.tokens, app.state.proxies, app.state.metrics = tokens, proxies, metrics
        app.state.client_rate, app.state.project_rate = client_rate, project_rate
        app.state.pool = open_pool(dsn, pool_size)
        app.state.batches = Batches(app.state.pool, pool_size)
        await app.state.pool.open(wait=False)
        ticker = asyncio.create_task(_tick(dsn))
        try:
            yield
        finally:
            ticker.cancel()
            await app.state.pool.close()
            metrics.end()

    methods = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]  # all answered by _endpoint
    asked_by_jobs = [
        Route(f"{path}/workscript.bash", _endpoint(checkout), methods=methods),
        Route(f"{path}/workscript.exit", _endpoint(report), methods=methods),
        Route(f"{path}/workscript.ping", _endpoint(heartbeat), methods=methods),
    ]
    others = [
        Route(f"{path}/healthz", _endpoint(healthz), methods=methods),
        Route(f"{path}/openapi.json", _endpoint(describe), methods=methods),
        *Dashboard(path, Guard(), metrics, _failure).routes(_endpoint),
    ]
    elsewhere = _endpoint(nowhere)

    async def not_found(request: Request, error: Exception) -> Response:
        return await elsewhere(request)

    app = _Application(
        routes=[*asked_by_jobs, *others], lifespan=lifespan, exception_handlers={404: not_found}
    )
    app.direct = {route.path: route.endpoint for route in asked_by_jobs}
    # A path is right or it is not; the host in a request leads nobody anywhere.
    app.router.redirect_slashes = False
    return app
