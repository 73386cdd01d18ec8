"""What tests of migrations ask a database."""

from __future__ import annotations

from typing import Any

from shim.database import call, connect

WORKING_COPY = "functions of a working copy"


def quietly(line: str) -> None:
    pass


def state(dsn: str) -> list[Any]:
    """All that a migration could have touched, by identity."""
    with connect(dsn) as connection:
        return connection.execute(
            "SELECT p.oid::text AS what, p.xmin::text AS version FROM pg_proc p"
            " WHERE p.pronamespace = to_regnamespace('osgprod')"
            " UNION ALL SELECT c.oid::text, c.relname FROM pg_class c"
            " WHERE c.relnamespace = to_regnamespace('osgprod_data') UNION ALL"
            " SELECT migration_id, 'applied' FROM osgprod_data._yoyo_migration ORDER BY 1, 2"
        ).fetchall()


def works(dsn: str) -> bool:
    with connect(dsn) as connection:
        return call(connection, "progress") == [] and call(connection, "tick") == []
