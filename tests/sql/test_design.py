"""docs/design.md says what the code does: error codes, invariants, and that history is only ever added to (I6)."""

from __future__ import annotations

import re

import psycopg
import pytest

from shim.database import call
from shim.snapshot import function_files
from tests.support import CHECKOUT, World

DESIGN = (CHECKOUT / "docs" / "design.md").read_text()
SOURCES = {path: path.read_text() for path in function_files()}


def test_table_of_error_codes_is_that_of_the_code() -> None:
    raised = {
        code
        for text in SOURCES.values()
        for code in re.findall(r"(?:ERRCODE = |ARRAY\[|THEN )'(OG\d{3})'", text)
    }
    for path in (CHECKOUT / "shim").rglob("*.py"):
        raised |= set(re.findall(r"\"(OG\d{3})\"", path.read_text()))
    listed = re.findall(r"^\| (OG\d{3}) \| (.+) \|$", DESIGN, re.MULTILINE)
    assert {code for code, _ in listed} == raised
    assert len(listed) == len(raised), "each number means one thing"


def test_table_of_advisory_locks_is_that_of_the_code() -> None:
    taken = set()
    call_ = re.compile(r"pg_(try_)?advisory_xact_lock(_shared)?\((?:osgprod\.(_\w+)\(|([^()]+)\))")
    for text in SOURCES.values():
        name = ""
        for line in text.splitlines():
            if made := re.match(r"CREATE FUNCTION osgprod\.(\w+)", line):
                name = made[1]
            for tries, shared, key, numbers in call_.findall(line.partition("--")[0]):
                lock = {"_job_lock": "job", "_ban_key": "ban"}.get(key)
                numbers = re.sub(r"[\w.]*project_id", "project", numbers).replace("v_file.", "")
                taken.add((lock or f"({numbers})", name, "tries" if tries else "waits", bool(shared)))
    table = DESIGN.partition("<!-- advisory locks -->")[2].partition("<!-- end of advisory locks -->")[0]
    listed = set()
    for row in re.findall(r"^\| (job|ban|\(.+?\)) \| .+? \|(.*?)\|(.*?)\|$", table, re.MULTILINE):
        for cell, shared in ((row[1], False), (row[2], True)):
            listed |= {
                (row[0], name, how, shared) for name, how in re.findall(r"`(\w+)` (waits|tries)", cell)
            }
    assert listed == taken


def test_every_group_of_codes_has_its_status_in_the_shim() -> None:
    from shim.web.failures import STATUS_OF_GROUP

    groups = dict(re.findall(r"^\| OG(\d)xx \| .+ \| (\d+) \|$", DESIGN, re.MULTILINE))
    assert {group: int(status) for group, status in groups.items()} == STATUS_OF_GROUP


@pytest.mark.parametrize(
    "statement", ["UPDATE {} SET project_id = project_id", "DELETE FROM {}", "TRUNCATE {}"]
)
@pytest.mark.parametrize("table", ["osgprod_data.attempts", "osgprod_data.reports"])
def test_history_is_only_ever_added_to(world: World, statement: str, table: str) -> None:
    """I6, by the database: the functions run as osgprod_owner."""
    world.add_file(1)
    world.checkout(0)
    world.report(0)
    with (
        pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="history is only ever added to"),
        world.db.transaction(),
    ):
        world.db.execute("SET LOCAL ROLE osgprod_owner")
        world.db.execute(statement.format(table))  # type: ignore[arg-type]


def test_only_one_function_removes_history(world: World) -> None:
    """I6. A whole project goes with its history; the permission ends with the deletion."""
    callers = [path.name for path, text in SOURCES.items() if "removes_history" in text]
    assert callers == ["remove_project.sql"]
    world.add_file(1)
    world.checkout(0)
    world.report(0)
    with world.db.transaction():
        (removed,) = call(world.db, "remove_project", project="p", force=True)
        assert (removed["attempts"], removed["reports"]) == (1, 1)
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState), world.db.transaction():
            world.db.execute("SET LOCAL ROLE osgprod_owner")
            world.db.execute("DELETE FROM osgprod_data.attempts")


def test_tests_and_functions_that_the_invariants_name_are_there() -> None:
    section = DESIGN.partition("## Invariants")[2].partition("\n## ")[0]
    numbers = re.findall(r"^\*\*I(\d) - ", section, re.MULTILINE)
    assert numbers == [str(n) for n in range(1, len(numbers) + 1)]
    tests = {path.stem for path in (CHECKOUT / "tests").rglob("test_*.py")}
    for name in re.findall(r"`(test_\w+)`", section):
        assert name in tests
    code = "\n".join(SOURCES.values()) + (CHECKOUT / "sql" / "migrations" / "0002-tables.sql").read_text()
    code += (CHECKOUT / "sql" / "migrations" / "0007-claim.sql").read_text()
    for name in re.findall(r"`(_\w+|slices_\w+|opened_at|reclaim_lost|recycle)`", section):
        assert name in code
    # each invariant is named where it is kept
    for number in numbers:
        assert re.search(rf"\bI{number}\b", code), f"I{number} is named nowhere in sql/"
