"""Files of EVIO 6: each slice is a separate file, with the file's user header, and holds each event exactly once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import strategies as st

from shim.evio.errors import EvioError
from shim.evio.index import read_index
from shim.evio.source import LocalFile
from shim.evio.writer import ByteOrder, bank, file_of_records, record
from tests.evio.cutting import registered, slices_at, slices_by_checkout, with_word
from tests.evio.reader import physics, read_records
from tests.evio.test_remote import Server
from tests.examples import given, settings
from tests.support import World
from tests.worker.fetching import NODE_FAULT
from tests.worker.fetching import call as bash

NAME = "hd_rawdata_000001_000.evio"
DICTIONARY = b"<xmlDict></xmlDict>\n\n\n"  # its length is not a multiple of 4: the first event behind it is not aligned
CHECK = 'osgprod_source_url=u; size_of slice; check_slice slice "$size_of" "$1" && echo good || not_fetched "$damage"'
ORDERS: tuple[ByteOrder, ...] = ("big", "little")
LAST = 1 << 9


def event(n: int, order: ByteOrder = "big", words: int = 12) -> bytes:
    return bank(0xFF50, [n] + [7] * words, order)


def first_event(order: ByteOrder = "big", tag: int = 0x70) -> bytes:
    return bank(tag, [1, 2], order)


def small_file(order: ByteOrder = "big", *, is_compressed: bool = False, user_header: bool = True) -> bytes:
    """A file of 9 events in 3 records."""
    records = [
        record(n, [event(3 * n - k, order) for k in (2, 1, 0)], order, is_compressed=is_compressed)
        for n in (1, 2, 3)
    ]
    first = first_event(order) if user_header else b""
    return file_of_records(records, order, dictionary=DICTIONARY if user_header else b"", first_event=first)


def is_accepted(folder: Path, content: bytes, events: int) -> tuple[bool, str]:
    """Does the work script accept the slice? And what it logs."""
    (folder / "slice").write_bytes(content)
    code, output, log = bash(CHECK, str(events), cwd=folder)
    assert code == (0 if output == "good\n" else NODE_FAULT), log
    return code == 0, log


@dataclass(frozen=True)
class Layout:
    """A random file: its bytes, how many events it holds, and what its user header has to hold."""

    data: bytes
    count: int
    user_parts: list[bytes]


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Records of any size, empty ones among them, some packed; any user header; with and without a trailer."""
    order = draw(st.sampled_from(ORDERS))
    count, records, number = draw(st.integers(1, 12)), [], 1
    sizes = draw(st.lists(st.sampled_from([0, 1, 2, 3, 5]), max_size=8))
    while number <= count:
        size = sizes.pop() if sizes else 4
        numbers = range(number, min(number + size, count + 1))
        events = [event(n, order, draw(st.integers(0, 30))) for n in numbers]
        packed = bool(events) and draw(st.booleans())
        records.append(record(len(records) + 1, events, order, is_compressed=packed))
        number += len(numbers)
    dictionary = draw(st.sampled_from([b"", DICTIONARY]))
    first = draw(st.sampled_from([b"", first_event(order)]))
    trailer = draw(st.booleans())
    data = file_of_records(records, order, dictionary=dictionary, first_event=first, trailer=trailer)
    return Layout(data, count, [dictionary, first])


@settings(max_examples=20)
@given(layout=layouts(), cuts=st.lists(st.integers(0, 12), max_size=3))
def test_any_cut_of_any_file_has_each_event_once_and_passes_the_jobs_check(
    world: World, folder: Path, layout: Layout, cuts: list[int]
) -> None:
    path = folder / NAME
    path.write_bytes(layout.data)
    with world.db.transaction(force_rollback=True):
        seen = []
        assert registered(world, path)["has_bor"] == bool(layout.user_parts[1])
        for content, expected in slices_at(world, path, cuts):
            user_header, events = read_records(content)
            assert all(part in user_header for part in layout.user_parts)
            assert len(events) == expected, "the server knows how many events a slice holds"
            assert is_accepted(folder, content, expected) == (True, "")
            seen += physics(events)
        assert seen == list(range(1, layout.count + 1))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("blocks", [1, 2, 100])
def test_slices_that_jobs_get_hold_each_event_once(
    world: World, folder: Path, order: ByteOrder, blocks: int
) -> None:
    (folder / NAME).write_bytes(small_file(order, is_compressed=True))
    seen = []
    for content in slices_by_checkout(world, folder / NAME, blocks):
        user_header, events = read_records(content)
        assert DICTIONARY + first_event(order) in user_header
        seen += physics(events)
    assert seen == list(range(1, 10))
    row = registered(world, folder / NAME)
    assert (row["evio_version"], row["nblocks"], row["first_block"], row["has_trailer"]) == (6, 3, 0, True)


def test_first_event_of_another_tag_is_no_begin_of_run_record(folder: Path) -> None:
    records = [record(1, [event(1)])]
    (folder / NAME).write_bytes(file_of_records(records, first_event=first_event(tag=0x60)))
    assert not read_index(folder / NAME).has_bor


@pytest.mark.parametrize("dictionary", [b"", DICTIONARY])
def test_of_a_large_user_header_only_the_tag_is_read(
    folder: Path, dictionary: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = bank(0x70, [0] * 1_000_000, "big")
    (folder / NAME).write_bytes(
        file_of_records([record(1, [event(1)])], dictionary=dictionary, first_event=large)
    )
    lengths, read = [], LocalFile.read

    def counted(file: LocalFile, offset: int, length: int) -> bytes:
        lengths.append(length)
        return read(file, offset, length)

    monkeypatch.setattr(LocalFile, "read", counted)
    assert read_index(folder / NAME).has_bor
    assert sum(lengths) < 1_000_000


@pytest.mark.parametrize(
    ("order", "user_header"),
    [("big", True), ("little", False)]
    + [pytest.param(*which, marks=pytest.mark.slow) for which in (("big", False), ("little", True))],
)
def test_jobs_check_finds_each_damaged_header(
    world: World, folder: Path, order: ByteOrder, user_header: bool
) -> None:
    (folder / NAME).write_bytes(small_file(order, user_header=user_header))
    ((whole, expected),) = slices_at(world, folder / NAME, [])
    assert (is_accepted(folder, whole, expected), expected) == ((True, ""), 9)
    start = read_index(folder / NAME).offsets[0]
    length = 4 * int.from_bytes(whole[start : start + 4], order)
    for at in (0, start, start + length):
        for word in (0, 2, 3, 5, 7):  # length or name, length of the header, events, version, magic
            for damage in (bytes(4), b"\xff" * 4):
                place = at + 4 * word
                if whole[place : place + 4] != damage:
                    damaged = whole[:place] + damage + whole[place + 4 :]
                    accepted, log = is_accepted(folder, damaged, expected)
                    assert not accepted, (at, word)
                    assert "wrong bytes came" in log
    assert not is_accepted(folder, whole[:-4], expected)[0]
    assert not is_accepted(folder, whole + bytes(4), expected)[0]
    assert not is_accepted(folder, whole, expected + 1)[0]


def bare() -> bytes:
    """A file of two records from bytes 56 and 136, of one event each, and a trailer from byte 216."""
    return file_of_records([record(n, [event(n, words=2)]) for n in (1, 2)])


BROKEN = {
    "cut in the file header": (bare()[:50], "byte 0: 50 bytes are less than a file header"),
    "no file header": (
        bare()[56:],
        "byte 0: first word 00000014: a file of EVIO 6 begins with a file header",
    ),
    "long file header": (with_word(bare(), 8, 16), "byte 8: file header of 16 words instead of 14"),
    "user header behind the end": (
        with_word(bare(), 24, 9999),
        "byte 16: index of 0 and user header of 9999",
    ),
    "no record": (bare()[:56], "byte 56: no record follows the file header"),
    "no event": (file_of_records([]), "byte 0: no block holds an event"),
    "no first event": (
        with_word(bare(), 20, 0x10000606),
        "byte 56: the file header promises a first event, its user header has none",
    ),
    "first event that is none": (
        with_word(file_of_records([record(1, [event(1)])], dictionary=DICTIONARY), 20, 0x10000706),
        "byte 56: the user header of the file is not a record with a first event",
    ),
    "cut in a record": (bare()[:180], "byte 136: block of 80 bytes ends 36 bytes behind the file"),
    "cut in a record header": (bare()[:150], "byte 136: 14 bytes behind the last block are no block header"),
    "wrong magic": (with_word(bare(), 136 + 28, 1), "byte 164: magic word 00000001 where a block header"),
    "header of a block": (with_word(bare(), 136 + 8, 8), "byte 144: record header of 8 words instead of 14"),
    "version 4 inside": (with_word(bare(), 136 + 20, 4), "byte 156: block of EVIO version 4 in a file of 6"),
    "wrong count": (
        with_word(bare(), 136 + 12, 2),
        "byte 148: 2 events in a record of 20 words with an index of 4",
    ),
    "count of 0": (
        with_word(bare(), 136 + 12, 0),
        "byte 148: 0 events in a record of 20 words with an index of 4",
    ),
    "length of 0": (with_word(bare(), 136, 0), "byte 136: block length 0 words is less than its header"),
    "two files in one": (bare() + bare()[56:136], "byte 288: the file goes on behind its last block"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_file_is_refused_with_one_line_that_names_the_byte(folder: Path, kind: str) -> None:
    data, message = BROKEN[kind]
    (folder / NAME).write_bytes(data)
    with pytest.raises(EvioError, match=message) as caught:
        read_index(folder / NAME, is_deep=True)
    assert "\n" not in str(caught.value)


def test_deep_walk_counts_the_banks_of_records_that_are_not_compressed(folder: Path) -> None:
    (folder / NAME).write_bytes(small_file())
    read_index(folder / NAME, is_deep=True)
    (folder / NAME).write_bytes(small_file(is_compressed=True))
    read_index(folder / NAME, is_deep=True)
    two = record(1, [event(1, words=2) + event(2, words=2)])  # one, says the header
    (folder / NAME).write_bytes(file_of_records([two]))
    assert read_index(folder / NAME).nblocks == 1
    with pytest.raises(EvioError, match=r"byte 68: 1 event is counted in a block with more: 20 bytes follow"):
        read_index(folder / NAME, is_deep=True)


def test_index_over_http_is_that_of_the_file(folder: Path) -> None:
    records = [record(n, [event(n, words=5000), event(n, words=n)]) for n in range(1, 301)]
    (folder / NAME).write_bytes(file_of_records(records, first_event=first_event()))
    with Server(folder).running() as server:
        there, here = read_index(f"{server.url}/{NAME}"), read_index(folder / NAME)
    assert replace(there, path=here.path) == here
    assert (here.nblocks, here.version) == (300, 6)
    assert server.requests < 1.2 * here.nblocks and server.most_at_once >= 2
