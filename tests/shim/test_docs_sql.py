"""docs/sql.md is what the database says of itself, and can't go stale."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType
from typing import Any

import psycopg
import pytest

from shim.snapshot import function_files
from tests.support import CHECKOUT


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_sql", CHECKOUT / "docs" / "generate_sql.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class SlowMachine:
    """A connection that takes a second for each statement: what began is moved into the past, in place of waiting."""

    def __init__(self, db: psycopg.Connection[dict[str, Any]]) -> None:
        self._db = db

    def execute(self, *arguments: Any) -> psycopg.Cursor[dict[str, Any]]:
        self._db.execute("UPDATE osgprod_data.attempts SET started_at = started_at - interval '1 s'")
        return self._db.execute(*arguments)


def test_sql_documentation_is_current_however_slow_the_machine_is(
    generator: ModuleType, db: psycopg.Connection[dict[str, Any]]
) -> None:
    written = (CHECKOUT / "docs" / "sql.md").read_text()
    assert generator.generate(SlowMachine(db)) == written, "run: make docs"


def test_targets_can_get_each_event_of_the_documents_and_functions_notify_of_no_other() -> None:
    section = (CHECKOUT / "docs" / "sql.md").read_text().split("## Events\n")[1].split("\n## ")[0]
    documented = re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE)
    target = (CHECKOUT / "sql/functions/notify/add_notify_target.sql").read_text()
    known = re.findall(r"'([a-z-]+)'", target.split("v_known text[] := ARRAY[")[1].split("]")[0])
    assert documented == known
    sources = "\n".join(path.read_text() for path in function_files())
    notified = re.findall(r"\b_notify(?:_of_merge)?\(\s*[\w.()]+,\s*'([a-z-]+)'", sources)
    assert len(notified) > 10
    assert set(notified) <= set(known)


def test_contents_of_the_functions_are_current_and_complete(generator: ModuleType) -> None:
    written = (CHECKOUT / "sql" / "functions" / "README.md").read_text()
    assert generator.contents() == written, "run: make docs"
    sources = "\n".join(path.read_text() for path in function_files())
    functions = re.findall(r"^CREATE FUNCTION osgprod\.(\w+)", sources, re.MULTILINE)
    assert sorted(re.findall(r"^\| \[`(\w+)`\]", written, re.MULTILINE)) == sorted(functions)


def test_tree_of_calls_is_current_and_leads_from_a_report_to_the_quarantine(generator: ModuleType) -> None:
    written = (CHECKOUT / "sql" / "functions" / "CALLS.md").read_text()
    assert generator.calls() == written, "run: make docs"
    report = written.partition("## A job reports its exit code")[2].partition("\n## ")[0]
    for name in ("_judge_exit", "_settle_attempt", "_blame", "_fail_slice", "_ban_if_black_hole"):
        assert f"[`{name}`](" in report


def test_each_public_function_is_described_with_an_example_and_its_answer(
    db: psycopg.Connection[dict[str, Any]],
) -> None:
    text = (CHECKOUT / "docs" / "sql.md").read_text()
    rows = db.execute(
        "SELECT p.proname AS name, p.proargnames AS names, p.proargmodes AS modes FROM pg_proc p"
        " WHERE p.pronamespace = 'osgprod'::regnamespace AND p.proname NOT LIKE '\\_%'"
    ).fetchall()
    assert len(rows) > 20
    for row in rows:
        section = text.split(f"\n### {row['name']}\n")[1].split("\n### ")[0]
        assert f"osgprod.{row['name']}(" in section.split("```sql")[1], f"{row['name']} has no example"
        assert re.search(r"```sql\n.*?```\n```\n.+?\n```", section, re.DOTALL), f"{row['name']}: no answer"
        for name in row["names"] or []:
            if name.startswith("p_"):
                prose = section.split("```", 2)[2]
                assert name in prose, f"{row['name']}: parameter {name} is not explained"


def test_each_error_code_of_the_functions_is_listed_with_a_hint() -> None:
    text = (CHECKOUT / "docs" / "sql.md").read_text()
    codes = set()
    for path in function_files():
        codes |= set(re.findall(r"(?:ERRCODE = |ARRAY\[)'(OG\d\d\d)'", path.read_text()))
    lines = [line.split("|") for line in text.splitlines() if line.startswith("| OG")]
    assert codes and {line[1].strip() for line in lines} == codes
    for line in lines:
        assert line[3].strip(), f"{line[1]} has no hint: {line[2]}"


def test_each_event_of_the_functions_is_listed() -> None:
    text = (CHECKOUT / "docs" / "sql.md").read_text().partition("\n## Events\n")[2].partition("\n## ")[0]
    events = {
        event
        for path in function_files()
        for event in re.findall(
            r"(?:osgprod\._notify(?:_of_merge)?\([^,]+,\s*|v_end := )'([a-z-]+)'", path.read_text()
        )
    }
    assert len(events) > 10
    assert set(re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE)) == events


def test_each_table_and_column_has_its_meaning() -> None:
    text = (CHECKOUT / "docs" / "sql.md").read_text().split("\n## Tables\n")[1]
    sections = text.split("\n### ")[1:]
    assert {section.split("\n")[0] for section in sections} >= {"slices", "attempts", "reports", "tallies"}
    for section in sections:
        if not section.startswith("migrated_files"):
            assert not re.findall(r"^\| `\w+` \| [^|]+ \|  \|$", section, re.MULTILINE), section
