"""What the database keeps of a file, what it does with files that older releases registered, and files without a
begin-of-run record."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from shim.database import call
from shim.evio.index import read_index
from shim.evio.writer import bank, block, write_file
from shim.registry import register
from tests.evio.cutting import assemble
from tests.evio.reader import begins_with_run, physics, read_events
from tests.support import Run, World

NAME = "hd_rawdata_000001_000.evio"
BOR, LAST = bank(0x70, [1, 2]), 1 << 9


def event(n: int, tag: int = 0xFF50) -> bytes:
    return bank(tag, [n, 7, 7])


def as_in_0_9_0(world: World, path: Path, **columns: object) -> None:
    """Register a file as release 0.9.0 did: as today, but for these columns and without has_bor."""
    index = read_index(path)
    assert register(world.db, index)[0] == "new"
    world.db.execute("UPDATE osgprod_data.rawdata SET has_bor = NULL WHERE path = %s", [str(path)])
    for column, value in columns.items():
        query = f"UPDATE osgprod_data.rawdata SET {column} = %s WHERE path = %s"
        world.db.execute(query.encode(), [value, str(path)])
    world.db.execute(
        "UPDATE osgprod_data.rawdata SET lead1 = osgprod._lead(preamble, 1, osgprod._int8_at(block_index, 12)),"
        " lead2 = osgprod._lead(preamble, 2, NULL) WHERE path = %s",
        [str(path)],
    )


def row_of(world: World, path: Path) -> dict[str, Any]:
    row = world.db.execute("SELECT * FROM osgprod_data.rawdata WHERE path = %s", [str(path)]).fetchone()
    assert row is not None
    return row


@pytest.mark.parametrize("first_file", [False, True])
def test_files_of_the_usual_layouts_are_as_0_9_0_registered_them(
    world: World, folder: Path, first_file: bool
) -> None:
    """Its preambles, written down from that release."""
    path = folder / NAME
    write_file(path, 3, 2, first_file=first_file)
    block_0 = {"from_block": 1, "offset": 0, "bytes": 52 if first_file else 164, "events": 1}
    record = [
        {
            "from_block": 2,
            "hex": "00000029000000020000000800000001000000000000000400000000c0da0100",
            "events": 0,
        },
        {"from_block": 2, "offset": 84, "bytes": 132, "events": 1},
    ]
    preamble = [block_0, *(record if first_file else [])]
    as_in_0_9_0(world, path, preamble=json.dumps(preamble))
    before = row_of(world, path)
    assert register(world.db, read_index(path)) == ("same", f"{path}: None")
    assert row_of(world, path) == {**before, "has_bor": True, "checked_at": row_of(world, path)["checked_at"]}


def test_what_0_9_0_registered_is_renewed_under_a_project_at_work(world: World, folder: Path) -> None:
    """It took the CDAQ's begin-of-run record for physics, and repeated nothing."""
    path = folder / NAME
    path.write_bytes(
        block(1, [bank(0xFF32, [1, 2])])
        + block(2, [event(1, 0xFF33)])
        + block(3, [event(2, 0xFF33)])
        + block(4, [event(3, 0xFF33)])
        + block(5, [], info=LAST)
    )
    as_in_0_9_0(world, path, first_block=0, preamble="[]")
    call(world.db, "load_slices", project="p")
    first = world.checkout(1, cpus=2)
    assert (first["block1"], first["block2"]) == (0, 2)
    assert register(world.db, read_index(path))[0] == "renewed"
    assert register(world.db, read_index(path))[0] == "same"
    answers = [first, world.checkout(2, cpus=1), world.checkout(3, cpus=1)]
    assert [(a["block1"], a["block2"]) for a in answers] == [(0, 2), (2, 3), (3, 4)], (
        "numbers keep their meaning"
    )
    slices = [read_events(assemble(path.read_bytes(), a["pieces"])) for a in answers]
    assert all(begins_with_run(events) for events in slices)
    assert [physics(events) for events in slices] == [[1], [2], [3]]
    assert call(world.db, "verify", project="p") == []


def test_file_with_empty_blocks_of_0_9_0_is_renewed_only_while_no_project_works_on_it(
    world: World, folder: Path
) -> None:
    path = folder / NAME
    path.write_bytes(
        block(1, [BOR]) + block(2, [event(1)]) + block(3, []) + block(4, [event(2)]) + block(5, [], info=LAST)
    )
    offsets = [(0, 0), (48, 1), (100, 2), (132, 2), (184, 3)]  # it counted the empty block as well
    index = b"".join(a.to_bytes(8, "big") + b.to_bytes(4, "big") for a, b in offsets)

    def register_as_0_9_0() -> None:
        world.db.execute("DELETE FROM osgprod_data.rawdata")
        as_in_0_9_0(world, path)
        world.db.execute(
            "UPDATE osgprod_data.rawdata SET nblocks = 4, gaps = NULL, block_index = %s", [index]
        )

    register_as_0_9_0()
    assert register(world.db, read_index(path))[0] == "renewed"
    assert row_of(world, path)["nblocks"] == 3
    register_as_0_9_0()
    call(world.db, "load_slices", project="p")
    before = row_of(world, path)
    status, what = register(world.db, read_index(path))
    assert status == "differs" and "nblocks: known 4, found 3" in what
    assert row_of(world, path) == before
    assert world.checkout(1, cpus=100)["pieces"].splitlines()[0] == "range 0 184", "it goes on as it was"


def test_changed_file_is_never_renewed(world: World, folder: Path) -> None:
    path = folder / NAME
    write_file(path, 3, 2)
    as_in_0_9_0(world, path)
    write_file(path, 4, 2)
    assert register(world.db, read_index(path))[0] == "differs"


@pytest.fixture
def two_files(folder: Path) -> Path:
    """A file with a begin-of-run record, and one without."""
    write_file(folder / NAME, 3, 2)
    (folder / "hd_rawdata_000001_001.evio").write_bytes(
        block(1, [bank(0xFFD1, [1])]) + block(2, [event(1)]) + block(3, [], info=LAST)
    )
    return folder


def test_load_counts_and_names_files_without_a_begin_of_run_record(run: Run, two_files: Path) -> None:
    result = run("rawdata", "load", two_files, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)[0] == {
        "new": 2,
        "same": 0,
        "renewed": 0,
        "differs": 0,
        "bad": 0,
        "without_bor": 1,
    }
    assert (
        f"{two_files}/hd_rawdata_000001_001.evio: registered without a begin-of-run record" in result.stderr
    )
    listed = json.loads(run("rawdata", "list", "--json").stdout)
    assert [row["has_bor"] for row in listed] == [True, False]


def test_project_may_demand_a_begin_of_run_record(run: Run, world: World, two_files: Path) -> None:
    run("rawdata", "load", two_files)
    world.set(demand_bor=True)
    result = run("slices", "load", "p", "--json")
    assert result.exit_code == 0
    (loaded,) = json.loads(result.stdout)
    assert (loaded["files"], loaded["files_already"], loaded["files_without_bor"]) == (1, 0, 1)
    assert "project p demands a begin-of-run record (demand_bor)" in result.stderr
    world.set(demand_bor=False)
    assert json.loads(run("slices", "load", "p", "--json").stdout)[0]["files"] == 1


def test_doctor_names_a_file_without_a_begin_of_run_record(world: World, two_files: Path) -> None:
    for path in sorted(two_files.iterdir()):
        register(world.db, read_index(path))
    world.set(demand_bor=True)
    call(world.db, "load_slices", project="p")

    def finding() -> dict[str, Any]:
        return next(row for row in call(world.db, "diagnose") if row["what"] == "begin-of-run records of p")

    assert finding()["is_well"]
    world.set(demand_bor=False)
    call(world.db, "load_slices", project="p")
    assert not finding()["is_well"]
    assert finding()["found"] == f"missing in 1 file: {two_files}/hd_rawdata_000001_001.evio"


def test_path_that_the_database_can_not_hold_is_named_and_the_other_files_are_registered(
    operator: World, run: Run, tmp_path: Path
) -> None:
    odd = [b"b\xff", b"new\nline", "c1\u0085".encode(), "line\u2028".encode()]
    for seqno, name in enumerate(odd):
        folder = tmp_path / os.fsdecode(name)
        folder.mkdir()
        write_file(folder / f"hd_rawdata_000002_{seqno:03}.evio", 2, 3)
    write_file(tmp_path / NAME, 2, 3)
    for status in ("new", "same"):
        done = run("rawdata", "load", tmp_path, "--json")
        assert done.exit_code == 1
        assert {key: n for key, n in json.loads(done.stdout)[0].items() if n} == {status: 1, "bad": 4}
        assert len(done.stderr.splitlines()) == 4
        assert (
            done.stderr.count("has a control character, or is not UTF-8: rename the file or its folder") == 4
        )
    checked = run("rawdata", "check", tmp_path, "--json")
    assert (checked.exit_code, len(json.loads(checked.stdout))) == (1, 4)


def test_list_of_files_may_hold_any_bytes(operator: World, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"b\xff")
    folder.mkdir()
    write_file(folder / NAME, 2, 3)
    done = run("rawdata", "load", "--list", "-", input=os.fsencode(folder) + b"\n")
    assert done.exit_code == 1 and "is not UTF-8: rename" in done.stderr
    done = run("rawdata", "load", "--list", "-", input=b"\xfe\n")
    assert done.exit_code == 2 and "does not exist" in done.stderr
