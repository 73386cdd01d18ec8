"""The shim for mod_wsgi: ``WSGIScriptAlias /osgprod .../shim/wsgi.py``.

In each process the ASGI application runs in a separate thread, and a2wsgi passes the requests to it. If the shim
can run as a separate process behind Apache's mod_proxy, prefer that (deploy/).
"""

from __future__ import annotations

import asyncio
import atexit
import logging.config
import threading
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote_from_bytes

from a2wsgi import ASGIMiddleware

from shim.app import create_app
from shim.config import unknown_variables
from shim.web import logs

STOP_TIMEOUT_S = 5.0
PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))


def _make() -> Callable[..., Iterable[bytes]]:
    """Starts the application, pool and all, and returns it as a WSGI application."""
    logging.config.dictConfig(logs.CONFIG)
    for line in unknown_variables():
        logs.log.warning(line)
    app, loop = create_app(), asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    lifespan = app.router.lifespan_context(app)
    asyncio.run_coroutine_threadsafe(lifespan.__aenter__(), loop).result()

    def stop() -> None:
        ending = asyncio.run_coroutine_threadsafe(lifespan.__aexit__(None, None, None), loop)
        ending.result(STOP_TIMEOUT_S)

    atexit.register(stop)
    return ASGIMiddleware(app, loop=loop)  # type: ignore[arg-type]  # its types are narrower than Starlette's


_inner = _make()


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The WSGI application. It replaces request bytes that a2wsgi can't decode."""
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")  # our routes have the whole path
    path = path.encode("latin-1").decode(errors="replace").encode().decode("latin-1")
    query = quote_from_bytes(environ.get("QUERY_STRING", "").encode("latin-1"), safe=PRINTABLE)
    return _inner({**environ, "SCRIPT_NAME": "", "PATH_INFO": path, "QUERY_STRING": query}, start_response)
