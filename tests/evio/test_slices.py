"""A slice of any file that a DAQ wrote is a file that every known reader reads whole, with the begin-of-run record in
front, and each physics event of the file is in exactly one slice."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import strategies as st

from shim.evio.errors import EvioError
from shim.evio.index import read_index
from shim.evio.writer import ByteOrder, bank, block
from tests.evio.cutting import registered, slices_at, slices_by_checkout
from tests.evio.reader import begins_with_run, physics, read_events
from tests.examples import given, settings
from tests.support import World

NAME = "hd_rawdata_000001_000.evio"
LAST, DICTIONARY = 1 << 9, bank(0x0E, [0x3C786D6C, 0x2F3E0A0A])
BOR = bank(0x70, [1, 2])
PRESTART, GO, END, EPICS = (
    bank(0xFFD1, [1, 2, 3]),
    bank(0xFFD2, [1, 2, 3]),
    bank(0xFFD4, [1, 2, 3]),
    bank(0x60, [9]),
)
ODD = bank(0x1234, [7])


def event(n: int, tag: int = 0xFF50) -> bytes:
    return bank(tag, [n] + [7] * 12)


def trailer(n: int) -> bytes:
    return block(n, [], info=LAST)


# name: (blocks of the file, events of it)
FILES = {
    "CODA, file 001": ([block(1, [BOR]), block(2, [event(1)]), block(3, [event(2)]), trailer(4)], 2),
    "CODA, file 000": (
        [block(1, [PRESTART]), block(2, [BOR, event(1)]), block(3, [event(2)]), trailer(4)],
        2,
    ),
    "CDAQ": (
        [
            block(1, [bank(0xFF32, [1, 2])]),
            block(2, [event(1, 0xFF33)]),
            block(3, [event(2, 0xFF33)]),
            trailer(4),
        ],
        2,
    ),
    "an EPICS event between prestart and record": (
        [
            block(1, [PRESTART]),
            block(2, [EPICS]),
            block(3, [BOR, GO, event(1)]),
            block(4, [event(2)]),
            trailer(5),
        ],
        2,
    ),
    "record second in block 1": (
        [block(1, [PRESTART]), block(2, [EPICS, BOR, event(1)]), block(3, [event(2)]), trailer(4)],
        2,
    ),
    "record behind go": (
        [
            block(1, [PRESTART]),
            block(2, [GO]),
            block(3, [BOR]),
            block(4, [event(1)]),
            block(5, [event(2)]),
            trailer(6),
        ],
        2,
    ),
    "record behind an unknown event": (
        [block(1, [ODD]), block(2, [BOR, event(1)]), block(3, [event(2)]), trailer(4)],
        2,
    ),
    "record between unknown events": (
        [block(1, [PRESTART, ODD, BOR, ODD]), block(2, [event(1)]), block(3, [event(2)]), trailer(4)],
        2,
    ),
    "record and physics in block 0": ([block(1, [BOR, event(1)]), block(2, [event(2)]), trailer(3)], 2),
    "everything before it in block 0": (
        [block(1, [ODD, BOR, ODD, GO, event(1)]), block(2, [event(2)]), trailer(3)],
        2,
    ),
    "an empty block in the middle": (
        [block(1, [BOR]), block(2, [event(1)]), block(3, []), block(4, [event(2)]), trailer(5)],
        2,
    ),
    "empty blocks everywhere": (
        [
            *(block(1, []), block(2, [BOR]), block(3, []), block(4, []), block(5, [event(1)]), block(6, [])),
            *(
                block(7, []),
                block(8, [event(2)]),
                block(9, [event(3)]),
                block(10, []),
                trailer(11),
                trailer(12),
            ),
        ],
        3,
    ),
    "last data block with the last-block bit": (
        [block(1, [BOR]), block(2, [event(1)]), block(3, [event(2)], info=LAST)],
        2,
    ),
    "the same with a trailer": (
        [block(1, [BOR]), block(2, [event(1)]), block(3, [event(2)], info=LAST), trailer(4)],
        2,
    ),
    "no trailer and no bit": ([block(1, [BOR]), block(2, [event(1)]), block(3, [event(2)])], 2),
    "dictionary in front of the record": (
        [block(1, [BOR], dictionary=DICTIONARY), block(2, [event(1)]), block(3, [event(2)]), trailer(4)],
        2,
    ),
    "dictionary in front of prestart": (
        [
            block(1, [PRESTART], dictionary=DICTIONARY),
            block(2, [BOR, event(1)]),
            block(3, [event(2)]),
            trailer(4),
        ],
        2,
    ),
    "dictionary alone in a block": (
        [
            block(1, [], dictionary=DICTIONARY),
            block(2, [BOR]),
            block(3, [event(1)]),
            block(4, [event(2)]),
            trailer(5),
        ],
        2,
    ),
}


@pytest.mark.parametrize("blocks", [1, pytest.param(2, marks=pytest.mark.slow), 100])
@pytest.mark.parametrize("kind", FILES)
def test_every_slice_is_read_whole_and_begins_with_the_record(
    world: World, folder: Path, kind: str, blocks: int
) -> None:
    parts, count = FILES[kind]
    (folder / NAME).write_bytes(b"".join(parts))
    slices = [read_events(content) for content in slices_by_checkout(world, folder / NAME, blocks)]
    assert all(begins_with_run(events) for events in slices)
    assert all(physics(events) for events in slices), "no slice is without work"
    assert [n for events in slices for n in physics(events)] == list(range(1, count + 1))
    odd = sum(part.count(ODD) for part in parts)
    assert sum(e.tag == 0x1234 for events in slices for e in events) == odd, (
        "unknown events are never repeated"
    )


@dataclass(frozen=True)
class Layout:
    """A random file: its bytes, and how many physics events it holds."""

    data: bytes
    count: int


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Any order of control events, the record before physics, empty blocks and blocks of any size."""
    order: ByteOrder = draw(st.sampled_from(["big", "little"]))
    tag, record = draw(st.sampled_from([(0xFF50, 0x70), (0xFF78, 0x70), (0xFF33, 0xFF32)]))
    count = draw(st.integers(1, 12))
    control = [bank(t, [5] * draw(st.integers(0, 3)), order) for t in (0xFFD0, 0xFFD1, 0xFFD2, 0xFFD3, 0x60)]
    odd = bank(0x1234, [7], order)
    some = st.lists(st.sampled_from([*control, odd]), max_size=4)
    head = [*draw(some), bank(record, [1, 2], order), *draw(some)]
    body = []
    for n in range(1, count + 1):
        body.append(bank(tag, [n] + [7] * draw(st.integers(0, 30)), order))
        body += draw(st.sampled_from([[], [], [], [control[4]], [control[0]]]))
    events, blocks, number = head + body, [], 1
    while events:
        size = draw(st.sampled_from([1, 2, 0, 3, 5]))  # 0: a writer's flush
        dictionary = DICTIONARY_OF[order] if not blocks and size and not draw(st.integers(0, 3)) else b""
        if dictionary and any(has_tag(e, tag, order) for e in events[:size]):
            dictionary = b""  # physics behind a dictionary in block 0 stays as the writer wrote it
        blocks.append((number, events[:size], dictionary))
        events, number = events[size:], number + 1
    ends = draw(st.integers(0, 3))  # empty blocks at the end
    marked = draw(st.booleans())
    content = [
        block(n, banks, order, LAST if marked and n == number - 1 and banks else 0, dictionary)
        for n, banks, dictionary in blocks
    ]
    content += [
        block(number + n, [], order, LAST if n == ends - 1 and draw(st.booleans()) else 0)
        for n in range(ends)
    ]
    return Layout(b"".join(content), count)


DICTIONARY_OF = {order: bank(0x0E, [0x3C786D6C, 0x2F3E0A0A], order) for order in ("big", "little")}


def has_tag(data: bytes, tag: int, order: ByteOrder) -> bool:
    return int.from_bytes(data[4:8], order) >> 16 == tag


@settings(
    max_examples=50,
)
@given(layout=layouts(), cuts=st.lists(st.integers(0, 30), max_size=6))
def test_any_cut_of_any_file_has_each_physics_event_once(
    world: World, folder: Path, layout: Layout, cuts: list[int]
) -> None:
    path = folder / NAME
    path.write_bytes(layout.data)
    with world.db.transaction(force_rollback=True):
        seen = []
        for content, expected in slices_at(world, path, cuts):
            events = read_events(content)
            assert begins_with_run(events)
            assert len(events) == expected, "the server knows how many events a slice holds"
            seen += physics(events)
        assert seen == list(range(1, layout.count + 1))


def test_file_without_the_record_is_known_as_such(world: World, folder: Path) -> None:
    (folder / NAME).write_bytes(block(1, [PRESTART]) + block(2, [event(1)]) + trailer(3))
    assert not registered(world, folder / NAME)["has_bor"]
    (folder / NAME).write_bytes(block(1, [PRESTART]) + block(2, [event(1), BOR]) + trailer(3))
    assert not read_index(folder / NAME).has_bor, "behind physics it comes too late"
    (folder / NAME).write_bytes(block(1, [BOR]) + block(2, [event(1)]) + trailer(3))
    assert read_index(folder / NAME).has_bor


def test_search_for_the_record_ends_in_a_file_of_another_experiment(folder: Path) -> None:
    parts = [block(n, [bank(1, [n])]) for n in range(1, 2000)]
    (folder / NAME).write_bytes(b"".join(parts))
    index = read_index(folder / NAME)
    assert (index.first_block, index.nblocks, index.preamble, index.has_bor) == (0, 1999, [], False)


def test_count_of_0_in_a_block_with_events_is_no_empty_block(folder: Path) -> None:
    wrong = bytearray(block(2, [event(1)]))
    wrong[12:16] = struct.pack(">I", 0)
    (folder / NAME).write_bytes(block(1, [BOR]) + wrong + block(3, [event(2)]) + trailer(4))
    with pytest.raises(EvioError, match=r"byte 60: 0 events are counted in a block of 23 words"):
        read_index(folder / NAME)


def test_headers_longer_than_8_words_are_refused_with_the_readers_that_would_lose_events(
    folder: Path,
) -> None:
    long = bytearray(block(2, [event(1)]))
    long[8:12] = struct.pack(">I", 10)
    (folder / NAME).write_bytes(block(1, [BOR]) + long + trailer(3))
    with pytest.raises(
        EvioError, match=r"header of 10 words instead of 8: GlueX's reader fails, C evio 6 reads no"
    ):
        read_index(folder / NAME)


@pytest.mark.parametrize("order", ["big", "little"])
def test_hipo_files_are_named(folder: Path, order: ByteOrder) -> None:
    (folder / NAME).write_bytes((0x43455248).to_bytes(4, order) + bytes(100))
    with pytest.raises(EvioError, match="byte 0: a HIPO file, not an EVIO file"):
        read_index(folder / NAME)
