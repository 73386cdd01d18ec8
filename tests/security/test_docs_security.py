"""Each claim of docs/security.md names its tests, and each setting is documented."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.support import CHECKOUT

TEXT = (CHECKOUT / "docs" / "security.md").read_text()


def test_each_test_that_the_document_names_exists() -> None:
    source = "\n".join(path.read_text() for path in (CHECKOUT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"^(?:async )?def (test_\w+)", source, re.MULTILINE))
    named = set(re.findall(r"\b(test_\w+)", TEXT))
    assert len(named) > 40
    assert named <= defined, named - defined


def test_each_row_of_a_table_of_claims_names_a_test() -> None:
    claims = [line for line in TEXT.splitlines() if line.startswith("| ") and line.count("|") == 4]
    rows = [
        line
        for line in claims
        if not line.startswith(("| attack |", "| credential |", "| what | number", "|---"))
    ]
    rows = [line for line in rows if not line.startswith(("| requests over HTTP", "| mutated EVIO"))]
    assert len(rows) > 25
    assert [line for line in rows if "`test_" not in line] == []


def test_no_private_key_and_no_token_is_in_a_tracked_file() -> None:
    """The command of "Checks before a release", as the document has it."""
    pattern = re.search(r"git grep -nE '([^']+)'", TEXT)
    assert pattern
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("this is not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        assert not re.search(pattern[1].encode(), (CHECKOUT / name).read_bytes()), name
