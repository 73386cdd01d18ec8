"""Snapshots of the functions: one SQL script that gives a database exactly the functions of a folder.

People edit ``sql/functions``. A snapshot is generated from it, and is a migration: ``make release-sql`` writes the next
one. The script that brings the functions of a working copy to a database is the same one, made in that database.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from shim.errors import OperatorError
from shim.version import SQL_FOLDER

_PARTS = SQL_FOLDER / "snapshot"
_SHADOW = "osgprod_shadow"
WORKING_COPY = "a working copy"

# SQL expressions; p is a row of pg_proc, t one of pg_type. They are compared as text, under search_path = pg_catalog.
_FUNCTION_SIGNATURE = (
    "format('%s(%s) RETURNS %s', p.proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid))"
)
_TYPE_SIGNATURE = """format('%s(%s)', t.typname, (
            SELECT string_agg(format('%s %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY a.attnum)
              FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped))"""
_OUR_ROLES = (
    "ARRAY['osgprod_owner'::regrole::oid, 'osgprod_worker'::regrole::oid, 'osgprod_operator'::regrole::oid]"
)
# What is deployed: bodies, attributes, comments, and the grants to PUBLIC and our roles. Grants to others are theirs.
_CATALOG = f"""(
            SELECT md5(coalesce(string_agg(concat(pg_get_functiondef(p.oid), obj_description(p.oid, 'pg_proc'), (
                SELECT string_agg(concat(a.grantee::regrole, a.privilege_type, a.is_grantable), ',' ORDER BY a.grantee)
                  FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
                 WHERE a.grantee = 0 OR a.grantee = ANY ({_OUR_ROLES}))), '' ORDER BY p.oid::regprocedure::text), ''))
              FROM pg_proc p
             WHERE p.pronamespace = to_regnamespace('osgprod') AND p.prokind = 'f'
               AND p.proowner = to_regrole('osgprod_owner'))"""  # noqa: S608  # no value from outside


class SnapshotError(OperatorError):
    """The functions of a folder can't become a snapshot."""


def function_files(folder: Path = SQL_FOLDER / "functions") -> list[Path]:
    """Return the files of sql/functions in the order in which they load: types.sql first, grants.sql last."""
    places = {"types.sql": 0, "grants.sql": 2}
    paths = folder.rglob("*.sql")
    return sorted(paths, key=lambda path: (places.get(str(path.relative_to(folder)), 1), path))


def source_digest(folder: Path = SQL_FOLDER / "functions") -> str:
    """Return SHA-256 of the functions' sources, as hexadecimal digits."""
    digest = hashlib.sha256()
    for path in function_files(folder):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def snapshots(migrations: Path = SQL_FOLDER / "migrations") -> list[Path]:
    """Return the snapshots among the migrations, oldest first."""
    return sorted(migrations.glob("[0-9][0-9][0-9][0-9]-functions.sql"))


def source_of(path: Path) -> tuple[str, str]:
    """Return the version and the digest of the sources that a snapshot was generated from; empty when it names none."""
    match = re.search(r"^-- Source: osgprod (\S+), sha256 ([0-9a-f]{64})$", path.read_text(), re.MULTILINE)
    return (match[1], match[2]) if match else ("", "")


def render(connection: psycopg.Connection[Any], folder: Path, name: str) -> str:
    """Return the script that replaces the functions of a database by those of a folder.

    Parameters
    ----------
    connection
        To a database with the tables that the functions are written for, in autocommit. It is asked for the signatures
        of the functions, in a transaction that is rolled back.
    folder
        Holds the sources, like ``sql/functions``.
    name
        What the script says that the functions are: the name of a snapshot, or WORKING_COPY.

    Raises
    ------
    SnapshotError
        A source creates something else than functions and composite types.
    psycopg.Error
        PostgreSQL refuses a source.
    """
    sources = {path: path.read_text() for path in function_files(folder)}
    for path, text in sources.items():
        for statement in re.findall(r"^CREATE .*", text, re.MULTILINE):
            if not re.match(r"CREATE (FUNCTION osgprod\.\w+ ?\(|TYPE osgprod\.\w+ AS \($)", statement):
                raise SnapshotError(
                    f"{path.name}: {statement}: only functions and composite types of schema osgprod are here",
                    "tables, enums and views belong to sql/migrations",
                )
    functions, types = _signatures(connection, sources)
    digest = source_digest(folder)
    body = "\n".join(_replacing(text) for text in sources.values())
    return "\n".join([_begin(functions, types), body, _end(name, digest)])


def render_nothing(name: str) -> str:
    """Return the script that leaves a database without osgprod's functions."""
    return _begin([], []) + "\n" + _end(name, "0" * 64)


def _signatures(connection: psycopg.Connection[Any], sources: dict[Path, str]) -> tuple[list[str], list[str]]:
    """Creates all functions and types in a schema of another name, reads their signatures, rolls back."""
    with (
        connection.transaction(force_rollback=True),
        connection.cursor(row_factory=tuple_row) as cursor,
    ):
        cursor.execute("SET LOCAL check_function_bodies = off; SET LOCAL client_min_messages = warning")
        cursor.execute(f"CREATE SCHEMA {_SHADOW} AUTHORIZATION osgprod_owner; SET LOCAL ROLE osgprod_owner")
        for path, text in sources.items():
            if path.name != "grants.sql":
                cursor.execute(re.sub(r"\bosgprod\.", f"{_SHADOW}.", text).encode())
        cursor.execute("SET LOCAL search_path = pg_catalog")
        functions = cursor.execute(
            f"SELECT {_FUNCTION_SIGNATURE} FROM pg_proc p"  # noqa: S608
            f" WHERE p.pronamespace = '{_SHADOW}'::regnamespace ORDER BY 1"
        ).fetchall()
        types = cursor.execute(
            f"SELECT {_TYPE_SIGNATURE} FROM pg_type t"  # noqa: S608
            " JOIN pg_class c ON c.oid = t.typrelid AND c.relkind = 'c'"
            f" WHERE t.typnamespace = '{_SHADOW}'::regnamespace ORDER BY 1"
        ).fetchall()
    return _named(functions), _named(types)


def _named(rows: list[tuple[str]]) -> list[str]:
    return [row[0].replace(f"{_SHADOW}.", "osgprod.") for row in rows]


def _begin(functions: list[str], types: list[str]) -> str:
    values = {
        "functions": _literals(functions),
        "types": _literals(types),
        "function_signature": _FUNCTION_SIGNATURE,
        "type_signature": _TYPE_SIGNATURE,
        "our_roles": _OUR_ROLES,
    }
    return _filled("begin.sql", values)


def _end(name: str, digest: str) -> str:
    return _filled("end.sql", {"name": name, "source": digest, "catalog": _CATALOG})


def _filled(part: str, values: dict[str, str]) -> str:
    text = (_PARTS / part).read_text()
    for name, value in values.items():
        text = text.replace("{" + name + "}", value)
    return text


def _literals(texts: list[str]) -> str:
    return ",".join("\n        '" + text.replace("'", "''") + "'" for text in texts)


def _replacing(text: str) -> str:
    """The same source, but what exists is replaced in place; a type that exists is as wanted by then."""
    text = re.sub(r"^CREATE FUNCTION ", "CREATE OR REPLACE FUNCTION ", text, flags=re.MULTILINE)
    return re.sub(
        r"^CREATE TYPE (osgprod\.\w+) AS \(\n.*?^\);$",
        lambda match: (
            f"DO $type$ BEGIN IF to_regtype('{match[1]}') IS NULL THEN\n{match[0]}\nEND IF; END $type$;"
        ),
        text,
        flags=re.MULTILINE | re.DOTALL,
    )


def deployed(connection: psycopg.Connection[Any]) -> tuple[str, str, bool]:
    """Return which functions a database has.

    Returns
    -------
    tuple
        The name of their snapshot or WORKING_COPY, the digest of their sources, and whether they are as they were
        deployed. Empty names and False when the database has none, or has those of version 0.9.0.
    """
    with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
        cursor.execute("SET LOCAL search_path = pg_catalog")
        row = cursor.execute(
            f"SELECT obj_description(to_regnamespace('osgprod'), 'pg_namespace'), {_CATALOG}"
        ).fetchone()
    match = re.fullmatch(
        r"functions of (.*), source ([0-9a-f]{64}), catalog ([0-9a-f]{32})", (row and row[0]) or ""
    )
    return (match[1], match[2], match[3] == row[1]) if match and row else ("", "", False)
