"""The dashboard: pages that show what functions of the database return. Only where to draw it is computed here.

Pages are HTML that needs no JavaScript; a small script renews them. A page takes one connection and one snapshot; the
overview takes a second one, for the estimates of the projects that it found.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

import jinja2
import psycopg
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from shim.dashboard import actions, charts, formats
from shim.dashboard.api import Api
from shim.dashboard.reader import Reader, freshness
from shim.version import which_is_older
from shim.web.failures import explain
from shim.web.guard import Guard
from shim.web.metrics import CONTENT_TYPE, QUERIES, Metrics
from shim.web.operators import Operators, is_from_here
from shim.web.parameters import MOST_NUMBER, BadRequest, number_of
from shim.words import noun

Endpoint = Callable[[Request], Awaitable[Response]]

HERE = Path(__file__).resolve().parent
MAX_FORM_BYTES = 4096
MOST_ROWS = 1000  # of one list
MOST_SITES = 50
MOST_STARTS = 200  # of one job, the last ones
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self';"
    " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
# Of the request that is served: the operator's name and the code of forms; None = nobody can act here.
_acting: ContextVar[dict[str, str | None] | None] = ContextVar("acting", default=None)
WIDE_PX, NARROW_PX = 1160, 330
# What shows an action's effect; otherwise it is the project's page.
PAGE_AFTER = {
    "ban": "workers",
    "unban": "workers",
    "stop-jobs": "workers",
    "requeue": "quarantine",
    "resume-files": "files",
    "reclaim": "jobs",
}
LEVELS = ("bad", "attention", "well")
WINDOWS = {2: "2 hours", 24: "24 hours", 168: "7 days", 720: "30 days"}


class _Number(Convertor[int]):
    """A number in a path. That of Starlette also takes thousands of digits, which Python refuses to convert."""

    regex = "[0-9]{1,18}"

    def convert(self, value: str) -> int:
        return int(value)

    def to_string(self, value: int) -> str:
        return str(value)


register_url_convertor("number", _Number())


class NotFound(Exception):
    """The page was not found. One line names the missing thing."""


class _Static(StaticFiles):
    """Style sheet, script and icon, with the headers of the pages; a browser may keep them for five minutes."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update({**HEADERS, "Cache-Control": "max-age=300"})
        return response


class Dashboard:
    """The pages, below a root path, behind a guard.

    Parameters
    ----------
    root : str
        Path of the URL before all pages, without a slash at its end.
    guard : Guard
        Decides which callers may see them.
    metrics : Metrics
        Of this process.
    operators : Operators
        Who may act.
    operator_dsn : str
        libpq's connection string for what they do.
    """

    def __init__(
        self, root: str, guard: Guard, metrics: Metrics, operators: Operators, operator_dsn: str
    ) -> None:
        self._root, self._guard, self._metrics = root, guard, metrics
        self._operators, self._operator_dsn = operators, operator_dsn
        self._reader = Reader()
        # One page is drawn at a time, beside the event loop, which goes on answering jobs.
        self._drawer = ThreadPoolExecutor(1, "dashboard")
        # Read now: a newer checkout puts its own templates there before this process ends.
        templates = {path.name: path.read_text() for path in (HERE / "templates").glob("*.html")}
        self._pages = jinja2.Environment(
            loader=jinja2.DictLoader(templates), autoescape=True, trim_blocks=True, lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )  # fmt: skip
        self._pages.globals |= {"root": root, "url": self._url, "windows": WINDOWS, "bar": charts.bar}
        self._pages.filters |= {
            "number": formats.number,
            "time": formats.time,
            "day": formats.day,
            "file_name": formats.file_name,
            "minute": formats.minute,
            "age": formats.age,
            "size": formats.size,
            "shell": shlex.quote,
            "short": formats.short,
            "commands": formats.commands,
            "runs": charts.runs_text,
            "noun": noun,
        }

    def routes(self) -> list[BaseRoute]:
        """Return the routes of all pages, of the metrics, and of the static files."""
        pages: dict[str, Endpoint] = {
            "/": self._overview,
            "/find": self._find,
            "/project/{project}": self._project,
            "/project/{project}/jobs": self._jobs,
            "/project/{project}/site/{site:path}": self._site,
            "/project/{project}/files": self._files,
            "/project/{project}/file/{file_id:number}": self._file,
            "/project/{project}/job/{cluster:number}.{process:number}": self._job,
            "/project/{project}/attempts": self._attempts,
            "/project/{project}/live": self._live,
            "/project/{project}/quarantine": self._quarantine,
            "/project/{project}/workers": self._workers,
        }
        routes: list[BaseRoute] = [
            Route(f"{self._root}{path}", self._guarded(page)) for path, page in pages.items()
        ]
        routes.append(Route(f"{self._root}/metrics", self._prometheus))
        routes.append(Route(f"{self._root}/login", self._login, methods=["GET", "POST"]))
        if self._operators.is_on:
            acts = f"{self._root}/project/{{project}}"
            routes += [
                Route(f"{self._root}/operator", self._guarded(self._operator), methods=["GET", "POST"]),
                Route(f"{self._root}/operator/leave", self._guarded(self._leave), methods=["POST"]),
                Route(f"{acts}/act", self._guarded(self._act), methods=["POST"]),
                Route(f"{acts}/log", self._guarded(self._log)),
            ]
        routes += Api(self._root, self._guard, self._reader).routes()
        routes.append(Mount(f"{self._root}/static", _Static(directory=HERE / "static")))
        if self._root:
            routes.append(Route(self._root, self._to_overview))
        return routes

    def _url(self, *parts: object, **query: object) -> str:
        path = "/".join(quote(str(part), safe="") for part in parts)
        wanted = {name: value for name, value in query.items() if value is not None}
        return f"{self._root}/{path}" + (f"?{urlencode(wanted)}" if wanted else "")

    async def _render(self, page: str, http_status: int = 200, /, **values: object) -> Response:
        values["freshness"] = freshness.get()
        values["acting"] = _acting.get()
        text = await asyncio.get_running_loop().run_in_executor(self._drawer, self._draw, page, values)
        return Response(text, http_status, HEADERS, media_type="text/html")

    def _draw(self, page: str, values: dict[str, object]) -> bytes:
        values = {name: value() if isinstance(value, partial) else value for name, value in values.items()}
        return self._pages.get_template(page).render(now=datetime.now(UTC), **values).encode()

    def _guarded(self, page: Endpoint) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            if not self._guard.admits(request):
                return await self._render("login.html", 403, failed=False, has_token=self._guard.has_token)
            if self._operators.is_on:
                name = self._operators.who(request)
                _acting.set({"operator": name, "code": self._operators.form_code(request)})
            try:
                if "\0" in request.path_params.get("project", ""):
                    raise NotFound("no project has such a name")
                return await page(request)
            except NotFound as error:
                return await self._render("error.html", 404, lines=[str(error)], status=404)
            except (KeyError, jinja2.UndefinedError):  # a column that another release calls otherwise
                (rows,) = await self._reader.read(request, ("alive", {}))
                older = which_is_older(rows[0].get("version"))
                if not older:
                    raise
                return await self._render("error.html", 503, lines=[older], status=503)
            except Exception as error:
                failure = explain(error)
                if failure.is_a_fault:
                    raise
                return await self._render(
                    "error.html", failure.status, lines=failure.lines, status=failure.status
                )

        endpoint.__name__ = "dashboard"  # all pages are one route in the metrics
        return endpoint

    async def _to_overview(self, request: Request) -> Response:
        return RedirectResponse(f"{self._root}/", 307, HEADERS)

    async def _login(self, request: Request) -> Response:
        if request.method != "POST":
            return await self._render("login.html", failed=False, has_token=self._guard.has_token)
        token = (await _form(request)).get("token", "")
        if not self._guard.knows(token.strip()):
            return await self._render("login.html", 403, failed=True, has_token=self._guard.has_token)
        response = RedirectResponse(f"{self._root}/", 303, HEADERS)
        self._guard.remember(request, response, self._root)
        return response

    async def _operator(self, request: Request) -> Response:
        """Sign in as an operator."""
        if request.method != "POST":
            return await self._render("operator.html", failed=False)
        name = self._operators.name_of((await _form(request)).get("token", "").strip())
        if name is None or not is_from_here(request):
            return await self._render("operator.html", 403, failed=True)
        response = RedirectResponse(f"{self._root}/", 303, HEADERS)
        self._operators.remember(request, response, name, self._root)
        return response

    async def _leave(self, request: Request) -> Response:
        form = await _form(request)
        if not self._operators.accepts(request, form.get("code", "")):
            return await self._refused()
        response = RedirectResponse(f"{self._root}/", 303, HEADERS)
        self._operators.forget(response, self._root)
        return response

    async def _act(self, request: Request) -> Response:
        project, form = request.path_params["project"], await _form(request)
        name = self._operators.who(request)
        if name is None or not self._operators.accepts(request, form.get("code", "")):
            return await self._refused()
        await self._call_as(name, request, actions.query_of(project, form))
        self._reader.forget()
        chosen = {name: form[name] for name in ("run", "last_run", "cluster") if form.get(name)}
        back = "files" if "run" in chosen else PAGE_AFTER.get(form["action"])
        return RedirectResponse(
            self._url("project", project, *([back] if back else []), **chosen), 303, HEADERS
        )

    async def _log(self, request: Request) -> Response:
        project, name = request.path_params["project"], self._operators.who(request)
        if name is None:
            return await self._refused()
        query = ("list_operations", {"project": project, "limit": MOST_ROWS})
        rows = await self._call_as(name, request, query)
        return await self._render("log.html", project=project, rows=rows)

    async def _call_as(self, name: str, request: Request, query: actions.Query) -> list[dict[str, Any]]:
        try:
            return await actions.call_as(self._operator_dsn, name, request, query)
        except Exception as error:
            if actions.is_missing_right(error):
                raise BadRequest(
                    "the login with which the dashboard acts has not the role osgprod_operator",
                    "OSGPROD_OPERATOR_DSN must name one that has: docs/operations.md",
                ) from error
            raise

    async def _refused(self) -> Response:
        lines = [
            "Only operators who are signed in may do that, by the buttons of these pages.",
            "Nothing was changed.",
        ]
        return await self._render("error.html", 403, lines=lines, status=403)

    async def _prometheus(self, request: Request) -> Response:
        if not self._guard.admits(request):
            return Response(
                "send the token of the dashboard as a bearer token\n", 403, HEADERS, media_type="text/plain"
            )
        answers = None
        with contextlib.suppress(psycopg.Error, PoolTimeout, TooManyRequests, PoolClosed):
            answers = await self._reader.read(request, *QUERIES)
        self._metrics.note_pool(request.app.state.parts.pool.get_stats())
        return Response(self._metrics.text(answers, freshness.get()), 200, HEADERS, media_type=CONTENT_TYPE)

    async def _overview(self, request: Request) -> Response:
        progress, health, amounts = await self._reader.read(
            request, ("progress", {}), ("health", {}), ("amounts", {})
        )
        busy = {row["project"] for row in amounts if not row["is_idle"]}
        busy |= {row["project"] for row in health if row["level"] == "bad"}
        asked = [row["project"] for row in progress if row["project"] in busy]
        estimates = await self._reader.read(request, *(("estimate", {"project": name}) for name in asked))
        estimate_of = {name: rows[0] for name, rows in zip(asked, estimates, strict=True)}
        projects = [
            {
                **row,
                "amounts": amount,
                "estimate": estimate_of.get(row["project"]),
                "health": [h for h in health if h["project"] == row["project"]],
            }
            for row, amount in zip(progress, amounts, strict=True)
        ]
        # health has the worst finding of a project first
        projects.sort(
            key=lambda p: (LEVELS.index(p["health"][0]["level"]), -p["amounts"]["running"], p["project"])
        )
        return await self._render(
            "overview.html",
            projects=[p for p in projects if p["project"] in busy],
            idle=[p for p in projects if p["project"] not in busy],
        )

    async def _find(self, request: Request) -> Response:
        text = _printable(_word(request, "text") or "").strip()
        rows = []
        if text:
            (rows,) = await self._reader.read(request, ("find", {"text": text, "limit": 200}))
        return await self._render(
            "find.html", text=text, rows=[{**row, "page": self._page_of(row)} for row in rows]
        )

    def _page_of(self, row: Mapping[str, Any]) -> str | None:
        """The page that shows what a row of find names; None = there is none."""
        project, name = row["project"], row["name"]
        if project is None:
            return None
        more: dict[str, tuple[tuple[str, ...], dict[str, object]]] = {
            "job": (("job", name), {}),
            "cluster": (("jobs",), {"cluster": name}),
            "run": (("files",), {"run": name}),
            "file": (("files",), {"path": name}),
            "worker": (("attempts",), {"worker": name, "hours": 168}),
            "site": (("site", name), {"hours": 168}),
        }
        parts, query = more.get(row["kind"], ((), {}))
        return self._url("project", project, *parts, **query)

    async def _project(self, request: Request) -> Response:
        name, hours = request.path_params["project"], _window(request)
        project = {"project": name}
        (
            progress,
            amounts,
            health,
            estimate,
            course,
            rate,
            by_exit,
            by_site,
            failing,
            slow,
            quarantined,
            live,
            cells,
            delivery,
            merges,
        ) = await self._reader.read(
            request,
            ("progress", project),
            ("amounts", project),
            ("health", project),
            ("estimate", project),
            ("done_over_time", project),
            ("rate", {**project, "hours": hours}),
            ("attempts_by_exit", {**project, "hours": hours}),
            ("attempts_by_site", {**project, "hours": hours, "limit": MOST_SITES}),
            ("attempts_by_worker", {**project, "hours": 1, "order": "failing", "limit": 6}),
            ("attempts_by_worker", {**project, "hours": 1, "order": "slow", "limit": 6}),
            ("quarantined", {**project, "limit": MOST_ROWS}),
            ("live_attempts", {**project, "limit": 8}),
            ("map_files", {**project, "rows": 240, "columns": 200}),
            ("delivery", project),
            ("list_merges", {**project, "state": "open", "limit": 8}),
        )
        return await self._render(
            "project.html",
            project=name,
            delivery=delivery[0],
            merges=merges,
            progress=progress[0],
            amounts=amounts[0],
            health=health,
            estimate=estimate[0],
            hours=hours,
            courses=partial(_for_widths, charts.course, course, estimate[0], datetime.now(UTC)),
            plots=partial(_for_widths, charts.plot, rate),
            blocks_done=sum(row["blocks_done"] for row in rate),
            by_exit=by_exit,
            by_site=by_site,
            failing=failing,
            slow=slow,
            quarantined=quarantined,
            live=live,
            map=partial(charts.file_map, cells),
            runs=cells,
        )

    async def _files(self, request: Request) -> Response:
        name = request.path_params["project"]
        first, last = _integer(request, "run"), _integer(request, "last_run")
        runs = (
            None
            if first is None
            else f"{{{','.join(map(str, range(first, min(last or first, first + actions.MOST_RUNS - 1) + 1)))}}}"
        )
        state, path = _word(request, "state"), _word(request, "path")
        query = {"project": name, "runs": runs, "state": state, "path": path, "limit": MOST_ROWS}
        (files,) = await self._reader.read(request, ("list_files", query))
        return await self._render(
            "files.html", project=name, files=files, first=first, last=last, state=state, path=path
        )

    async def _file(self, request: Request) -> Response:
        name, file_id = request.path_params["project"], request.path_params["file_id"]
        if file_id > MOST_NUMBER:
            raise NotFound(f"project {name} has no such file")
        one = {"project": name, "file_id": file_id}
        files, slices, outputs = await self._reader.read(
            request,
            ("list_files", one),
            ("list_slices", {**one, "limit": 2 * MOST_ROWS}),
            ("outputs_of", one),
        )
        if not files:
            raise NotFound(f"project {name} has no such file")
        return await self._render("file.html", project=name, file=files[0], slices=slices, outputs=outputs)

    async def _job(self, request: Request) -> Response:
        name = request.path_params["project"]
        job = {"cluster": request.path_params["cluster"], "process": request.path_params["process"]}
        if max(job.values()) > MOST_NUMBER:
            raise NotFound(f"project {name} has no such job")
        of_job = {"project": name, **job}
        history, tails, outputs = await self._reader.read(
            request, ("job_history", of_job), ("log_tail", of_job), ("outputs_of", of_job)
        )
        tails_of = {row["nstart"]: row["tail"] for row in tails}
        return await self._render(
            "job.html", project=name, **job, history=history[-MOST_STARTS:], tails=tails_of, outputs=outputs
        )

    async def _jobs(self, request: Request) -> Response:
        name, hours, cluster = request.path_params["project"], _window(request), _integer(request, "cluster")
        query = {"project": name, "hours": hours, "limit": MOST_ROWS}
        (jobs,) = await self._reader.read(request, ("list_jobs", {**query, "cluster": cluster}))
        return await self._render("jobs.html", project=name, jobs=jobs, cluster=cluster, hours=hours)

    async def _site(self, request: Request) -> Response:
        name, site = request.path_params["project"], request.path_params["site"].replace("\0", "")
        hours = _window(request)
        one: dict[str, object] = {"project": name, "site": site}
        by_site, by_exit, workers, live, attempts, banned, used = await self._reader.read(
            request,
            ("attempts_by_site", {**one, "hours": hours}),
            ("attempts_by_exit", {**one, "hours": hours}),
            ("attempts_by_worker", {**one, "hours": hours, "order": "busy", "limit": 50}),
            ("live_attempts", {**one, "limit": 50}),
            ("list_attempts", {**one, "hours": hours, "limit": 50}),
            ("blocked_workers", {"project": name}),
            ("resources", {**one, "by": "site"}),
        )
        ban = next((row for row in banned if row["worker"] == f"site:{site}"), None)
        if not (by_site or workers or live or attempts or ban):
            # Of an unknown project the first query raised.
            raise NotFound(f"no attempt at site {site[:80]} in project {name} in these {WINDOWS[hours]}")
        return await self._render(
            "site.html",
            project=name,
            site=site,
            hours=hours,
            counts=by_site[0] if by_site else None,
            by_exit=by_exit,
            workers=workers,
            live=live,
            attempts=attempts,
            ban=ban,
            used=used[0] if used else None,
        )

    async def _attempts(self, request: Request) -> Response:
        name, hours = request.path_params["project"], _window(request)
        chosen: dict[str, str | int | None] = {
            **{key: _word(request, key) for key in ("outcome", "worker", "site")},
            "exit_code": _integer(request, "exit_code"),
        }
        query = {**chosen, "project": name, "hours": hours, "limit": 200}
        (attempts,) = await self._reader.read(request, ("list_attempts", query))
        return await self._render(
            "attempts.html", project=name, attempts=attempts, chosen=chosen, hours=hours
        )

    async def _live(self, request: Request) -> Response:
        name = request.path_params["project"]
        (live,) = await self._reader.read(request, ("live_attempts", {"project": name, "limit": MOST_ROWS}))
        return await self._render("live.html", project=name, live=live)

    async def _quarantine(self, request: Request) -> Response:
        name = request.path_params["project"]
        (rows,) = await self._reader.read(request, ("quarantined", {"project": name, "limit": MOST_ROWS}))
        return await self._render("quarantine.html", project=name, quarantined=rows)

    async def _workers(self, request: Request) -> Response:
        name, hours = request.path_params["project"], _window(request, standard=2)
        query: dict[str, object] = {"project": name, "hours": hours, "limit": 50}
        failing, slow, busy, refused = await self._reader.read(
            request,
            ("attempts_by_worker", {**query, "order": "failing"}),
            ("attempts_by_worker", {**query, "order": "slow"}),
            ("attempts_by_worker", {**query, "order": "busy"}),
            ("blocked_workers", {"project": name}),
        )
        return await self._render(
            "workers.html",
            project=name,
            failing=failing,
            slow=slow,
            busy=busy,
            refused=refused[:MOST_ROWS],
            hours=hours,
        )


async def _form(request: Request) -> dict[str, str]:
    """The fields of a small form, each once."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            return {}
    fields = parse_qs(body.decode("ascii", "replace"))
    return {name: values[0].replace("\0", "") for name, values in fields.items()}


def _for_widths(draw: Callable[..., Any], *arguments: object) -> dict[str, Any]:
    """A plot for wide windows and one for narrow ones, of which the style sheet shows one: text must not shrink."""
    return {
        "wide": draw(*arguments, width=WIDE_PX, marks=8),
        "narrow": draw(*arguments, width=NARROW_PX, marks=4),
    }


def _word(request: Request, name: str) -> str | None:
    text = request.query_params.get(name, "")
    if "\0" in text:
        raise BadRequest(f"parameter {name} has a NUL byte", "leave it out")
    return text or None


def _printable(text: str) -> str:
    """A text with spaces for its control characters, which a shell or a terminal may obey."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def _integer(request: Request, name: str) -> int | None:
    text = request.query_params.get(name, "")
    number = number_of(text)
    if text and number is None:  # to leave it out would show other rows than those asked for
        raise BadRequest(
            f"parameter {name} must be a number, not {text[:40]!r}",
            f"write digits: 0 to {MOST_NUMBER}, or leave it out",
        )
    return number


def _window(request: Request, standard: int = 24) -> int:
    hours = number_of(request.query_params.get("hours", ""))
    return hours if hours in WINDOWS else standard
