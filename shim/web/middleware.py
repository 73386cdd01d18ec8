"""What surrounds every request: number, client's address, rate limit, answers to errors, metrics, and log line."""

from __future__ import annotations

import functools
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shim.web import logs
from shim.web.address import TrustedProxies
from shim.web.answers import Answers, cause
from shim.web.failures import Failure, TooOften, explain
from shim.web.metrics import Metrics
from shim.web.rates import RateLimit, key_of
from shim.workscript import ascii_text

log = logging.getLogger("osgprod")

Endpoint = Callable[[Request], Awaitable["PlainText"]]


class PlainText:
    """An answer in plain text that nobody may keep: an ASGI application, as Starlette's Response is.

    Response takes four times as long for its headers.

    Parameters
    ----------
    body : bytes
        UTF-8 text.
    status : int
        HTTP status.
    headers : dict, optional
        More headers.
    """

    def __init__(self, body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.body, self.status = body, status
        self.headers = dict(headers or {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
            (b"content-length", b"%d" % len(self.body)),
            *[(name.lower().encode(), value.encode("latin-1")) for name, value in self.headers.items()],
        ]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


class Surround:
    """ASGI middleware around all routes.

    It notes the client's address as ``scope["osgprod.client"]``, and tells routes in metrics by their endpoint's name.

    Parameters
    ----------
    app : ASGIApp
        What is surrounded.
    proxies : TrustedProxies
        Whose word on the client's address is believed.
    rate : RateLimit
        Requests of one address.
    metrics : Metrics
        Counters of this process.
    answers : Answers
        Counts what jobs are answered, for health.
    jobs : dict
        What jobs ask with GET or POST, by path: called without a search for its route among all others.
    """

    def __init__(
        self,
        app: ASGIApp,
        proxies: TrustedProxies,
        rate: RateLimit,
        metrics: Metrics,
        answers: Answers,
        jobs: Mapping[str, Endpoint],
    ) -> None:
        self._app, self._proxies, self._rate, self._metrics = app, proxies, rate, metrics
        self._answers, self._jobs = answers, jobs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        number = f"{os.getpid():x}-{time.time_ns() & 0xFFFFFFFFFF:x}"
        peer = scope["client"][0] if scope.get("client") else None
        scope["osgprod.client"] = client = self._proxies.client(peer, scope["headers"])
        note, has_begun = "", False
        reason, message = "", None
        endpoint = self._jobs.get(scope["path"]) if scope["method"] in ("GET", "POST") else None

        async def send_noted(part: Message) -> None:
            nonlocal has_begun
            if part["type"] == "http.response.start":
                has_begun = True
                headers = part["headers"]
                status = "-"
                for name, value in headers:
                    if name == b"osgprod-status":
                        status = value.decode()
                headers.append((b"osgprod-request", number.encode()))
                if part["status"] >= 400 and status == "-":
                    # A job ignores answers without Osgprod-Status, such as a 404 of the front server.
                    headers.append((b"osgprod-status", b"error"))
                route = self._note(scope, number, part["status"], status, started, note)
                project = scope.get("osgprod.project")
                self._answers.count(project, route, part["status"], reason or status, message)
            await send(part)

        try:
            if wait_s := self._rate.wait_s(key := key_of(client)):
                raise TooOften("your address sends too many requests a minute", wait_s)
            self._rate.count(key)
            if endpoint:
                scope["endpoint"] = endpoint
                answer = await endpoint(Request(scope, receive))
            else:
                await self._app(scope, receive, send_noted)
                return
        except Exception as error:
            if has_begun:
                raise
            note = f" error={(str(error).splitlines() or [type(error).__name__])[0][:300]!a}"
            failure = explain(error)
            reason, message = cause(error, failure)
            if failure.is_a_fault:
                log.exception("request=%s failed", number)
            answer = error_answer(error, failure)
        await answer(scope, receive, send_noted)

    def _note(self, scope: Scope, number: str, status: int, answer: str, started: float, note: str) -> str:
        """Count the request, write its line into the log, and return the name of its route."""
        seconds = time.perf_counter() - started
        endpoint = scope.get("endpoint")
        name = getattr(endpoint, "__name__", "static").lstrip("_") if endpoint else "not_found"
        self._metrics.count(name, status, answer, seconds)
        client, path, ms = scope["osgprod.client"] or "-", _logged(scope["path"]), seconds * 1000
        logs.info(
            f"request={number} client={client} path={path} status={status} answer={answer} ms={ms:.1f}{note}"
        )
        return name


def error_answer(error: Exception, failure: Failure) -> PlainText:
    """Return the answer to a request that failed.

    Parameters
    ----------
    error : Exception
        What its route has raised.
    failure : Failure
        What explain() makes of it.
    """
    answer = PlainText(failure.body, failure.status, getattr(error, "headers", None))
    if failure.retry_s:
        answer.headers["Retry-After"] = str(failure.retry_s)
    return answer


@functools.lru_cache(maxsize=64)
def _logged(path: str) -> str:
    """A path for the log, without spaces, and without the query, which may hold secrets."""
    return ascii_text(re.split("[?;&]", path[:300], maxsplit=1)[0]).replace(" ", "?")
