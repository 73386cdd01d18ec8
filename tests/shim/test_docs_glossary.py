"""docs/glossary.md explains the words of the product, one line a term."""

from __future__ import annotations

import re
from typing import Any

import psycopg
import pytest

from shim.version import SQL_FOLDER
from tests.support import CHECKOUT

# The words that documents, messages and code use; each of them one way only.
VOCABULARY = """
    access point, allocated, assigned, back off, backoff, ban, banned, batch, bisect, claim, count against,
    data failure, expired lease, heartbeat, isolate, lease, leased, lost attempt, merge, node fault, notification,
    notify, output, probation, refuse, reject, report, reprocess, requeue, requeued, reset, retry, running, site,
    stale or superseded report, stop, tail, tarball, tick, unallocated, unban, verify, worker node
"""


def rows() -> list[list[str]]:
    """Return the cells of each row of the glossary's tables, without their heads."""
    lines = (CHECKOUT / "docs" / "glossary.md").read_text().splitlines()
    return [
        [cell.strip() for cell in line.strip("| ").split(" | ")]
        for line in lines
        if line.startswith("|") and not line.startswith(("|-", "| term |", "| of |", "| level |"))
    ]


def terms() -> list[str]:
    """Return each explained term; a row may explain several, separated by commas."""
    return [term.strip(" `") for row in rows() for term in row[-2].split(",")]


@pytest.mark.parametrize("term", [term.strip() for term in VOCABULARY.split(",")])
def test_glossary_explains_each_word_of_the_vocabulary(term: str) -> None:
    assert term in terms()


def test_glossary_explains_each_state_and_outcome_of_the_database(
    db: psycopg.Connection[dict[str, Any]],
) -> None:
    labels = db.execute(
        "SELECT e.enumlabel AS label FROM pg_enum e JOIN pg_type t ON t.oid = e.enumtypid"
        " WHERE t.typnamespace = 'osgprod_data'::regnamespace"
        " AND t.typname IN ('project_state', 'file_state', 'slice_state', 'outcome')"
    ).fetchall()
    assert len(labels) > 10
    assert [row["label"] for row in labels if row["label"] not in terms()] == []


def test_each_row_of_the_glossary_explains_its_term_in_whole_sentences() -> None:
    assert len(rows()) > 50
    for row in rows():
        assert re.fullmatch(r"[A-Z`].*\.", row[-1]), row


def test_no_term_is_explained_twice() -> None:
    found = [tuple(row[:-1]) for row in rows()]
    assert sorted(set(found)) == sorted(found)


def test_glossary_has_each_finding_of_health_with_its_level() -> None:
    source = (SQL_FOLDER / "functions" / "reading" / "health.sql").read_text()
    found = set(re.findall(r"\('(bad|attention|well)', '([a-z-]+)',", source)) | {("well", "healthy")}
    listed = {
        (row[0], finding.strip()) for row in rows() if row[0] in {"bad", "attention", "well"}
        for finding in row[1].split(",")
    }  # fmt: skip
    assert listed == found and len(found) > 20
