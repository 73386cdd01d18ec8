"""The claim stays small: how much SQL checkout_slice can reach."""

from __future__ import annotations

import re

from shim.snapshot import SQL_FOLDER

# Lines without comments, a line for each parameter included. 156 are for merges: projects without merges reach none.
MOST_LINES = 1187  # 921 in release 0.9.0, which had no merges, outages, sizes by time, backups, or several slices a job
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


def test_batch_reaches_what_the_single_call_does() -> None:
    for one, many in (
        ("checkout_slice", "checkout_slices"),
        ("report_exit", "report_exits"),
        ("heartbeat", "heartbeats"),
    ):
        # The shim has written v4-mapped addresses as IPv4 before it makes a batch.
        assert reach(one).keys() - {one, "_plain_address"} == reach(many).keys() - {many}
