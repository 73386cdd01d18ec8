"""docs/design.md says what the code does: error codes, invariants, and that history is only ever added to (I6)."""

from __future__ import annotations

import re

from shim.snapshot import function_files
from tests.support import CHECKOUT

DESIGN = (CHECKOUT / "docs" / "design.md").read_text()
SOURCES = {path: path.read_text() for path in function_files()}


def test_table_of_error_codes_is_that_of_the_code() -> None:
    raised = {
        code for text in SOURCES.values() for code in re.findall(r"(?:ERRCODE = |ARRAY\[)'(OG\d{3})'", text)
    }
    for path in (CHECKOUT / "shim").rglob("*.py"):
        raised |= set(re.findall(r"\"(OG\d{3})\"", path.read_text()))
    listed = re.findall(r"^\| (OG\d{3}) \| (.+) \|$", DESIGN, re.MULTILINE)
    assert {code for code, _ in listed} == raised
    assert len(listed) == len(raised), "each number means one thing"


def test_every_group_of_codes_has_its_status_in_the_shim() -> None:
    from shim.web.failures import STATUS_OF_GROUP

    groups = dict(re.findall(r"^\| OG(\d)xx \| .+ \| (\d+) \| .+ \|$", DESIGN, re.MULTILINE))
    assert {group: int(status) for group, status in groups.items()} == STATUS_OF_GROUP


def test_history_is_only_ever_added_to() -> None:
    """I6. Only remove_project() takes anything out, and all of a project."""
    for path, text in SOURCES.items():
        if path.name == "remove_project.sql":
            continue
        changed = re.findall(
            r"(?:UPDATE|DELETE FROM|TRUNCATE)\s+(?:osgprod_data\.)?(attempts|reports)\b", text
        )
        assert not changed, path.name


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
