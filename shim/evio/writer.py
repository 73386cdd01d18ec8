"""Writes EVIO 4 and 6 files with numbered physics events, for the demo, the tests and the benchmarks."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from shim.evio.index import (
    DICTIONARY_BIT,
    EVIO,
    FIRST_EVENT_BIT,
    HEADER_WORDS,
    LAST_BLOCK_BIT,
    MAGIC,
    RECORD_HEADER_BYTES,
    RECORD_HEADER_WORDS,
    RECORD_VERSION,
    TRAILER_BIT,
    TRAILER_TYPE,
    VERSION,
)

BEGIN_OF_RUN = 0x70
PHYSICS = 0xFF50
PRESTART = 0xFFD1
GZIP = 3  # compression of a record
EVIO_FILE = 1 << 28
UINT32_BANK = 0x01

ByteOrder = Literal["big", "little"]


def bank(tag: int, payload: Sequence[int], byte_order: ByteOrder = "big") -> bytes:
    """Returns a bank of 32-bit words.

    Parameters
    ----------
    tag : int
        16 bits.
    payload : Sequence[int]
        Words.
    byte_order : ByteOrder
        Of the file.
    """
    words = [len(payload) + 1, tag << 16 | UINT32_BANK << 8, *payload]
    return struct.pack(f"{'<' if byte_order == 'little' else '>'}{len(words)}I", *words)


def block(
    number: int,
    events: Iterable[bytes],
    byte_order: ByteOrder = "big",
    info: int = 0,
    dictionary: bytes = b"",
) -> bytes:
    """Returns a block with true length and event count.

    Parameters
    ----------
    number : int
        From 1.
    events : Iterable[bytes]
        Banks, as bytes.
    info : int
        Bits beside the version, like LAST_BLOCK_BIT.
    dictionary : bytes
        A bank that is put before the events and not counted.
    """
    banks = list(events)
    body = dictionary + b"".join(banks)
    bits = info | VERSION | (DICTIONARY_BIT if dictionary else 0)
    words = (HEADER_WORDS + len(body) // 4, number, HEADER_WORDS, len(banks), 0, bits, 0, MAGIC)
    return struct.pack(f"{'<' if byte_order == 'little' else '>'}8I", *words) + body


def record(
    number: int,
    events: Iterable[bytes],
    byte_order: ByteOrder = "big",
    info: int = 0,
    *,
    is_compressed: bool = False,
) -> bytes:
    """Returns a record of version 6 with true length and event count.

    Parameters
    ----------
    number : int
        From 1.
    events : Iterable[bytes]
        Banks, or for a user header any bytes.
    info : int
        Bits beside the version and the padding.
    is_compressed : bool
        By gzip.
    """
    items = list(events)
    form = "<" if byte_order == "little" else ">"
    index = struct.pack(f"{form}{len(items)}I", *map(len, items))
    body = b"".join(items)
    pad = -len(body) % 4
    content, packed_words, pads = index + body + bytes(pad), 0, pad << 22
    if is_compressed:
        content = gzip.compress(content, mtime=0)
        pads |= -len(content) % 4 << 24
        content += bytes(-len(content) % 4)
        packed_words = GZIP << 28 | len(content) // 4
    words = (RECORD_HEADER_WORDS + len(content) // 4, number, RECORD_HEADER_WORDS, len(items), len(index))
    bits = info | pads | RECORD_VERSION
    return struct.pack(form + "14I", *words, bits, 0, MAGIC, len(body), packed_words, 0, 0, 0, 0) + content


def file_of_records(
    records: Sequence[bytes],
    byte_order: ByteOrder = "big",
    *,
    dictionary: bytes = b"",
    first_event: bytes = b"",
    trailer: bool = True,
) -> bytes:
    """Returns a file of version 6: file header, user header, records, trailer.

    Parameters
    ----------
    records : Sequence[bytes]
        From record().
    dictionary : bytes
        XML.
    first_event : bytes
        A bank: both are in the user header, where not empty.
    trailer : bool
        End with a trailer, which holds length and event count of each record.
    """
    form = "<" if byte_order == "little" else ">"
    parts = [part for part in (dictionary, first_event) if part]
    user_header = record(1, parts, byte_order) if parts else b""
    bits = (
        EVIO_FILE
        | RECORD_VERSION
        | (DICTIONARY_BIT if dictionary else 0)
        | (FIRST_EVENT_BIT if first_event else 0)
    )
    body = user_header + b"".join(records)
    position = RECORD_HEADER_BYTES + len(body) if trailer else 0
    if trailer:
        bits |= TRAILER_BIT
        lengths = [
            struct.unpack_from(form + "I", part, at)[0] * scale
            for part in records
            for at, scale in ((0, 4), (12, 1))
        ]
        words = (
            RECORD_HEADER_WORDS + len(lengths),
            len(records) + 1,
            RECORD_HEADER_WORDS,
            0,
            4 * len(lengths),
        )
        info = TRAILER_TYPE << 28 | LAST_BLOCK_BIT | RECORD_VERSION
        body += struct.pack(form + "14I", *words, info, 0, MAGIC, 0, 0, 0, 0, 0, 0)
        body += struct.pack(f"{form}{len(lengths)}I", *lengths)
    header = (EVIO, 1, RECORD_HEADER_WORDS, len(records), 0, bits, len(user_header), MAGIC)
    return struct.pack(form + "8IQQ2I", *header, 0, position, 0, 0) + body


def write_file(
    path: Path,
    nblocks: int,
    events_per_block: int,
    *,
    first_file: bool = False,
    trailer: bool = True,
    trailer_bit: bool = True,
    byte_order: ByteOrder = "big",
    first_event: int = 1,
    filler_words: int = 20,
    dictionary: bool = False,
) -> int:
    """Writes a raw data file: block 0 with run control, then blocks of numbered physics events.

    Parameters
    ----------
    nblocks : int
        Blocks with physics events [1 ..].
    events_per_block : int
        [1 ..].
    first_file : bool
        File 000 of a run: block 0 is prestart and the begin-of-run record is the first event of block 1;
        else block 0 is the begin-of-run record.
    trailer : bool
        End with an empty block.
    trailer_bit : bool
        It, or else the last block, says last.
    first_event : int
        Number of the first physics event.
    filler_words : int
        Of each event's payload.
    dictionary : bool
        Block 0 begins with a dictionary.

    Returns
    -------
    How many physics events were written.
    """
    begin_of_run = bank(BEGIN_OF_RUN, [0xB02, *range(30)], byte_order)
    head = bank(PRESTART, [1, 2, 3], byte_order) if first_file else begin_of_run
    words = bank(0x0E, [0x3C786D6C], byte_order) if dictionary else b""
    number = first_event
    with path.open("wb") as file:
        file.write(block(1, [head], byte_order, dictionary=words))
        for n in range(nblocks):
            events = [begin_of_run] if first_file and n == 0 else []
            for _ in range(events_per_block):
                filler = [(number * 2654435761 + i) & 0xFFFFFFFF for i in range(filler_words)]
                events.append(bank(PHYSICS, [number, *filler], byte_order))
                number += 1
            is_marked = n == nblocks - 1 and not trailer and trailer_bit
            file.write(block(n + 2, events, byte_order, LAST_BLOCK_BIT if is_marked else 0))
        if trailer:
            file.write(block(nblocks + 2, [], byte_order, LAST_BLOCK_BIT if trailer_bit else 0))
    return number - first_event
