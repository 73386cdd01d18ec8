"""The claim stays small: how much SQL checkout_slice can reach, and how much a plain checkout starts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shim.snapshot import SQL_FOLDER
from tests.support import World

# Lines without comments, a line for each parameter included. 76 are for merges: projects without merges reach none.
# Release 0.9.0 had 921, without merges, outages, sizes by time, backups, or several slices a job.
MOST_LINES = 930
# The plain path: lines of the functions that a checkout starts which gets the next blocks of a file.
MOST_STARTED = 234
DESIGN = Path(__file__).parents[2] / "docs/design.md"
SOURCE = "\n".join(path.read_text() for path in sorted((SQL_FOLDER / "functions").rglob("*.sql")))


def functions() -> dict[str, str]:
    """The text of each function, header included, by its name."""
    parts = re.split(r"^(?=CREATE FUNCTION osgprod\.)", SOURCE, flags=re.MULTILINE)[1:]
    return {
        re.match(r"CREATE FUNCTION osgprod\.(\w+)", part)[1]: part[: part.index("$fn$;") + 5]  # type: ignore[index]
        for part in parts
    }


def reach(name: str) -> dict[str, int]:
    """The functions that a function can call, itself included, with their lines without comments."""
    bodies, found, left = functions(), {}, [name]
    while left:
        name = left.pop()
        if name in found or name not in bodies:
            continue
        code = [
            line for line in bodies[name].split("\n") if line.strip() and not line.strip().startswith("--")
        ]
        found[name] = len(code)
        left += re.findall(r"osgprod\.(_?\w+)\(", "\n".join(code))
    return found


def test_what_checkout_slice_can_reach_does_not_grow() -> None:
    lines = reach("checkout_slice")
    print(sorted(lines.items(), key=lambda item: -item[1]))
    assert sum(lines.values()) <= MOST_LINES


def started(world: World, do: Callable[[], Any]) -> list[str]:
    """The functions that a call starts, without those that are inlined."""
    calls: list[Counter[str]] = []
    with world.db.transaction():
        world.db.execute("SET LOCAL track_functions = 'all'")
        for act in (lambda: None, do):
            act()
            rows = world.db.execute(
                "SELECT funcname, calls FROM pg_stat_xact_user_functions WHERE schemaname = 'osgprod'"
            )
            calls.append(Counter({row["funcname"]: row["calls"] for row in rows}))
    return sorted((calls[1] - calls[0]).elements())


def test_plain_checkout_starts_few_functions(world: World) -> None:
    world.add_file(9)
    named = {"host": "wn1.example.org", "site": "SITE_A", "job_key": "x" * 32, "schedd": "ap1", "qdate": 1}
    assert world.checkout(0, **named)["status"] == "assigned"
    found = started(world, lambda: world.checkout(1, **named))
    assert found == ["_checkout", "_slice_file", "checkout_slice"]
    assert sum(reach("checkout_slice")[name] for name in found) <= MOST_STARTED


def test_plain_report_starts_two_functions(world: World) -> None:
    world.add_file(9)
    named = {"host": "wn1.example.org", "site": "SITE_A", "job_key": "x" * 32}
    evidence = {"outputs": 1, "output_bytes": 9, "output_adler32": "00000001", "output_url": "file:///out/1"}
    tokens = [str(world.checkout(n, **named)["token"]) for n in range(2)]
    assert world.report(0, token=tokens[0], **named, **evidence)["status"] == "done"
    assert started(world, lambda: world.report(1, token=tokens[1], **named, **evidence)) == [
        "_report",
        "report_exit",
    ]


def test_design_names_the_figures_of_the_claim() -> None:
    lines = reach("checkout_slice")
    words = " ".join(DESIGN.read_text().split())
    assert f"is {len(lines)} functions and {sum(lines.values()):,} lines." in words
    plain = sum(lines[name] for name in ("checkout_slice", "_checkout", "_slice_file"))
    assert (
        f"starts three functions with {plain} lines: `checkout_slice`, `_checkout` and `_slice_file`."
        in words
    )


def test_batch_reaches_what_the_single_call_does() -> None:
    for one, many in (
        ("checkout_slice", "checkout_slices"),
        ("report_exit", "report_exits"),
        ("heartbeat", "heartbeats"),
    ):
        # The shim has written v4-mapped addresses as IPv4 before it makes a batch.
        assert reach(one).keys() - {one, "_plain_address"} == reach(many).keys() - {many}
