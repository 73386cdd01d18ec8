"""Walks the banks of all blocks: is the event count of each block header true?

A count that is too low loses events in every reader. One that is too high makes GlueX's reader hang.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from shim.evio.errors import EvioError
from shim.evio.source import Source
from shim.words import counted

HEADER_BYTES = 32
DICTIONARY_BIT = 1 << 8
CHUNK_BYTES = 4 << 20
SMALL_CHUNK_BYTES = 4 << 10  # where events are so long that most of a chunk would be read for nothing
LONG_EVENT_BYTES = 256 << 10


def check_counts(source: Source, byte_order: str, begins: Sequence[int], version: int = 4) -> None:
    """Walk the banks of every block of an indexed file; compressed records of version 6 are left out.

    Parameters
    ----------
    source
        The file, open.
    byte_order
        big or little.
    begins
        Where each block with events begins [bytes].
    version
        Of the format, 4 or 6.

    Raises
    ------
    EvioError
        A block holds more or fewer events than its header counts: names the file and the byte.
    """
    order = "<" if byte_order == "little" else ">"
    word, header = struct.Struct(order + "I").unpack_from, struct.Struct(order + "8I").unpack_from
    data, begin, end = b"", 0, 0  # a piece of the file, and where it is

    def fail(offset: int, what: str) -> EvioError:
        return EvioError(f"{source.name}: byte {offset}: {what}")

    def load(offset: int, least: int, chunk: int) -> None:
        nonlocal data, begin, end
        data = source.read(offset, max(least, chunk))
        begin, end = offset, offset + len(data)
        if len(data) < least:
            raise fail(end, "the file became shorter while it was read")

    for at in begins:
        if not begin <= at <= end - HEADER_BYTES:
            load(at, HEADER_BYTES, CHUNK_BYTES)
        length, _, header_words, count, index_bytes, info, user_bytes, _ = header(data, at - begin)
        block_end = at + 4 * length
        chunk = SMALL_CHUNK_BYTES if 4 * length > count * LONG_EVENT_BYTES else CHUNK_BYTES
        position, banks = at + HEADER_BYTES, count + bool(info & DICTIONARY_BIT)
        if version == 6:
            if not begin <= at <= end - 40:
                load(at, 40, chunk)
            if word(data, at + 36 - begin)[0] >> 28:  # compressed
                continue
            position, banks = at + 4 * header_words + index_bytes + user_bytes + -user_bytes % 4, count
        for number in range(banks):
            if position + 8 > block_end:
                raise fail(at + 12, _miscounted(count, f"that holds {number - banks + count}"))
            if not begin <= position <= end - 4:
                load(position, 4, chunk)
            (words,) = word(data, position - begin)
            if not words or position + 4 * (words + 1) > block_end:
                raise fail(position, "an event's length reaches beyond its block")
            position += 4 * (words + 1)
        if position != block_end:
            raise fail(at + 12, _miscounted(count, f"with more: {block_end - position} bytes follow"))


def _miscounted(count: int, block: str) -> str:
    return f"{counted(count, 'event is', 'events are')} counted in a block {block}"
