"""The web shim: a route reads parameters, calls one function of the database, formats its answer.

The protocol's GETs change state, since the original's clients use GET. A lost answer is safe: the functions are
idempotent. A job that repeats its question gets the same slice, and a repeated report gets the same answer.

Every rule is in the database (sql/functions). Here is HTTP: parameters in, text/plain out. What surrounds a request is
in shim/web.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shim.config import Settings
from shim.dashboard import api
from shim.dashboard.routes import Dashboard
from shim.database import open_pool
from shim.replica import Replica
from shim.version import OURS, which_is_older
from shim.web import logs, openapi, parameters, timer
from shim.web.address import TrustedProxies
from shim.web.answers import Answers
from shim.web.batches import Batches
from shim.web.bearer import BearerTokens
from shim.web.failures import TooOften
from shim.web.guard import Guard
from shim.web.health import Health
from shim.web.metrics import Metrics
from shim.web.middleware import Endpoint, PlainText, Surround
from shim.web.operators import Operators
from shim.web.rates import RateLimit
from shim.workscript import (
    TASKS,
    Template,
    TemplateError,
    TemplateFolder,
    ascii_text,
    error_text,
    idle_script,
)

CHECKOUT, REPORT, HEARTBEAT = "checkout_slices", "report_exits", "heartbeats"


@dataclass(frozen=True)
class Parts:
    """What the routes work with, as ``request.app.state.parts``."""

    pool: AsyncConnectionPool[Any]
    replica: Replica | None
    batches: Batches
    templates: TemplateFolder
    tokens: BearerTokens
    project_rate: RateLimit
    health: Health
    answers: Answers


async def _arguments(request: Request) -> tuple[dict[str, Any], list[str]]:
    """What the request says, as arguments of a function, and notes on what of it is ignored or changed."""
    arguments, notes = await parameters.read(request)
    request.scope["osgprod.project"] = arguments.get("project")
    bearer = None
    if not arguments.get("magic") and (authorization := request.headers.get("authorization")):
        bearer = await request.app.state.parts.tokens.claims(authorization)
    return {**arguments, "client": request.scope["osgprod.client"], "bearer": bearer}, notes


async def _call(request: Request, function: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Call a function; the call counts against the project's rate once the database has accepted the caller."""
    parts: Parts = request.app.state.parts
    project = arguments.get("project", "")
    if wait_s := parts.project_rate.wait_s(project):
        raise TooOften("project gets too many requests a minute", wait_s)
    answer = await parts.batches.call(function, arguments)
    parts.project_rate.count(project)
    return answer


def _held(held: Mapping[str, tuple[str, Template | None]], fault: dict[str, str]) -> dict[str, Any]:
    """The arguments of checkout_slice that describe the templates which this process holds."""
    digests = {name: template.digest for name, template in held.values() if template}
    return {"workscript": held["slice"][0], "templates": fault | digests}


async def checkout(request: Request) -> PlainText:
    """``workscript.bash``: the script of the slice that this job shall process."""
    templates: TemplateFolder = request.app.state.parts.templates
    arguments, notes = await _arguments(request)
    arguments.setdefault("cpus", 1)
    project = arguments.get("project", "")
    held = {task: templates.at_hand(project, task) for task in TASKS}
    answer = await _call(request, CHECKOUT, arguments | _held(held, templates.fault(project)))
    while answer["status"] == "template":
        # The first request of a project, or a changed template: no slice is leased before the template is read. Where
        # the merge script can't be used, no merge is assigned, and health says why.
        task = answer["task"]
        try:
            held[task] = templates.load(project, answer["workscript"], task)
        except TemplateError:
            if task != "merge":
                raise
            why = templates.fault(project).get(answer["workscript"])
            request.app.state.parts.answers.count(project, "checkout", 200, "mergescript", why)
        answer = await _call(request, CHECKOUT, arguments | _held(held, templates.fault(project)))
    _, template = held[answer["task"] or "slice"]
    headers = {"Osgprod-Status": answer["status"], **_noted(notes)}
    if answer["status"] != "assigned" or template is None:
        if answer["retry_s"]:
            headers["Retry-After"] = str(answer["retry_s"])
        return PlainText(idle_script(answer["message"]), headers=headers)
    headers |= {
        "Osgprod-Token": str(answer["token"]),
        "Osgprod-Nstarts": str(answer["nstarts"]),
        "Osgprod-Lease": str(answer["lease_s"]),
        "Osgprod-Heartbeat": str(answer["heartbeat_s"]),
        "Osgprod-Task": answer["task"],
        "Osgprod-Slice": f"merge {answer['filename']}"
        if answer["merge"]
        else f"{ascii_text(answer['filename'])}+{answer['block1']},{answer['block2']}",
    }
    if answer["merge"] and answer["merge"].get("token_hosts"):
        headers["Osgprod-Token-Hosts"] = ascii_text(answer["merge"]["token_hosts"])
    return PlainText(template.fill(answer, arguments), headers=headers)


async def report(request: Request) -> PlainText:
    """``workscript.exit``: how the job's attempt ended."""
    arguments, notes = await _arguments(request)
    return _verdict(await _call(request, REPORT, arguments), notes)


async def heartbeat(request: Request) -> PlainText:
    """``workscript.ping``: the attempt is alive, and how far it is."""
    arguments, notes = await _arguments(request)
    arguments["cpu_s"] = arguments.get("cpu")
    return _verdict(await _call(request, HEARTBEAT, arguments), notes)


def _verdict(answer: Mapping[str, Any], notes: Sequence[str]) -> PlainText:
    """The database's answer, with a line for each thing that it or this shim ignored or changed."""
    status, (message, *ignored) = answer["http_status"], answer["message"].split("\n")
    notes = [*notes, *ignored]
    body = f"{message}\n".encode() if status == 200 else error_text(message)
    body += "".join(f"{'' if status == 200 else '# '}{note}\n" for note in notes).encode()
    return PlainText(body, status, {"Osgprod-Status": answer["status"], **_noted(notes)})


def _noted(notes: Sequence[str]) -> dict[str, str]:
    return {"Osgprod-Note": "; ".join(notes)[:1000]} if notes else {}


async def healthz(request: Request) -> PlainText:
    """``healthz``: 200 when jobs can get work and report; a second line when the database is newer."""
    version = await request.app.state.parts.health.version()
    older = which_is_older(version)
    if older and (version is None or version in OURS):
        return PlainText(error_text(older), 503, {"Retry-After": "60"})
    await request.app.state.parts.health.try_write()
    return PlainText(f"ok\n{older}".strip().encode() + b"\n")


async def describe(request: Request) -> Response:
    """``openapi.json``: a description of the routes, for tools."""
    return Response(_description(request.scope["path"].rpartition("/")[0]), media_type="application/json")


@functools.cache
def _description(root: str) -> bytes:
    return json.dumps(openapi.document(root, api.paths())).encode()


def create_app(settings: Settings | None = None) -> Starlette:
    """Make the ASGI application.

    Parameters
    ----------
    settings : Settings, optional
        Default: those of the environment.

    Raises
    ------
    SettingError
        A setting with a value that can't be.
    """
    settings = Settings.read() if settings is None else settings
    dsn, root = settings.dsn.text, settings.root_path
    metrics, guard, tokens = Metrics(settings.metrics_folder), Guard(settings), BearerTokens(settings)
    operators = Operators(settings)
    proxies, client_rate = TrustedProxies(settings.trusted_proxies), RateLimit(settings.client_rate)
    answers = Answers()
    logs.hide_queries()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        pool = open_pool(dsn, settings.pool_size)
        replica = Replica(settings.read_dsn.text, settings.read_max_age_s) if settings.read_dsn else None
        batches, templates = Batches(pool, settings.pool_size), TemplateFolder(settings.document_root)
        app.state.parts = Parts(
            pool,
            replica,
            batches,
            templates,
            tokens,
            RateLimit(settings.project_rate),
            Health(pool, batches),
            answers,
        )
        # The database may be away now: requests are answered 503 until it is there.
        await pool.open(wait=False)
        if replica:
            await replica.open()
        ticker = asyncio.create_task(timer.tick_for_ever(dsn, answers))
        try:
            yield
        finally:
            ticker.cancel()
            await pool.close()
            if replica:
                await replica.close()
            metrics.end()

    jobs: dict[str, Endpoint] = {
        f"{root}/workscript.bash": checkout,
        f"{root}/workscript.exit": report,
        f"{root}/workscript.ping": heartbeat,
    }
    routes = [Route(path, endpoint, methods=["GET", "POST"]) for path, endpoint in jobs.items()]
    for route in routes:
        if route.methods:
            route.methods.discard("HEAD")  # which Starlette adds to GET: it must not lease a slice
    routes += [Route(f"{root}/healthz", healthz), Route(f"{root}/openapi.json", describe)]
    dashboard = Dashboard(root, guard, metrics, operators, settings.operator_dsn.text or dsn)
    app = Starlette(routes=[*routes, *dashboard.routes()], lifespan=lifespan)
    # In place of Starlette's own layers: Surround answers all errors, also those of the router (404, 405).
    app.middleware_stack = Surround(app.router, proxies, client_rate, metrics, answers, jobs)
    # A path is right or it is not; the host in a request must not decide where a redirection leads.
    app.router.redirect_slashes = False
    return app
