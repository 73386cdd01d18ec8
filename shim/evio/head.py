"""The events before the first physics event of a file, with which each slice begins.

A slice needs the begin-of-run record, wherever it stands before the first physics event: alone in block 0, behind
EPICS events in a later block, or in the block of the first physics event. Events of run control may be repeated in each
slice. All other events are work: each is in exactly one slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise

from shim.evio.tags import BEGIN_OF_RUN, CONTROL, PHYSICS

# The walk ends after so many events of tags that are neither physics nor run control: they are another experiment's.
MAX_UNKNOWN_EVENTS = 256
MAX_CONTROL_EVENTS = 100_000
HEADER_BYTES = 32

Piece = dict[str, int | str]


@dataclass(frozen=True)
class Event:
    """One event: its block (index), its range in the file [bytes, exclusive end], its tag."""

    block: int
    begin: int
    end: int
    tag: int

    @property
    def is_control(self) -> bool:
        """May it be repeated in each slice?"""
        return self.tag in CONTROL


@dataclass(frozen=True)
class Head:
    """The first block that is work, what slices begin with, and whether the begin-of-run record is among it."""

    first_block: int
    pieces: list[Piece]
    has_bor: bool


class TooManyControlEvents(Exception):
    """More than MAX_CONTROL_EVENTS before any other event. Arguments: the last event, and how many may be there."""


def read_head(
    nblocks: int,
    events_of: Callable[[int], Iterator[Event]],
    body_of: Callable[[int], tuple[int, int, int]],
    header_of: Callable[[int, int, int], bytes],
) -> Head | None:
    """Walk the events up to the first physics event, and work out what slices begin with.

    Parameters
    ----------
    nblocks
        Blocks of the file that hold events.
    events_of
        Gives the events of a block (index), the dictionary left out.
    body_of
        Gives where a block begins, where its events begin and where it ends [bytes]: a dictionary stands between the
        first two, apart from the header.
    header_of
        Makes a block header from that of a block (index), for so many bytes of events and so many events.

    Returns
    -------
    Head | None
        None if the file has one block only, and that is run control.

    Raises
    ------
    TooManyControlEvents
        The walk found no end.
    """
    control, others, first = _walk(nblocks, events_of)
    if first is None and others:
        first = others[0]  # no physics is found: events of unknown tags are the work
        control = [event for event in control if event.begin < first.begin]
        others = []
    if first is None and nblocks == 1:
        return None
    # A file of nothing but run control: block 0 is repeated, the others are work.
    first_block = 1 if first is None else first.block
    if first is None:
        control = [e for e in control if e.block == 0 or (e.block == 1 and e.tag in BEGIN_OF_RUN)]
    pieces: list[Piece] = []
    mixed = {event.block for event in others}
    for block in range(first_block):
        begin, events_begin, end = body_of(block)
        events = [event for event in control if event.block == block]
        # The slice with the first physics event gets all that stands before it. An event of unknown tag is in no other.
        span: Piece = {"from_block": first_block}
        if block in mixed:
            span["until_block"] = first_block
        count = len(events) + sum(event.block == block for event in others)
        if begin + HEADER_BYTES == events_begin:
            _append(pieces, {**span, "offset": begin, "bytes": end - begin, "events": count})
        else:  # without the dictionary
            pieces.append({**span, "hex": header_of(block, end - events_begin, count).hex(), "events": 0})
            pieces.append({**span, "offset": events_begin, "bytes": end - events_begin, "events": count})
        if block in mixed:
            pieces += _extract(block, first_block + 1, events, header_of)
    pieces += _extract(
        first_block, first_block + 1, [e for e in control if e.block == first_block], header_of
    )
    return Head(first_block, pieces, any(event.tag in BEGIN_OF_RUN for event in control))


def _walk(
    nblocks: int, events_of: Callable[[int], Iterator[Event]]
) -> tuple[list[Event], list[Event], Event | None]:
    """Return the events of run control and those of unknown tags before the first physics event, and that one."""
    control: list[Event] = []
    others: list[Event] = []
    for block in range(nblocks):
        for event in events_of(block):
            if event.tag in PHYSICS:
                return control, others, event
            (control if event.is_control else others).append(event)
            if len(others) > MAX_UNKNOWN_EVENTS:
                return control, others, None
            if len(control) > MAX_CONTROL_EVENTS:
                raise TooManyControlEvents(event, MAX_CONTROL_EVENTS)
    return control, others, None


def _extract(
    block: int, from_block: int, events: Sequence[Event], header_of: Callable[[int, int, int], bytes]
) -> list[Piece]:
    """Some events of a block as a block of their own: a header with true counts, and their ranges."""
    if not events:
        return []
    size = sum(event.end - event.begin for event in events)
    pieces: list[Piece] = [
        {"from_block": from_block, "hex": header_of(block, size, len(events)).hex(), "events": 0}
    ]
    # Neighbours are one range.
    parts = accumulate((a.end != b.begin for a, b in pairwise(events)), initial=0)
    for _, group in groupby(zip(parts, events, strict=True), key=lambda pair: pair[0]):
        members = [event for _, event in group]
        begin, end = members[0].begin, members[-1].end
        pieces.append(
            {"from_block": from_block, "offset": begin, "bytes": end - begin, "events": len(members)}
        )
    return pieces


def _append(pieces: list[Piece], piece: Piece) -> None:
    """Append a range, or lengthen the last one if that ends where this begins."""
    last = pieces[-1] if pieces else {}
    if (
        "offset" in last
        and int(last["offset"]) + int(last["bytes"]) == piece["offset"]
        and last["from_block"] == piece["from_block"]
        and last.get("until_block") == piece.get("until_block")
    ):
        last["bytes"] = int(last["bytes"]) + int(piece["bytes"])
        last["events"] = int(last["events"]) + int(piece["events"])
    else:
        pieces.append(piece)
