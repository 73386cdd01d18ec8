"""Readers of EVIO 4 and 6 files for the tests, written from the format's documentation.

They share no code with the product. That of version 4 is as strict as the strictest of the known readers
(docs/evio.md), so that a slice it accepts is accepted by all.
"""

from __future__ import annotations

import struct
import zlib
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
                raise Unreadable(f"an empty block at {at} that is not a trailer: C and HDEVIO stop there")
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


def read_records(data: bytes) -> tuple[bytes, list[Event]]:
    """Return the user header and all events of a slice of version 6, uncompressed or packed by gzip.

    Raises
    ------
    Unreadable
        The file header is not that of a slice, or a record is cut, empty, or holds other events than it counts.
    """
    order = {b"\xc0\xda\x01\0": ">", b"\0\x01\xda\xc0": "<"}.get(data[28:32])
    if order is None or len(data) < 56:
        raise Unreadable("no file header")
    (name, _, size, count, index, info, user, _, _, trailer, _, _) = struct.unpack_from(
        order + "8IQQ2I", data
    )
    if (name, size, count, index, info & 0xFF, trailer) != (0x4556494F, 14, 0, 0, 6, 0) or info & 1 << 10:
        raise Unreadable("not the file header of a file without trailer and index")
    at = 56 + (user + 3) // 4 * 4
    user_header, found = data[56:at], []
    while at < len(data):
        if at + 56 > len(data):
            raise Unreadable(f"half a record header at {at}")
        words = struct.unpack_from(order + "14I", data, at)
        length, _, size, count, index, info, user, magic, unpacked, packed = words[:10]
        end = at + 4 * length
        if (
            magic != MAGIC
            or size != 14
            or info & 0xFF != 6
            or info >> 28
            or end > len(data)
            or index != 4 * count
        ):
            raise Unreadable(f"no whole record at {at}")
        if not count:
            raise Unreadable(f"a record without events at {at}")
        content = data[at + 56 : end]
        if packed >> 28 == 3:
            if 4 * (packed & 0xFFFFFFF) != len(content):
                raise Unreadable(f"wrong length of packed data at {at}")
            content = zlib.decompressobj(31).decompress(content)
        elif packed:
            raise Unreadable(f"unknown compression at {at}")
        position = index + (user + 3) // 4 * 4
        if len(content) - position != (unpacked + 3) // 4 * 4:
            raise Unreadable(f"wrong length of data at {at}")
        for size in struct.unpack_from(f"{order}{count}I", content):
            words_, head = struct.unpack_from(order + "2I", content, position)
            if size != 4 * (words_ + 1):
                raise Unreadable(f"an event of the record at {at} is not as long as the index says")
            found.append(
                Event(head >> 16, struct.unpack_from(f"{order}{words_ - 1}I", content, position + 8))
            )
            position += size
        if position != len(content):
            raise Unreadable(f"the record at {at} holds more than its {count} events")
        at = end
    return user_header, found


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
