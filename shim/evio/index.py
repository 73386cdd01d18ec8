"""What is in an EVIO file: its block index. Knows no database.

Source: EVIO 4 format. A block header is 8 words of 32 bits: length in words (header included), block number
(from 1), header length 8, event count, reserved, bit info and version, reserved, magic. Bits of word 6 from
0: 0-7 version, 8 dictionary, 9 last block. A bank header is two words: length in words less 1, then tag (16
bits), type (8), num (8). docs/evio.md says which readers accept the files that slices make of this.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from operator import add, sub
from pathlib import Path
from typing import Literal

HEADER_WORDS = 8
HEADER_BYTES = 4 * HEADER_WORDS
MAGIC = 0xC0DA0100
VERSION_MASK = 0xFF  # real files carry 0x60004
DICTIONARY_BIT = 1 << 8
LAST_BLOCK_BIT = 1 << 9
VERSION = 4

# Far beyond any real file; a damaged one shall not use up the memory.
MAX_BLOCKS = 4_000_000
MAX_CONTROL_EVENTS = 100_000
MAX_EVENTS = 2**32 - 1  # as many as the index can count

BEGIN_OF_RUN = 0x70
# Sync, prestart, go, pause, end; and EPICS. Whatever is not one of these is work and is never repeated.
NOT_WORK = frozenset({BEGIN_OF_RUN, 0x60, 0xFFD0, 0xFFD1, 0xFFD2, 0xFFD3, 0xFFD4})

FILE_NAME = re.compile(r"hd_rawdata_(\d{6})_(\d{3,9})\.evio")


class EvioError(Exception):
    """A file that can't be indexed: one line that names the file, the byte, and what is wrong there."""


@dataclass(frozen=True)
class BlockIndex:
    """Where the blocks of one file are, and what a slice of them needs to be a file of its own.

    nblocks counts data blocks, the trailer not. offsets has nblocks + 1 entries: the start of each block
    [bytes], then the end of the data. events_before has as many: events in all blocks before. first_block is
    0 when block 0 holds work, else 1. preamble lists, in order, the pieces that a slice from from_block on
    begins with: {"from_block", "offset", "bytes", "events"} or {"from_block", "hex", "events"}.
    """

    path: str
    size_bytes: int
    byte_order: Literal["big", "little"]
    nblocks: int
    first_block: int
    has_trailer: bool
    last_has_bit: bool
    trailer: bytes
    offsets: array[int] = field(repr=False)
    events_before: array[int] = field(repr=False)
    preamble: list[dict[str, int | str]]

    def packed(self) -> bytes:
        """Returns the entries as the database keeps them: offset in 64 bits, events in 32, big-endian."""
        offsets, events = self.offsets[:], array("I", self.events_before)
        if sys.byteorder == "little":
            offsets.byteswap()
            events.byteswap()
        halves = array("I", offsets.tobytes())
        words = array("I", bytes(12 * len(offsets)))
        words[0::3], words[1::3], words[2::3] = halves[0::2], halves[1::2], events
        return words.tobytes()


def parse_name(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Returns run and seqno of a raw data file's name.

    Errors: EvioError  the name is not hd_rawdata_RRRRRR_SSS.evio
    """
    match = FILE_NAME.fullmatch(Path(path).name)
    if match is None:
        raise EvioError(f"{path}: the name is not hd_rawdata_RRRRRR_SSS.evio (run, seqno)")
    return int(match[1]), int(match[2])


def find_files(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Walks a tree and gives its raw data files in order; other names are not taken for one.

    Errors: EvioError  the folder can't be read
    """

    def stop(error: OSError) -> None:
        raise EvioError(f"{error.filename}: {error.strerror}") from error

    for parent, folders, names in os.walk(folder, onerror=stop):
        folders.sort()
        for name in sorted(names):
            if FILE_NAME.fullmatch(name):
                yield Path(parent) / name


def read_index(path: str | os.PathLike[str]) -> BlockIndex:
    """Reads the block headers of a file, and the events of its first two blocks as far as needed.

    Parameters: path  an EVIO file of version 4, of either byte order
    Returns:    its block index; the path in it is absolute
    Errors:     EvioError  one line that names file and byte: empty, damaged, cut, or another version
    """
    name = os.path.abspath(path)  # noqa: PTH100  # a link keeps its name: it is the name that workers know
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK)  # not to hang on a pipe of that name
    except OSError as error:
        raise EvioError(f"{name}: {error.strerror}") from error
    try:
        return _Reader(name, descriptor).read()
    except OSError as error:
        raise EvioError(f"{name}: {error.strerror}") from error
    finally:
        os.close(descriptor)


class _Reader:
    """Reads one open file."""

    def __init__(self, name: str, descriptor: int) -> None:
        self._name = name
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size
        self._order: Literal["big", "little"] = "big"
        self._header = struct.Struct(">8I")
        self._length = struct.Struct(">I")

    def read(self) -> BlockIndex:
        self._recognise()
        offsets, events = self._walk()
        has_trailer = len(offsets) > 2 and self._is_trailer(offsets[-2])
        # The trailer is not work. A file without one still ends in a block that is.
        last = self._words(offsets[-3] if has_trailer else offsets[-2])
        if has_trailer:
            offsets.pop()
            events.pop()
        nblocks = len(offsets) - 1
        if events[-1] == 0:
            raise self._error(0, "there is no event in any block")
        if events[-1] > MAX_EVENTS:
            raise self._error(0, f"{events[-1]} events in all its blocks, more than {MAX_EVENTS}")
        first_block, preamble = self._first_blocks(offsets, events)
        trailer = (HEADER_WORDS, nblocks + 1, HEADER_WORDS, 0, 0, LAST_BLOCK_BIT | VERSION, 0, MAGIC)
        return BlockIndex(
            path=self._name,
            size_bytes=self._size,
            byte_order=self._order,
            nblocks=nblocks,
            first_block=first_block,
            has_trailer=has_trailer,
            last_has_bit=bool(last[5] & LAST_BLOCK_BIT),
            trailer=self._header.pack(*trailer),
            offsets=offsets,
            events_before=events,
            preamble=preamble,
        )

    def _error(self, offset: int, what: str) -> EvioError:
        return EvioError(f"{self._name}: byte {offset}: {what}")

    def _recognise(self) -> None:
        if self._size == 0:
            raise self._error(0, "the file is empty")
        if self._size < HEADER_BYTES:
            raise self._error(0, f"{self._size} bytes are less than a block header ({HEADER_BYTES})")
        magic = os.pread(self._descriptor, 4, HEADER_BYTES - 4)
        if magic == MAGIC.to_bytes(4, "little"):
            self._order = "little"
            self._header = struct.Struct("<8I")
            self._length = struct.Struct("<I")
        elif magic != MAGIC.to_bytes(4, "big"):
            raise self._error(HEADER_BYTES - 4, f"magic word {magic.hex()}: not an EVIO file")
        version = self._words(0)[5] & VERSION_MASK
        if version < VERSION:
            raise self._error(20, f"EVIO version {version} can't be sliced by block: events cross blocks")
        if version != VERSION:
            raise self._error(20, f"EVIO version {version} is not supported yet")

    def _words(self, offset: int) -> tuple[int, ...]:
        return self._header.unpack(self._bytes(offset, HEADER_BYTES))

    def _bytes(self, offset: int, length: int) -> bytes:
        data = os.pread(self._descriptor, length, offset)
        if len(data) != length:
            raise self._error(offset + len(data), "the file became shorter while it was read")
        return data

    def _walk(self) -> tuple[array[int], array[int]]:
        """Start of each block, trailer included, then the end; and the events before each."""
        pread, unpack, descriptor, size = os.pread, self._length.unpack_from, self._descriptor, self._size
        headers: list[bytes] = []
        offset = 0
        offsets = [offset]
        # Kept plain: it runs once for each of up to 20,000 blocks. What stands in the headers is checked all at once.
        with contextlib.suppress(struct.error):  # nothing to unpack: the end, or behind it
            for _ in range(MAX_BLOCKS):
                (length,) = unpack(header := pread(descriptor, HEADER_BYTES, offset))
                if length < HEADER_WORDS:
                    break
                headers.append(header)
                offsets.append(offset := offset + 4 * length)
        if offset != size:
            return self._walk_carefully()
        words = array("I", b"".join(headers))
        if self._order != sys.byteorder:
            words.byteswap()
        lengths, counts, infos = words[0::8], words[3::8], words[5::8]
        is_sound = (
            words[7::8] == array("I", [MAGIC]) * len(headers)
            and words[2::8] == array("I", [HEADER_WORDS]) * len(headers)
            and infos[-1] & VERSION_MASK == VERSION
            and all(info & (VERSION_MASK | LAST_BLOCK_BIT) == VERSION for info in set(infos[:-1]))
            # each event takes two words at least
            and max(map(sub, map(add, counts, counts), lengths)) <= -HEADER_WORDS
        )
        if not is_sound:
            return self._walk_carefully()
        return array("q", offsets), array("q", accumulate(counts, initial=0))

    def _walk_carefully(self) -> tuple[array[int], array[int]]:
        """As _walk, with every header checked as it comes: finds the first that is wrong."""
        offsets, events = array("q", [0]), array("q", [0])
        pread, unpack, descriptor, size = (
            os.pread,
            self._header.unpack,
            self._descriptor,
            self._size,
        )
        offset, total = 0, 0
        while offset < size:
            header = pread(descriptor, HEADER_BYTES, offset)
            if len(header) != HEADER_BYTES:
                raise self._error(offset, f"{len(header)} bytes behind the last block are no block header")
            length, _, header_words, count, _, info, _, magic = unpack(header)
            end = offset + 4 * length
            if (
                magic != MAGIC
                or header_words != HEADER_WORDS
                or length < HEADER_WORDS
                or end > size
                or (info & LAST_BLOCK_BIT and end < size)
                or (info & VERSION_MASK) != VERSION
                or 2 * count > length - HEADER_WORDS
            ):
                raise self._bad_header(offset, unpack(header))
            total += count
            offset = end
            offsets.append(offset)
            events.append(total)
            if len(offsets) > MAX_BLOCKS:
                raise self._error(offset, f"more than {MAX_BLOCKS} blocks")
        return offsets, events

    def _bad_header(self, offset: int, words: tuple[int, ...]) -> EvioError:
        length, _, header_words, count, _, info, _, magic = words
        if magic != MAGIC:
            return self._error(offset + 28, f"magic word {magic:08x} where a block header should be")
        if header_words != HEADER_WORDS:
            return self._error(offset + 8, f"block header of {header_words} words instead of 8")
        if length < HEADER_WORDS:
            return self._error(offset, f"block length {length} words is less than its header")
        if offset + 4 * length > self._size:
            missing = offset + 4 * length - self._size
            return self._error(
                offset,
                f"block of {4 * length} bytes ends {missing} bytes behind the file: cut in mid-block?",
            )
        if (info & VERSION_MASK) != VERSION:
            return self._error(
                offset + 20, f"block of EVIO version {info & VERSION_MASK} in a file of {VERSION}"
            )
        if 2 * count > length - HEADER_WORDS:
            return self._error(offset + 12, f"{count} events can't be in a block of {length} words")
        return self._error(offset + 4 * length, "the file goes on behind its last block: two files in one?")

    def _is_trailer(self, offset: int) -> bool:
        words = self._words(offset)
        return words[0] == HEADER_WORDS and words[3] == 0

    def _first_blocks(
        self, offsets: array[int], events: array[int]
    ) -> tuple[int, list[dict[str, int | str]]]:
        """The first block that is work, and what each slice needs of those before its own."""
        control: list[tuple[int, int, int]] = []
        for event in self._events(0, offsets[1]):
            if event[2] not in NOT_WORK:
                return 0, self._head(0, 1, control)
            control.append(event)
            if len(control) > MAX_CONTROL_EVENTS:
                raise self._error(
                    event[0], f"more than {MAX_CONTROL_EVENTS} events of run control in block 0"
                )
        if len(offsets) < 3:
            raise self._error(0, "block 0 holds run control only, and there is no other block")
        preamble: list[dict[str, int | str]] = [
            {"from_block": 1, "offset": 0, "bytes": offsets[1], "events": events[1]}
        ]
        if any(tag == BEGIN_OF_RUN for _, _, tag in control):
            return 1, preamble
        # File 000 of a run: the begin-of-run record is the first event of block 1.
        first = next(self._events(offsets[1], offsets[2]), None)
        if first is not None and first[2] == BEGIN_OF_RUN:
            preamble += self._head(offsets[1], 2, [first])
        return 1, preamble

    def _head(
        self, block: int, from_block: int, events: list[tuple[int, int, int]]
    ) -> list[dict[str, int | str]]:
        """The first events of a block as a block of their own: a header with true counts, and their range."""
        words = list(self._words(block))
        begin = block + HEADER_BYTES
        if words[5] & DICTIONARY_BIT:
            end = events[-1][1] if events else self._bank_end(begin, block + 4 * words[0])
        elif not events:
            return []
        else:
            end = events[-1][1]
        words[0] = (end - block) // 4
        words[3] = len(events)
        words[5] &= ~LAST_BLOCK_BIT
        return [
            {"from_block": from_block, "hex": self._header.pack(*words).hex(), "events": 0},
            {
                "from_block": from_block,
                "offset": begin,
                "bytes": end - begin,
                "events": len(events),
            },
        ]

    def _events(self, block: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Start, end and tag of each event of a block; the dictionary is not an event."""
        words = self._words(block)
        offset = block + HEADER_BYTES
        if words[5] & DICTIONARY_BIT:
            offset = self._bank_end(offset, end)
        for _ in range(words[3]):
            following = self._bank_end(offset, end)
            tag = int.from_bytes(self._bytes(offset + 4, 4), self._order) >> 16
            yield offset, following, tag
            offset = following

    def _bank_end(self, offset: int, end: int) -> int:
        if offset + 8 > end:
            raise self._error(offset, "an event begins behind the end of its block")
        following = offset + 4 * (int.from_bytes(self._bytes(offset, 4), self._order) + 1)
        if not offset + 8 <= following <= end:
            raise self._error(offset, "an event's length reaches beyond its block")
        return following
