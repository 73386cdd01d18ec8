"""What the sources show without running the product: headers, comments, syntax, the schema's snapshot."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

import psycopg
import pytest

from shim.snapshot import function_files, snapshots, source_of
from sql.release import present_version
from tests.support import CHECKOUT

FUNCTIONS = CHECKOUT / "sql" / "functions"
SNAPSHOT = CHECKOUT / "tests" / "schema.txt"
MIGRATIONS = CHECKOUT / "sql" / "migrations"
RELEASED = CHECKOUT / "tests" / "released.sha256"
FUNCTION = re.compile(r"^CREATE FUNCTION osgprod\.(\w+)\s*\(.*?^\$fn\$;", re.MULTILINE | re.DOTALL)


def sources() -> dict[str, str]:
    """Every function's text by its name."""
    return {match[1]: match[0] for path in function_files() for match in FUNCTION.finditer(path.read_text())}


def test_every_function_says_what_it_does_inside_its_body() -> None:
    for name, text in sources().items():
        body = text.partition("$fn$\n")[2]
        assert body.lstrip().startswith("--"), f"{name} has no header"


def test_every_public_function_tells_parameters_returns_and_errors() -> None:
    for name, text in sources().items():
        if name.startswith("_"):
            continue
        header = "\n".join(line for line in text.splitlines() if line.startswith("--"))
        parameters = re.findall(r"^\s+(p_\w+)\s", text.partition(")\n")[0], re.MULTILINE)
        for parameter in parameters:
            assert parameter in header, f"{name}: {parameter} is not explained"
        for code in set(re.findall(r"OG\d{3}", text.partition("$fn$\n")[2])):
            assert code[:3] in header, f"{name} raises {code}"


# Raised only of a project that does not exist, by functions that have just read its row.
NEVER_RAISED = {
    *(("diagnose", "OG301"), ("note_health", "OG301"), ("add_project", "OG301")),
    *(("health", "OG601"), ("note_health", "OG601")),  # they count such answers
}


def test_header_names_what_a_public_function_returns_raises_and_locks_with_all_that_it_calls() -> None:
    texts = sources()
    bodies = {name: re.sub("--[^\n]*", "", text.partition("$fn$\n")[2]) for name, text in texts.items()}

    def reach(name: str, seen: set[str]) -> set[str]:
        if name not in seen:
            seen.add(name)
            for called in set(re.findall(r"osgprod\.(\w+)\s*\(", bodies[name])) & set(texts):
                reach(called, seen)
        return seen

    of_jobs = {
        path.stem for path in function_files() if path.parent.name == "jobs"
    }  # docs/design.md lists their errors
    for name, text in texts.items():
        if name.startswith("_") or name in of_jobs:
            continue
        head, _, rest = text.partition("$fn$\n")
        header = "\n".join(line for line in rest.splitlines() if line.lstrip().startswith("--"))
        reached = [bodies[other] for other in reach(name, set())]
        for code in set(re.findall(r"'(OG\d{3})'", " ".join(reached))):
            assert code in header or (name, code) in NEVER_RAISED, f"{name} can raise {code}"
        assert "Errors:" in header, name
        assert "Returns:" in header or "RETURNS void" in head, name
        if "VOLATILE" in head and re.search(
            "FOR (NO KEY )?UPDATE|FOR SHARE|UPDATE [a-z]|INSERT INTO|DELETE", " ".join(reached)
        ):
            assert "Locks:" in header, name


def test_each_public_function_is_in_the_file_of_its_name() -> None:
    """A file of helpers, _NAME.sql, has one whose name begins with _NAME."""
    for path in function_files():
        names = [match[1] for match in FUNCTION.finditer(path.read_text())]
        public = {name for name in names if not name.startswith("_")}
        assert public <= {path.stem}, path.name
        if not public and path.stem.startswith("_"):
            assert any(name.startswith(path.stem) for name in names), path.name


def test_bodies_are_valid_plpgsql() -> None:
    from pglast import parse_plpgsql

    for name, text in sources().items():
        if "LANGUAGE plpgsql" in text:
            # The parser looks schemas and types up, and does not know ours; an array of rows is beyond it.
            plain = re.sub(
                r"^( +v_\w+ +|.*\bp_\w+ |RETURNS )[\w.]+\[\]", r"\1text[]", text, flags=re.MULTILINE
            )
            assert parse_plpgsql(re.sub(r"\bosgprod(_data)?\.", "", plain)), name


def test_plpgsql_check_finds_nothing(db: psycopg.Connection[dict[str, Any]]) -> None:
    try:
        db.execute("CREATE EXTENSION plpgsql_check")
    except psycopg.Error:
        pytest.skip("this server has no extension plpgsql_check (OSGPROD_PG_BINDIR names one that has)")
    rows = db.execute(
        "SELECT p.proname, c.lineno, c.level, c.message FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang"
        " CROSS JOIN LATERAL plpgsql_check_function_tb(p.oid, security_warnings => true, performance_warnings => false,"
        " extra_warnings => false) c WHERE p.pronamespace = 'osgprod'::regnamespace AND l.lanname = 'plpgsql'"
    ).fetchall()
    assert rows == []


def test_every_table_column_and_type_has_a_comment(db: psycopg.Connection[dict[str, Any]]) -> None:
    bare = db.execute(
        "SELECT c.relname || '.' || a.attname AS name FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
        " WHERE c.relnamespace = 'osgprod_data'::regnamespace AND c.relkind = 'r' AND a.attnum > 0"
        " AND NOT a.attisdropped AND c.relname !~ 'yoyo' AND col_description(c.oid, a.attnum) IS NULL"
        " UNION ALL SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'osgprod_data'::regnamespace"
        " AND c.relkind = 'r' AND c.relname !~ 'yoyo' AND obj_description(c.oid, 'pg_class') IS NULL"
        " UNION ALL SELECT t.typname FROM pg_type t WHERE t.typnamespace = 'osgprod_data'::regnamespace"
        " AND t.typtype = 'e' AND obj_description(t.oid, 'pg_type') IS NULL"
    ).fetchall()
    assert bare == []


def test_no_comment_of_the_catalog_puts_a_question(db: psycopg.Connection[dict[str, Any]]) -> None:
    """After the comment "is it skipped?" nobody knows what true means."""
    questions = db.execute(
        "SELECT pg_describe_object(d.classoid, d.objoid, d.objsubid) AS name, d.description FROM pg_description d"
        " WHERE d.description ~ '[?]' AND pg_describe_object(d.classoid, d.objoid, d.objsubid) ~ 'osgprod'"
    ).fetchall()
    assert questions == []


def schema(db: psycopg.Connection[dict[str, Any]]) -> str:
    """The tables as they are, in words that do not depend on the server's version."""
    rows = db.execute(
        "SELECT c.relname AS item, 0 AS kind, a.attnum AS nth, format('    %s %s%s%s', a.attname,"
        "   format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END,"
        "   coalesce(' = ' || pg_get_expr(d.adbin, d.adrelid), '')) AS line"
        "  FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
        "  LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum"
        " WHERE c.relnamespace = 'osgprod_data'::regnamespace AND c.relkind = 'r' AND a.attnum > 0"
        "   AND NOT a.attisdropped AND c.relname !~ 'yoyo'"
        " UNION ALL SELECT c.relname, 1, 0, format('    %s: %s', k.conname, pg_get_constraintdef(k.oid))"
        "  FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid"
        " WHERE c.relnamespace = 'osgprod_data'::regnamespace AND k.contype IN ('c', 'p', 'u', 'f', 'x')"
        "   AND c.relname !~ 'yoyo'"
        " UNION ALL SELECT c.relname, 2, 0, format('    %s', pg_get_indexdef(i.indexrelid))"
        "  FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid"
        " WHERE c.relnamespace = 'osgprod_data'::regnamespace AND c.relname !~ 'yoyo'"
        "   AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.contype IN ('p', 'u'))"
        " UNION ALL SELECT t.typname, 3, 0, '    ' || string_agg(e.enumlabel, ', ' ORDER BY e.enumsortorder)"
        "  FROM pg_type t JOIN pg_enum e ON e.enumtypid = t.oid"
        " WHERE t.typnamespace = 'osgprod_data'::regnamespace GROUP BY t.typname"
    ).fetchall()
    rows.sort(key=lambda row: tuple(row.values()))
    lines: list[str] = []
    for n, row in enumerate(rows):
        if n == 0 or rows[n - 1]["item"] != row["item"]:
            lines.append(row["item"])
        lines.append(row["line"])
    return "\n".join(lines) + "\n"


def test_schema_is_the_one_in_the_snapshot(db: psycopg.Connection[dict[str, Any]]) -> None:
    """A reviewer sees in the snapshot's diff what a migration does. Delete the file, and this test writes it."""
    now = schema(db)
    if not SNAPSHOT.exists():
        SNAPSHOT.write_text(now)
    assert now == SNAPSHOT.read_text(), (
        f"the schema has changed; delete {Path(SNAPSHOT).name}, run this again, commit it"
    )


def wrong_with_released(migrations: Path, version: str) -> list[str]:
    """What is wrong with the migrations of releases before this version, and what to do: a line for each file.

    A database that applied one of them refuses a release in which it differs.
    """
    listed = {
        Path(path).name: digest
        for digest, path in (line.split() for line in RELEASED.read_text().splitlines())
    }
    there = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in migrations.glob("[0-9]*.sql")
    }
    last = max(path.name[:4] for path in snapshots(migrations) if source_of(path)[0] != version)
    faults = [
        f"{name} was {'edited' if name in there else 'removed or renamed'} after its release:"
        " put it back as it was, and write a new migration"
        for name, digest in listed.items()
        if there.get(name) != digest
    ]
    unlisted = sorted(name for name in there.keys() - listed.keys() if name[:4] <= last)
    if unlisted:
        faults.append(
            f"{', '.join(unlisted)}: not in tests/released.sha256. A new migration gets a number after {last}."
            f" If {last} is of a release: sha256sum"
            f" {' '.join(f'sql/migrations/{name}' for name in unlisted)} >> tests/released.sha256"
        )
    return faults


def test_migrations_of_releases_are_as_they_were_released() -> None:
    faults = wrong_with_released(MIGRATIONS, present_version())
    assert not faults, "\n".join(faults)


def test_migration_of_a_release_that_is_edited_removed_or_added_is_named(tmp_path: Path) -> None:
    migrations = Path(shutil.copytree(MIGRATIONS, tmp_path / "migrations"))
    first, second, *_ = sorted(migrations.glob("[0-9]*.rollback.sql"))
    first.write_text("-- edited")
    second.unlink()
    (migrations / "0003-another.sql").touch()
    edited, removed, added = wrong_with_released(migrations, present_version())
    assert edited.startswith(f"{first.name} was edited ") and removed.startswith(
        f"{second.name} was removed "
    )
    assert added.startswith("0003-another.sql: not in ")


def test_migrations_of_a_release_have_to_be_listed_once_the_version_is_raised(tmp_path: Path) -> None:
    migrations = Path(shutil.copytree(MIGRATIONS, tmp_path / "migrations"))
    new = [migrations / name for name in ("9000-tables.sql", "9001-functions.sql")]
    for path in new:
        path.write_text(f"-- Source: osgprod 99.0.0, sha256 {64 * '0'}\n")
    assert "9000" not in "".join(wrong_with_released(migrations, "99.0.0"))
    (fault,) = wrong_with_released(migrations, "99.1.0")
    assert fault.endswith(
        f"{' '.join(f'sql/migrations/{path.name}' for path in new)} >> tests/released.sha256"
    )


def test_service_starts_only_programs_that_a_small_system_has() -> None:
    """A reload failed on a Debian without procps, which has no /bin/kill."""
    unit = (CHECKOUT / "deploy" / "osgprod.service").read_text()
    programs = re.findall(r"^Exec\w+=[-@:+!]*(\S+)", unit, re.MULTILINE)
    assert sorted(programs) == ["/bin/sh", "/opt/osgprod/.venv/bin/osgprod"]
