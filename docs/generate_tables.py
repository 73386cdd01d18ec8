#!/usr/bin/env python3
"""Write the tables that documents have from the code, each between two markers.

``make docs`` runs it; tests/shim/test_docs_tables.py fails when a table is not current.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))  # run as a file

from shim import config  # noqa: E402
from shim.cli import settings  # noqa: E402
from shim.database import call, connect  # noqa: E402
from shim.local.embedded import temporary_server  # noqa: E402
from shim.migrate import migrate  # noqa: E402


def modules() -> list[str]:
    """Return the modules of the shim, each with the first sentence of its docstring, as a Markdown table."""
    lines = ["| module | what it does |", "|---|---|"]
    for path in sorted((CHECKOUT / "shim").rglob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        if path.name != "__init__.py":
            sentence = " ".join(text.partition("\n\n")[0].split()).replace("``", "`").replace("|", r"\|")
            lines.append(f"| `{path.relative_to(CHECKOUT)}` | {sentence} |")
    return lines


# Document and name of the markers, and what makes the lines between them.
TABLES: dict[tuple[str, str], Callable[[], list[str]]] = {
    ("operations.md", "settings"): config.table,
    ("design.md", "modules"): modules,
}


def with_tables(document: str) -> str:
    """Return the text of a document with its tables as they should be.

    Parameters
    ----------
    document : str
        File name in docs/.

    Raises
    ------
    SystemExit
        A marker is missing.
    """
    text = (CHECKOUT / "docs" / document).read_text()
    for (name, marker), make in TABLES.items():
        if name == document:
            before, begin, following = text.partition(f"<!-- {marker} -->\n")
            _, end, after = following.partition(f"<!-- end of {marker} -->\n")
            if not (begin and end):
                raise SystemExit(f"docs/{document}: the markers of {marker} are missing")
            text = before + begin + "".join(f"{line}\n" for line in make()) + end + after
    return text


def project_settings(connection: psycopg.Connection[dict[str, Any]]) -> list[dict[str, str]]:
    """Return all settings of a project: name, default, range and meaning, from the comments and checks of the table.

    Parameters
    ----------
    connection : psycopg.Connection
        To a migrated database without a project; a superuser. What is done is rolled back.
    """
    example = {
        "project": "p",
        "subnet_pattern": "%",
        "workscript": "w",
        "xrootd_prefix": "",
        "maxblockspercore": 1,
    }
    with connection.transaction(force_rollback=True):
        call(connection, "add_project", **example)
        names = [row["setting"] for row in call(connection, "set_project", project="p", settings="{}")]
    rows = connection.execute(
        "SELECT a.attname AS name, pg_get_expr(d.adbin, d.adrelid) AS default,"
        " replace(col_description(a.attrelid, a.attnum), 'NULL', 'none') AS meaning, a.attnotnull AS is_demanded,"
        " (SELECT string_agg(e.enumlabel, ', ' ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = a.atttypid)"
        " AS words, (SELECT string_agg("
        "   pg_get_expr(c.conbin, c.conrelid), ' ') FROM pg_constraint c WHERE c.conrelid = a.attrelid"
        "   AND c.contype = 'c' AND c.conkey = ARRAY[a.attnum]) AS checks"
        "  FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum"
        " WHERE a.attrelid = 'osgprod_data.projects'::regclass AND a.attname = ANY(%s) ORDER BY a.attname",
        [names],
    ).fetchall()
    found = []
    for row in rows:
        least, most = (re.search(rf"{sign} (\d+)\)", row["checks"] or "") for sign in (">=", "<="))
        limits = f"{least[1]} .. {most[1] if most else ''}".strip() if least else row["words"] or ""
        words = re.search(r"ARRAY\[(.*?)\]", row["checks"] or "")
        if words and "::text" in words[1]:
            limits = ", ".join(re.findall(r"'(\w+)'", words[1]))
        default = re.sub(r"^'(.*)'::.*$", r"\1", row["default"] or "") or (
            "" if row["is_demanded"] else "none"
        )
        found.append({"name": row["name"], "default": default, "range": limits, "meaning": row["meaning"]})
    return found


def main() -> None:
    """Write all tables."""
    with temporary_server() as dsn:
        migrate(dsn, say=lambda line: None)
        with connect(dsn) as connection:
            settings.FILE.write_text(
                json.dumps(project_settings(connection), indent=1, ensure_ascii=False) + "\n"
            )
    print(f"{settings.FILE.name}: is current")
    for document in {name for name, _ in TABLES}:
        text = with_tables(document)
        (CHECKOUT / "docs" / document).write_text(text)
        print(f"{document}: tables are current")


if __name__ == "__main__":
    main()
