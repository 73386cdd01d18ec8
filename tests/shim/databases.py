"""What tests of migrations ask a database."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import subprocess
import warnings
from typing import Any
from unittest import mock

import sqlparse
from yoyo.scripts import main as main_module

from shim.database import call, connect
from tests.support import CHECKOUT

WORKING_COPY = "functions of a working copy"


def quietly(line: str) -> None:
    pass


split = sqlparse.split  # which is patched while yoyo runs


@functools.cache
def _split(text: str) -> list[str]:
    """Split SQL into statements. All migrations take 2 s of CPU time, so all workers and runs share the result."""
    name = hashlib.sha256(f"{sqlparse.__version__} {text}".encode()).hexdigest()
    kept = CHECKOUT / ".pytest_cache" / "statements" / name
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        unfinished = kept.with_name(f"{name}.{os.getpid()}")
        unfinished.write_text(json.dumps(list(split(text))))
        unfinished.rename(kept)
    return list(json.loads(kept.read_text()))


def yoyo_here(dsn: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs yoyo's own command in this process, which splits a file that it has seen once."""
    out, err = io.StringIO(), io.StringIO()
    backends: list[Any] = []

    def get_backend(*arguments: Any) -> Any:
        backends.append(main_module.get_backend(*arguments))
        return backends[-1]

    with (
        mock.patch.dict(os.environ, {"OSGPROD_DSN": dsn}),
        mock.patch("sqlparse.split", lambda text: list(_split(text))),
        mock.patch("yoyo.scripts.migrate.get_backend", get_backend),
        mock.patch("yoyo.scripts.main.configure_logging"),  # that of the tests stays
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(action="ignore"),
    ):
        try:
            code = main_module.main(list(arguments))
        except SystemExit as ended:
            code = ended.code
        finally:
            for backend in backends:
                backend.connection.close()  # a process would have ended
    return subprocess.CompletedProcess(arguments, int(code or 0), out.getvalue(), err.getvalue())


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


CATALOG = """
WITH grants AS (
    SELECT owner, oid, string_agg(concat(a.grantee::regrole, a.privilege_type), ',') AS acl
      FROM (SELECT p.oid, p.proowner AS owner, coalesce(p.proacl, acldefault('f', p.proowner)) AS acl FROM pg_proc p
            UNION ALL SELECT c.oid, c.relowner, coalesce(c.relacl, acldefault('r', c.relowner)) FROM pg_class c
            UNION ALL SELECT n.oid, n.nspowner, coalesce(n.nspacl, acldefault('n', n.nspowner)) FROM pg_namespace n) o
      CROSS JOIN LATERAL (SELECT * FROM aclexplode(o.acl) x ORDER BY x.grantee::regrole::text, x.privilege_type) a
     GROUP BY owner, oid)
SELECT 'function' AS kind, p.oid::regprocedure::text AS name,
       concat_ws(E'\n', pg_get_functiondef(p.oid), g.owner::regrole, g.acl, obj_description(p.oid, 'pg_proc'))
       AS definition
  FROM pg_proc p JOIN grants g ON g.oid = p.oid
 WHERE p.pronamespace IN (to_regnamespace('osgprod'), to_regnamespace('osgprod_data'))
UNION ALL
SELECT 'relation', c.oid::regclass::text, concat_ws(E'\n', c.relkind::text, g.owner::regrole, g.acl,
       obj_description(c.oid, 'pg_class'),
       (SELECT string_agg(concat_ws(' ', a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
                                    pg_get_expr(d.adbin, d.adrelid), col_description(c.oid, a.attnum)), E'\n'
                          ORDER BY a.attnum)
          FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
       (SELECT string_agg(pg_get_constraintdef(k.oid), E'\n' ORDER BY k.conname)
          FROM pg_constraint k WHERE k.conrelid = c.oid),
       (SELECT string_agg(pg_get_indexdef(i.indexrelid), E'\n' ORDER BY i.indexrelid::regclass::text)
          FROM pg_index i WHERE i.indrelid = c.oid),
       (SELECT string_agg(pg_get_triggerdef(t.oid), E'\n' ORDER BY t.tgname)
          FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal))
  FROM pg_class c JOIN grants g ON g.oid = c.oid
 WHERE c.relnamespace IN (to_regnamespace('osgprod'), to_regnamespace('osgprod_data'))
   AND c.relkind IN ('r', 'v', 'c') AND c.relname !~ 'yoyo'
UNION ALL
SELECT 'enum', t.oid::regtype::text,
       concat(string_agg(e.enumlabel, ',' ORDER BY e.enumsortorder), obj_description(t.oid, 'pg_type'))
  FROM pg_type t JOIN pg_enum e ON e.enumtypid = t.oid
 WHERE t.typnamespace = to_regnamespace('osgprod_data') GROUP BY t.oid
UNION ALL
SELECT 'schema', n.nspname, concat(g.owner::regrole, g.acl)
  FROM pg_namespace n JOIN grants g ON g.oid = n.oid WHERE n.nspname IN ('osgprod', 'osgprod_data')
ORDER BY 1, 2"""


def catalog(dsn: str) -> dict[tuple[str, str], str]:
    """Everything of ours in a database, as text."""
    with connect(dsn) as connection:
        rows = connection.execute(CATALOG).fetchall()
    return {(row["kind"], row["name"]): row["definition"] for row in rows}
