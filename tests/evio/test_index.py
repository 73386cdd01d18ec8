"""What the block index finds in a file, and that a slice's pieces are a file of their own."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from shim.database import call
from shim.evio import scan
from shim.evio.errors import EvioError
from shim.evio.index import parse_name, read_index
from shim.evio.writer import PHYSICS, ByteOrder, bank, block, write_file
from shim.registry import register
from tests.evio.cutting import with_word
from tests.support import CHECKOUT, World, real_files

REAL_FILES = real_files()
NAME = "hd_rawdata_000001_001.evio"


def numbers_in(*slices: Path) -> list[list[str]]:
    """What a reader that shares no code with the index sees in each slice, in order."""
    folder = slices[0].parent
    reader = [sys.executable, str(CHECKOUT / "worker" / "demo_recon.py"), *map(str, slices)]
    run = subprocess.run(reader, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    seen: list[list[str]] = []
    for word in (folder / "events.txt").read_text().split():
        if word == "begin-of-run":
            seen.append([])
        seen[-1].append(word)
    return seen


def slices_of(world: World, path: Path, blocks: int, project: str = "p") -> tuple[list[Path], int]:
    """Registers a file, leases all of it, and writes each slice's pieces one behind the other.

    Returns the slices, and how many events the scripts say that they hold in all.
    """
    data, events, written = path.read_bytes(), 0, []
    status, why = register(world.db, read_index(path))
    assert status in ("new", "same"), why
    run, _ = parse_name(path)
    call(world.db, "load_slices", project=project, runs=[run])
    while (answer := world.checkout(len(written), cpus=blocks, project=project))["status"] == "assigned":
        parts = []
        for piece in answer["pieces"].split("\n"):
            kind, first, *more = piece.split()
            parts.append(
                bytes.fromhex(first) if kind == "hex" else data[int(first) : int(first) + int(more[0])]
            )
        name = path.parent / f"{project}-{answer['block1']}.evio"
        name.write_bytes(b"".join(parts))
        assert name.stat().st_size == answer["size_bytes"]
        written.append(name)
        events += answer["events"]
    return written, events


KINDS = [
    {"dictionary": dictionary, "first_file": first_file, "trailer": trailer, "trailer_bit": trailer_bit}
    for dictionary in (False, True)
    for first_file in (False, True)
    for trailer in (False, True)
    for trailer_bit in (False, True)
]


@pytest.mark.parametrize(
    ("byte_order", "blocks"),
    [("big", 1), ("little", 100)]
    + [
        pytest.param(order, blocks, marks=pytest.mark.slow)
        for order, blocks in (("little", 1), ("big", 3), ("little", 3), ("big", 100))
    ],
)
def test_slices_of_every_kind_of_file_are_whole_files_and_hold_each_event_once(
    world: World, folder: Path, byte_order: ByteOrder, blocks: int
) -> None:
    for number, kind in enumerate(KINDS):
        path = folder / f"hd_rawdata_{number:06d}_000.evio"
        count = write_file(path, 7, 3, byte_order=byte_order, **kind)
        index = read_index(path)
        assert (index.nblocks, index.first_block, index.has_trailer) == (8, 1, kind["trailer"]), kind
        world.with_project(f"k{number}")
        slices, expected = slices_of(world, path, blocks, f"k{number}")
        seen = numbers_in(*slices)
        assert len(seen) == len(slices), f"each slice begins with the begin-of-run record, {kind}"
        events = [word for words in seen for word in words if word != "begin-of-run"]
        assert events == [str(n) for n in range(1, count + 1)], kind
        assert int((folder / "events_read").read_text()) == expected, (
            f"the scripts say how many events there are, {kind}"
        )


def physics_in_block_0(path: Path, before: list[bytes]) -> None:
    events = [bank(PHYSICS, [n, 7, 7]) for n in range(1, 7)]
    path.write_bytes(
        block(1, [*before, *events[:2]])
        + block(2, events[2:4])
        + block(3, events[4:])
        + block(4, [], info=1 << 9)
    )


def test_block_0_that_holds_physics_is_work_and_is_not_repeated(world: World, folder: Path) -> None:
    physics_in_block_0(folder / NAME, [bank(0x70, [1, 2])])
    assert read_index(folder / NAME).first_block == 0
    slices, _ = slices_of(world, folder / NAME, 1)
    assert numbers_in(*slices) == [
        ["begin-of-run", "1", "2"],
        ["begin-of-run", "3", "4"],
        ["begin-of-run", "5", "6"],
    ]


def test_offsets_and_event_counts_are_those_of_the_file(folder: Path) -> None:
    path = folder / NAME
    write_file(path, 5, 4, filler_words=3)
    index = read_index(path)
    data = path.read_bytes()
    for n in range(index.nblocks):
        assert data[index.offsets[n] + 28 : index.offsets[n] + 32].hex() == "c0da0100"
    assert index.offsets[-1] == len(data) - 32
    assert [b - a for a, b in zip(index.events_before, index.events_before[1:], strict=False)] == [1] + [
        4
    ] * 5
    assert len(index.packed()) == 12 * (index.nblocks + 1)


def test_a_file_that_claims_more_events_than_can_be_counted_is_bad(folder: Path) -> None:
    path = folder / NAME
    path.write_bytes(block(1, [bank(0x70, [1])]))
    words = 2**32 - 8
    with path.open("r+b") as file:  # three blocks of 17 GB with nothing in them
        for number in (2, 3, 4):
            size = file.seek(0, os.SEEK_END)
            file.write(struct.pack(">8I", words, number, 8, words // 2 - 4, 0, 4, 0, 0xC0DA0100))
            file.truncate(size + 4 * words)
    with pytest.raises(EvioError, match=r"byte 0: 6442450921 events in all its blocks, more than 4294967295"):
        read_index(path)


def good() -> bytearray:
    return bytearray(
        block(1, [bank(0x70, [1])]) + block(2, [bank(PHYSICS, [1, 2])]) + block(3, [bank(PHYSICS, [2, 2])])
    )


BAD_FILES = {
    "empty": (b"", r"byte 0: the file is empty"),
    "short": (b"\0" * 31, r"byte 0: 31 bytes are less than a block header \(32\)"),
    "text": (b"x" * 500, r"byte 28: magic word 78787878: not an EVIO file"),
    "zero length": (with_word(good(), 44, 0), r"byte 44: block length 0 words is less than its header"),
    "huge length": (with_word(good(), 44, 0xFFFFFFFF), r"byte 44: block of 17179869180 bytes ends \d+ bytes behind"),
    "length into itself": (with_word(good(), 44, 7), r"byte 44: block length 7 words is less"),
    "magic lost": (with_word(good(), 72, 5), r"byte 72: magic word 00000005 where a block header should be"),
    "cut in a block": (good()[:-5], r"byte 92: block of 48 bytes ends 5 bytes behind the file: it may be cut"),
    "cut in a header": (good()[:-30], r"byte 92: 18 bytes behind the last block are no block header"),
    "version 1": (with_word(good(), 20, 1), r"byte 20: EVIO version 1 can't be sliced by block"),
    "version 3": (with_word(good(), 20, 3), r"byte 20: EVIO version 3 can't be sliced by block"),
    "version 5": (with_word(good(), 20, 5), r"byte 20: EVIO version 5 is not known"),
    "versions mixed": (with_word(good(), 64, 3), r"byte 64: block of EVIO version 3 in a file of 4"),
    "too many events": (with_word(good(), 56, 900), r"byte 56: 900 events can't be in a block of 12 words"),
    "event too long": (with_word(good(), 32, 99), r"byte 32: an event's length reaches beyond its block"),
    "two files in one": (good() + block(4, [], info=1 << 9) + good(), r"byte 172: the file goes on behind its last"),
    "only a trailer": (block(1, [], info=1 << 9), r"byte 0: no block holds an event"),
    "only run control": (block(1, [bank(0x70, [1])]), r"byte 0: block 0 holds run control only"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_file_is_one_line_that_names_file_byte_and_fault(folder: Path, kind: str) -> None:
    data, words = BAD_FILES[kind]
    path = folder / NAME
    path.write_bytes(data)
    with pytest.raises(EvioError, match=words) as caught:
        read_index(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_version_word_is_masked_as_real_files_need_it(folder: Path) -> None:
    path = folder / NAME
    path.write_bytes(with_word(good(), 20, 0x60004))
    assert read_index(path).nblocks == 3


def test_unreadable_files_are_named(folder: Path) -> None:
    with pytest.raises(EvioError, match=r"none\.evio: No such file"):
        read_index(folder / "none.evio")
    (folder / "folder.evio").mkdir()
    with pytest.raises(EvioError, match=r"folder\.evio: "):
        read_index(folder / "folder.evio")
    os.mkfifo(folder / "pipe.evio")
    with pytest.raises(EvioError, match=r"pipe\.evio: "):
        read_index(folder / "pipe.evio")  # and it does not wait for a writer


def test_walk_goes_on_behind_a_bad_file(folder: Path) -> None:
    for seqno, data in enumerate((bytes(good()), b"", bytes(good()))):
        (folder / f"hd_rawdata_000002_{seqno:03d}.evio").write_bytes(data)
    found = list(scan.indexes(scan.find(folder)))
    assert [isinstance(index, EvioError) for index in found] == [False, True, False]


def test_only_whole_names_are_raw_data_files(folder: Path) -> None:
    (folder / "b").mkdir()
    (folder / "a").mkdir()
    for name in (
        "b/hd_rawdata_000002_000.evio",
        "a/hd_rawdata_000001_010.evio",
        "a/hd_rawdata_000001_002.evio",
    ):
        (folder / name).touch()
    for name in (
        "hd_rawdata_000001_000.evio.tmp",
        "hd_rawdata_1_000.evio",
        "x_hd_rawdata_000001_000.evio",
        "y",
    ):
        (folder / name).touch()
    names = [str(Path(path).relative_to(folder)) for path in scan.find(folder)]
    assert names == [
        "a/hd_rawdata_000001_002.evio",
        "a/hd_rawdata_000001_010.evio",
        "b/hd_rawdata_000002_000.evio",
    ]
    assert parse_name("/x/hd_rawdata_071234_123.evio") == (71234, 123)
    with pytest.raises(EvioError, match=r"the name is not hd_rawdata_RRRRRR_SSS\.evio"):
        parse_name("/x/hd_rawdata_071234_123.evio.tmp")
    with pytest.raises(EvioError, match="No such file"):
        scan.find(folder / "none")


def test_same_run_and_seqno_in_two_folders_are_two_files(world: World, folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / NAME).write_bytes(good())
    results = [register(world.db, index)[0] for index in scan.indexes(scan.find(folder))]
    assert results == ["new", "new"]


def test_second_load_verifies_and_names_each_difference(world: World, folder: Path) -> None:
    path = folder / NAME
    write_file(path, 3, 2)
    assert register(world.db, read_index(path))[0] == "new"
    assert register(world.db, read_index(path))[0] == "same"
    before = world.db.execute("SELECT block_index FROM osgprod_data.rawdata").fetchall()
    write_file(path, 4, 2)
    status, what = register(world.db, read_index(path))
    assert status == "differs"
    assert "nblocks: known 4, found 5" in what and "size_bytes: known " in what
    assert world.db.execute("SELECT block_index FROM osgprod_data.rawdata").fetchall() == before, (
        "nothing is lost"
    )
    write_file(path, 3, 2)
    for column, other in (("byte_order", "little"), ("last_has_bit", "true"), ("trailer", "\\x" + "00" * 32)):
        with world.db.transaction(
            force_rollback=True
        ):  # what slices are made with, though all offsets are the same
            world.db.execute(f"UPDATE osgprod_data.rawdata SET {column} = %s".encode(), [other])
            status, what = register(world.db, read_index(path))
            assert status == "differs" and f"{column}: known " in what


@pytest.mark.skipif(not REAL_FILES.is_dir(), reason="no real EVIO files: REAL_EVIO_FILES")
def test_real_files_are_indexed_and_sliced(world: World, folder: Path) -> None:
    index = read_index(REAL_FILES / "rawdata_001068_10evt.evio")
    assert (index.size_bytes, index.byte_order, index.has_trailer) == (457592, "little", True)
    assert (index.nblocks, index.first_block) == (10, 2)  # blocks 0 and 1 are prestart and go
    other = read_index(REAL_FILES / "clib5.3_split1_LE.evio")
    assert other.offsets[-1] <= other.size_bytes
    for number, name in enumerate(("rawdata_001068_10evt.evio", "clib5.3_split1_LE.evio")):
        copy = folder / f"hd_rawdata_000001_{number:03d}.evio"
        copy.write_bytes((REAL_FILES / name).read_bytes())
    for found in scan.indexes(scan.find(folder)):
        assert register(world.db, found)[0] == "new"
