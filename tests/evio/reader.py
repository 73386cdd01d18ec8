"""A reader of EVIO 4 files for the tests, written from the format's documentation; it shares no code with the product.

It is as strict as the strictest of the known readers (docs/evio.md), so that a slice it accepts is accepted by all.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

MAGIC = 0xC0DA0100
BEGIN_OF_RUN = (0x70, 0xFF32)
PHYSICS = (0xFF33, 0xFF50, 0xFF58, 0xFF70, 0xFF78)


class Unreadable(Exception):
    """One of the known readers would not read the file whole."""


@dataclass(frozen=True)
class Event:
    """An event: tag, and the words of its payload."""

    tag: int
    words: tuple[int, ...]


def read_events(data: bytes) -> list[Event]:
    """Return all events of a file.

    Raises
    ------
    Unreadable
        A block is cut, its count is not true, it holds a dictionary or no event, or the file does not end in a trailer.
    """
    if len(data) < 32:
        raise Unreadable("shorter than a block header")
    order = {struct.pack(">I", MAGIC): ">", struct.pack("<I", MAGIC): "<"}.get(data[28:32])
    if order is None:
        raise Unreadable("no magic word")
    found: list[Event] = []
    at, is_last = 0, False
    while at < len(data):
        if at + 32 > len(data):
            raise Unreadable(f"half a block header at {at}")
        length, _, header, count, _, info, _, magic = struct.unpack_from(order + "8I", data, at)
        end = at + 4 * length
        if magic != MAGIC or header != 8 or info & 0xFF != 4 or end > len(data):
            raise Unreadable(f"no whole block at {at}")
        if count == 0:
            if end != len(data) or length != 8 or not info & 1 << 9:
                raise Unreadable(f"an empty block at {at} that is no trailer: C and HDEVIO stop there")
            return found
        if is_last:
            raise Unreadable(f"events behind the last block at {at}")
        if info & 1 << 8:
            raise Unreadable(f"a dictionary at {at}: HDEVIO takes it for an event")
        is_last = bool(info & 1 << 9)
        position = at + 32
        for _ in range(count):
            words, head = struct.unpack_from(order + "2I", data, position)
            if words < 1 or position + 4 * (words + 1) > end:
                raise Unreadable(f"an event at {position} reaches beyond its block: HDEVIO hangs")
            found.append(Event(head >> 16, struct.unpack_from(f"{order}{words - 1}I", data, position + 8)))
            position += 4 * (words + 1)
        if position != end:
            raise Unreadable(f"the block at {at} holds more than its {count} events: they are lost")
        at = end
    raise Unreadable("no trailer: HDEVIO calls it truncated")


def physics(events: list[Event]) -> list[int]:
    """Return the numbers of the physics events, which are the first words of their payloads."""
    return [event.words[0] for event in events if event.tag in PHYSICS]


def begins_with_run(events: list[Event]) -> bool:
    """Does a begin-of-run record stand before the first physics event?"""
    for event in events:
        if event.tag in BEGIN_OF_RUN:
            return True
        if event.tag in PHYSICS:
            return False
    return False
