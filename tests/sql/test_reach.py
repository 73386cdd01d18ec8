"""The claim stays small: how much SQL checkout_slice can reach, and how much a plain checkout starts."""

from __future__ import annotations

import re
from pathlib import Path

from shim.snapshot import SQL_FOLDER
from tests.support import World

# Lines without comments, a line for each parameter included. 120 are for merges: projects without merges reach none.
MOST_LINES = 1086  # 921 in release 0.9.0, which had no merges, outages, sizes by time, backups, or several slices a job
# The plain path: lines of the functions that a checkout starts which gets the next blocks of a file.
MOST_STARTED = 236
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


def started(world: World) -> list[str]:
    """The functions that a checkout starts which gets the next blocks of a file, without those that are inlined."""
    world.add_file(9)
    named = {"host": "wn1.example.org", "site": "SITE_A", "job_key": "x" * 32, "schedd": "ap1", "qdate": 1}
    assert world.checkout(0, **named)["status"] == "assigned"
    with world.db.transaction():
        world.db.execute("SET LOCAL track_functions = 'all'")
        assert world.checkout(1, **named)["status"] == "assigned"
        rows = world.db.execute(
            "SELECT funcname, calls FROM pg_stat_xact_user_functions WHERE schemaname = 'osgprod' ORDER BY 1"
        ).fetchall()
    return [row["funcname"] for row in rows for _ in range(row["calls"])]


def test_plain_checkout_starts_few_functions(world: World) -> None:
    found = started(world)
    assert found == ["_checkout", "_slice_file", "checkout_slice"]
    assert sum(reach("checkout_slice")[name] for name in found) <= MOST_STARTED


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
