"""What is in an EVIO file: its block index. Knows no database.

Source: EVIO 4 format. A block header is 8 words of 32 bits: length in words (header included), block number
(from 1), header length 8, event count, reserved, bit info and version, reserved, magic. Bits of word 6 from
0: 0-7 version, 8 dictionary, 9 last block. A bank header is two words: length in words less 1, then tag (16
bits), type (8), num (8). docs/evio.md says which readers accept the files that slices make of this.

In EVIO 6 a block is called a record, and its header has 14 words, of which the first 8 are those of a block header;
word 5 is the length of an array of event lengths [bytes]. Bits 28-31 of word 6: 3 is the trailer. A file header of the
same layout is in front, and its user header behind it.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from operator import add, sub
from pathlib import Path
from typing import Literal

from shim.evio.ahead import read_headers
from shim.evio.deep import check_counts
from shim.evio.errors import EvioError
from shim.evio.head import Event, Head, Piece, TooManyControlEvents, read_head
from shim.evio.remote import open_source
from shim.evio.source import LocalFile, Source
from shim.evio.tags import BEGIN_OF_RUN
from shim.words import counted

HEADER_WORDS = 8
HEADER_BYTES = 4 * HEADER_WORDS
MAGIC = 0xC0DA0100
VERSION_MASK = 0xFF  # real files carry 0x60004
DICTIONARY_BIT = 1 << 8
LAST_BLOCK_BIT = 1 << 9
VERSION = 4
RECORD_VERSION = 6
RECORD_HEADER_WORDS = 14
RECORD_HEADER_BYTES = 4 * RECORD_HEADER_WORDS
FIRST_EVENT_BIT = 1 << 9  # of a file header
TRAILER_BIT = 1 << 10  # of a file header: it has the position of the trailer
TRAILER_TYPE = 3  # of a record

# Far beyond any real file, so that a damaged one can't use up the memory.
MAX_BLOCKS = 4_000_000
MAX_EVENTS = 2**32 - 1  # as many as the index can count
MAX_GAPS = 100_000
READ_AHEAD_BYTES = 1 << 16  # of the events before the first physics event, most of which are short

MOST_RUN = 2**31 - 1
FILE_NAME = re.compile(r"hd_rawdata_(?P<run>\d{6})_(?P<seqno>\d{3,9})\.evio")
# No path in the database has these: control characters, line ends, and what Python makes of bytes that are not UTF-8.
_NOT_STORED = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
HIPO = 0x43455248  # "HREC", the first word of a HIPO file
EVIO = 0x4556494F  # "EVIO", the first word of a file of version 6


@dataclass(frozen=True)
class BlockIndex:
    """Where the blocks of one file are, and what a slice of them needs to be a complete file.

    Attributes
    ----------
    nblocks
        Blocks that hold events. Empty blocks are not counted: they are part of no slice.
    first_block
        The first block that is work: those before it hold run control only, and are part of each slice.
    has_trailer
        Does an empty block end the file?
    last_has_bit
        Has the last block with events the last-block bit?
    trailer
        Block that ends the file of a slice [32 bytes; 0 bytes in version 6, whose readers need none].
    offsets
        nblocks + 1 entries: the start of each block, then the end of the last one [bytes].
    events_before
        nblocks + 1 entries: events in all blocks before.
    gaps
        Ranges between the blocks that are part of no slice, in order [bytes, exclusive end]: empty blocks.
    preamble
        Pieces that a slice begins with, in order. Each is {"offset", "bytes", "events"} or {"hex", "events"}, with
        "from_block" and, for some, "until_block": the first and the last block at which such a slice begins.
    has_bor
        Is a begin-of-run record among them?
    version
        Of the format, 4 or 6.
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
    gaps: list[tuple[int, int]] = field(repr=False)
    preamble: list[Piece]
    has_bor: bool
    version: int = VERSION

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


def parse_name(path: str | os.PathLike[str], pattern: re.Pattern[str] = FILE_NAME) -> tuple[int, int]:
    """Return run and number of a raw data file, from its name.

    Parameters
    ----------
    path
        Path of the file.
    pattern
        Of the name without folders, with groups run and seqno.

    Raises
    ------
    EvioError
        The name is not of this pattern, or the database can't hold its path, run or number.
    """
    if _NOT_STORED.search(os.fspath(path)):
        raise EvioError(
            f"{os.fspath(path)!a}: this path has a control character, or is not UTF-8: rename the file or its folder"
        )
    match = pattern.fullmatch(Path(path).name)
    if match is None:
        form = (
            "hd_rawdata_RRRRRR_SSS.evio (run, seqno)"
            if pattern is FILE_NAME
            else f"of the form {pattern.pattern}"
        )
        raise EvioError(f"{path}: the name is not {form}")
    numbers = match["run"] or "", match["seqno"] or ""
    if not all(one.isascii() and one.isdigit() and int(one) <= MOST_RUN for one in numbers):
        raise EvioError(
            f"{path}: run {numbers[0]!r} and seqno {numbers[1]!r} must be numbers up to {MOST_RUN}"
        )
    return int(numbers[0]), int(numbers[1])


def read_index(
    path: str | os.PathLike[str], *, is_deep: bool = False, token: str | None = None
) -> BlockIndex:
    """Read the block headers of a file, and its events up to the first physics event.

    Parameters
    ----------
    path
        An EVIO file of version 4 or 6, of either byte order: a path or a URL (see remote.open_source).
    is_deep
        Walk the banks of all blocks, and compare their number with the counts in the headers. Compressed records of
        version 6 are left out.
    token
        Bearer token for http(s).

    Returns
    -------
    BlockIndex
        Its block index; the path in it is absolute.

    Raises
    ------
    EvioError
        The file is empty, damaged, cut, or of another version: one line that names file and byte.
    """
    with contextlib.closing(open_source(os.fspath(path), token)) as source:
        try:
            index = _Reader(source).read()
            if is_deep:
                check_counts(source, index.byte_order, index.offsets[:-1], index.version)
        except OSError as error:  # of the bare pread of a local file
            raise EvioError(f"{source.name}: {error.strerror}") from error
        return index


class _Reader:
    """Reads one open file."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._size = source.size
        self._order: Literal["big", "little"] = "big"
        self._header = struct.Struct(">8I")
        self._length = struct.Struct(">I")
        self._ahead = (0, b"")  # offset, and the bytes that were read there
        self._version = VERSION
        self._header_words = HEADER_WORDS
        self._begin = 0  # of the first block

    def read(self) -> BlockIndex:
        self._recognise()
        starts, counts, infos = self._walk()
        blocks = self._with_events(starts, counts, infos)
        if not blocks:
            raise self._error(0, "no block holds an event")
        if isinstance(blocks, range):  # of blocks without empty ones between
            offsets, counts_of = starts[: len(blocks) + 1], counts[: len(blocks)]
        else:
            offsets = array("q", [*map(starts.__getitem__, blocks), starts[blocks[-1] + 1]])
            counts_of = array("I", map(counts.__getitem__, blocks))
        events = array("q", accumulate(counts_of, initial=0))
        if events[-1] > MAX_EVENTS:
            raise self._error(0, f"{events[-1]} events in all its blocks, more than {MAX_EVENTS}")
        is_4 = self._version == VERSION
        head = self._head(offsets) if is_4 else self._file_head()
        trailer = (HEADER_WORDS, len(blocks) + 1, HEADER_WORDS, 0, 0, LAST_BLOCK_BIT | VERSION, 0, MAGIC)
        return BlockIndex(
            path=self._source.path,
            size_bytes=self._size,
            byte_order=self._order,
            nblocks=len(blocks),
            first_block=head.first_block,
            has_trailer=blocks[-1] < len(counts) - 1,
            last_has_bit=bool(infos[blocks[-1]] & LAST_BLOCK_BIT),
            trailer=self._header.pack(*trailer) if is_4 else b"",
            offsets=offsets,
            events_before=events,
            gaps=self._gaps(starts, blocks),
            preamble=head.pieces,
            has_bor=head.has_bor,
            version=self._version,
        )

    def _error(self, offset: int, what: str) -> EvioError:
        return EvioError(f"{self._source.name}: byte {offset}: {what}")

    def _recognise(self) -> None:
        if self._size == 0:
            raise self._error(0, "the file is empty")
        if self._size < HEADER_BYTES:
            raise self._error(0, f"{self._size} bytes are less than a block header ({HEADER_BYTES})")
        if self._bytes(0, 4) in (HIPO.to_bytes(4, "little"), HIPO.to_bytes(4, "big")):
            raise self._error(0, "a HIPO file, not an EVIO file")
        magic = self._bytes(HEADER_BYTES - 4, 4)
        if magic == MAGIC.to_bytes(4, "little"):
            self._order = "little"
            self._header = struct.Struct("<8I")
            self._length = struct.Struct("<I")
        elif magic != MAGIC.to_bytes(4, "big"):
            raise self._error(HEADER_BYTES - 4, f"magic word {magic.hex()}: not an EVIO file")
        version = self._words(0)[5] & VERSION_MASK
        if version < VERSION:
            raise self._error(20, f"EVIO version {version} can't be sliced by block: events cross blocks")
        if version == RECORD_VERSION:
            self._recognise_file_header()
        elif version != VERSION:
            raise self._error(20, f"EVIO version {version} is not known")

    def _recognise_file_header(self) -> None:
        """Check the file header of version 6, and find the first record."""
        self._version, self._header_words = RECORD_VERSION, RECORD_HEADER_WORDS
        if self._size < RECORD_HEADER_BYTES:
            raise self._error(0, f"{self._size} bytes are less than a file header ({RECORD_HEADER_BYTES})")
        word1, _, header_words, _, index_bytes, _, user_bytes, _ = self._words(0)
        if word1 != EVIO:
            raise self._error(0, f"first word {word1:08x}: a file of EVIO 6 begins with a file header")
        if header_words != RECORD_HEADER_WORDS:
            raise self._error(8, f"file header of {header_words} words instead of {RECORD_HEADER_WORDS}")
        self._user_header = RECORD_HEADER_BYTES + index_bytes
        self._begin = self._user_header + user_bytes + -user_bytes % 4
        if index_bytes % 4 or self._begin > self._size:
            raise self._error(
                16, f"index of {index_bytes} and user header of {user_bytes} bytes can't be in the file"
            )
        if self._begin == self._size:
            raise self._error(self._begin, "no record follows the file header")

    def _words(self, offset: int) -> tuple[int, ...]:
        return self._header.unpack(self._bytes(offset, HEADER_BYTES))

    def _bytes(self, offset: int, length: int) -> bytes:
        data = self._source.read(offset, length)
        if len(data) != length:
            raise self._error(offset + len(data), "the file became shorter while it was read")
        return data

    def _walk(self) -> tuple[array[int], array[int], array[int]]:
        """Start of each block and the end of the last; events of each; word 6 of each."""
        starts, headers = self._headers()
        if not headers or starts[-1] != self._size:
            return self._walk_carefully(dict(zip(starts, headers, strict=False)))
        words = array("I", b"".join(headers))
        if self._order != sys.byteorder:
            words.byteswap()
        lengths, counts, infos = words[0::8], words[3::8], words[5::8]
        is_sound = (
            words[7::8] == array("I", [MAGIC]) * len(headers)
            and words[2::8] == array("I", [self._header_words]) * len(headers)
            and infos[-1] & VERSION_MASK == self._version
            and all(info & (VERSION_MASK | LAST_BLOCK_BIT) == self._version for info in set(infos[:-1]))
            and (
                # each event takes two words at least; of nearly every file the extremes tell
                2 * max(counts) <= min(lengths) - HEADER_WORDS
                or max(map(sub, map(add, counts, counts), lengths)) <= -HEADER_WORDS
                if self._version == VERSION
                else not any(map(self._is_bad_record, lengths, counts, words[4::8], infos))
            )
        )
        if not is_sound:
            return self._walk_carefully(dict(zip(starts, headers, strict=False)))
        return array("q", starts), counts, infos

    def _headers(self) -> tuple[list[int], list[bytes]]:
        """Start of each block and the end of the last, and the headers; only their lengths are looked at."""
        if not isinstance(self._source, LocalFile):
            order = "<" if self._order == "little" else ">"
            form = (self._begin, self._header_words, self._version)
            return read_headers(self._source.read, self._size, order, MAGIC, MAX_BLOCKS, *form)
        pread, descriptor, unpack = os.pread, self._source.descriptor, self._length.unpack_from
        headers: list[bytes] = []
        offset, header_bytes, least_words = self._begin, HEADER_BYTES, self._header_words
        starts = [offset]
        # Kept plain: it runs once for each of up to 20,000 blocks.
        with contextlib.suppress(struct.error):  # nothing to unpack: the end of the file
            for _ in range(MAX_BLOCKS):
                (length,) = unpack(header := pread(descriptor, header_bytes, offset))
                if length < least_words:
                    break
                headers.append(header)
                offset += 4 * length
                starts.append(offset)
        return starts, headers

    def _walk_carefully(self, known: dict[int, bytes]) -> tuple[array[int], array[int], array[int]]:
        """As _walk, with every header checked as it comes: finds the first that is wrong.

        `known` has headers that were read, by offset.
        """
        starts, counts, infos = array("q", [self._begin]), array("I"), array("I")
        read, unpack, size = self._source.read, self._header.unpack, self._size
        offset, is_last = self._begin, False
        while offset < size:
            header = known.get(offset) or read(offset, HEADER_BYTES)
            if len(header) != HEADER_BYTES:
                raise self._error(offset, f"{len(header)} bytes behind the last block are no block header")
            length, _, header_words, count, index_bytes, info, _, magic = unpack(header)
            end = offset + 4 * length
            if (
                magic != MAGIC
                or header_words != self._header_words
                or length < header_words
                or end > size
                or (info & VERSION_MASK) != self._version
                or (
                    2 * count > length - HEADER_WORDS
                    if self._version == VERSION
                    else self._is_bad_record(length, count, index_bytes, info)
                )
            ):
                raise self._bad_header(offset, unpack(header))
            if is_last and count:
                raise self._error(
                    offset, "the file goes on behind its last block: it may be two files in one"
                )
            is_last |= bool(info & LAST_BLOCK_BIT)
            counts.append(count)
            infos.append(info)
            offset = end
            starts.append(offset)
            if len(starts) > MAX_BLOCKS:
                raise self._error(offset, f"more than {MAX_BLOCKS} blocks")
        return starts, counts, infos

    def _bad_header(self, offset: int, words: tuple[int, ...]) -> EvioError:
        length, _, header_words, count, index_bytes, info, _, magic = words
        if magic != MAGIC:
            return self._error(offset + 28, f"magic word {magic:08x} where a block header should be")
        if header_words != self._header_words:
            what = f"header of {header_words} words instead of {self._header_words}"
            if self._version == RECORD_VERSION:
                return self._error(offset + 8, f"record {what}")
            return self._error(offset + 8, f"block {what}: GlueX's reader fails, C evio 6 reads no event")
        if length < header_words:
            return self._error(offset, f"block length {length} words is less than its header")
        if offset + 4 * length > self._size:
            missing = offset + 4 * length - self._size
            return self._error(
                offset,
                f"block of {4 * length} bytes ends {missing} bytes behind the file: it may be cut",
            )
        if (info & VERSION_MASK) != self._version:
            return self._error(
                offset + 20, f"block of EVIO version {info & VERSION_MASK} in a file of {self._version}"
            )
        if self._version == RECORD_VERSION:
            return self._error(
                offset + 12,
                f"{counted(count, 'event')} in a record of {length} words with an index of {index_bytes} bytes",
            )
        return self._error(offset + 12, f"{counted(count, 'event')} can't be in a block of {length} words")

    @staticmethod
    def _is_bad_record(length: int, count: int, index_bytes: int, info: int) -> bool:
        """Do the event count and the array of event lengths disagree? The trailer's array is of records.

        A compressed record may be shorter than its array.
        """
        if count == 0:
            is_empty = length == RECORD_HEADER_WORDS and index_bytes == 0
            return not is_empty and info >> 28 != TRAILER_TYPE
        return (
            info >> 28 == TRAILER_TYPE or length == RECORD_HEADER_WORDS or index_bytes not in (0, 4 * count)
        )

    def _with_events(self, starts: array[int], counts: array[int], infos: array[int]) -> Sequence[int]:
        """Return the blocks that hold events; check that the others are empty."""
        if 0 not in counts[:-1]:  # nearly every file
            is_trailer = counts[-1] == 0 and (
                self._version == RECORD_VERSION or starts[-1] - starts[-2] == HEADER_BYTES
            )
            if is_trailer or counts[-1]:
                return range(len(counts) - is_trailer)
        for n, count in enumerate(counts) if self._version == VERSION else ():
            begin, end = starts[n] + HEADER_BYTES, starts[n + 1]
            if count == 0 and begin != end:
                is_dictionary = infos[n] & DICTIONARY_BIT and self._bank_end(begin, end) == end
                if not is_dictionary:
                    raise self._error(
                        starts[n] + 12, f"0 events are counted in a block of {(end - starts[n]) // 4} words"
                    )
        return [n for n, count in enumerate(counts) if count]

    def _gaps(self, starts: array[int], blocks: Sequence[int]) -> list[tuple[int, int]]:
        """Return the ranges between blocks that hold events."""
        if blocks[-1] - blocks[0] == len(blocks) - 1:
            return []
        gaps = [(starts[a + 1], starts[b]) for a, b in pairwise(blocks) if b != a + 1]
        if len(gaps) > MAX_GAPS:
            raise self._error(gaps[MAX_GAPS][0], f"more than {MAX_GAPS} empty blocks between others")
        return gaps

    def _head(self, offsets: array[int]) -> Head:
        """Work out what slices begin with."""

        def body(block: int) -> tuple[int, int, int]:
            begin = offsets[block]
            words = self._words(begin)
            end, events = begin + 4 * words[0], begin + HEADER_BYTES
            return begin, self._bank_end(events, end) if words[5] & DICTIONARY_BIT else events, end

        def header(block: int, size: int, count: int) -> bytes:
            words = list(self._words(offsets[block]))
            words[0], words[3] = HEADER_WORDS + size // 4, count
            words[5] &= ~(LAST_BLOCK_BIT | DICTIONARY_BIT)
            return self._header.pack(*words)

        def events(block: int) -> Iterator[Event]:
            return self._events(block, offsets[block])

        try:
            head = read_head(len(offsets) - 1, events, body, header)
        except TooManyControlEvents as error:
            event, most = error.args
            raise self._error(
                event.begin, f"more than {most} events of run control before any other"
            ) from None
        if head is None:
            raise self._error(0, "block 0 holds run control only, and no other block follows")
        return head

    def _file_head(self) -> Head:
        """Return what each slice of version 6 begins with: the file header, and its user header as it is."""
        words = list(struct.unpack(self._header.format[:1] + "14I", self._bytes(0, RECORD_HEADER_BYTES)))
        # No records counted, no index, no trailer.
        words[3] = words[4] = words[10] = words[11] = 0
        words[5] &= ~TRAILER_BIT
        header = struct.pack(self._header.format[:1] + "14I", *words)
        pieces: list[Piece] = [{"from_block": 0, "hex": header.hex(), "events": 0}]
        size = self._begin - self._user_header
        if size:
            pieces.append({"from_block": 0, "offset": self._user_header, "bytes": size, "events": 0})
        return Head(0, pieces, bool(words[5] & FIRST_EVENT_BIT) and self._first_tag(words[5]) in BEGIN_OF_RUN)

    def _first_tag(self, info: int) -> int:
        """Return the tag of the first event, which is in the user header, a separate record that is not compressed."""
        begin = self._user_header
        if begin + RECORD_HEADER_BYTES > self._begin:
            raise self._error(begin, "the file header promises a first event, its user header has none")
        _, _, header_words, count, index_bytes, _, _, magic = self._words(begin)
        has_dictionary = bool(info & DICTIONARY_BIT)
        size = self._begin - begin  # up to 2 GB, of which a few bytes are read
        first_length, at = (
            4 * header_words,
            4 * header_words + index_bytes,
        )  # of the first event or the dictionary
        if has_dictionary and first_length + 4 <= size:  # its length is where the index begins
            at += int.from_bytes(self._bytes(begin + first_length, 4), self._order)
        if magic != MAGIC or count != 1 + has_dictionary or at + 8 > size:
            raise self._error(begin, "the user header of the file is not a record with a first event")
        return int.from_bytes(self._bytes(begin + at + 4, 4), self._order) >> 16

    def _events(self, number: int, begin: int) -> Iterator[Event]:
        """Give each event of a block; the dictionary is not an event."""
        words = self._words(begin)
        offset, end = begin + HEADER_BYTES, begin + 4 * words[0]
        if words[5] & DICTIONARY_BIT:
            offset = self._bank_end(offset, end)
        for _ in range(words[3]):
            following = self._bank_end(offset, end)
            tag = int.from_bytes(self._near(offset + 4, 4), self._order) >> 16
            yield Event(number, offset, following, tag)
            offset = following

    def _bank_end(self, offset: int, end: int) -> int:
        if offset + 8 > end:
            raise self._error(offset, "an event begins behind the end of its block")
        following = offset + 4 * (int.from_bytes(self._near(offset, 4), self._order) + 1)
        if not offset + 8 <= following <= end:
            raise self._error(offset, "an event's length reaches beyond its block")
        return following

    def _near(self, offset: int, length: int) -> bytes:
        """As _bytes, for small steps: one read serves many."""
        begin, data = self._ahead
        if not begin <= offset <= offset + length <= begin + len(data):
            data = self._bytes(offset, min(max(length, READ_AHEAD_BYTES), self._size - offset))
            self._ahead = begin, data = offset, data
        return data[offset - begin : offset - begin + length]
