"""The bound of the HTTP measures: one line a request, on the shim's own server and pool.

``python -m bench.bound WORKERS`` serves it as ``osgprod serve --workers WORKERS`` does the shim.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shim.cli import serving
from shim.database import dsn_from_environment, open_pool

INSERT = "SELECT * FROM bench.insert_line(p_client => %(client)s)"


async def line(request: Request) -> Response:
    """Inserts one row and says its number."""
    return Response(str(await _insert(request)), media_type="text/plain")


async def _insert(request: Request) -> int:
    async with request.app.state.pool.connection() as connection:
        cursor = await connection.execute(INSERT, {"client": request.client.host if request.client else None})
        row = await cursor.fetchone()
    return int(row[0])


def create_app() -> Starlette:
    """Makes the ASGI application."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with open_pool(dsn_from_environment(), 8) as app.state.pool:
            yield

    return Starlette(routes=[Route("/osgprod/line", line)], lifespan=lifespan)


if __name__ == "__main__":
    serving.serve("127.0.0.1", 0, None, int(sys.argv[1]), print, "bench.bound:create_app")
