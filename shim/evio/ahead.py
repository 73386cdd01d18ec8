"""Reads the block headers of a file that is far away: many chains side by side.

Each header tells where the next one is, so one chain of 20,000 headers over a line of 30 ms takes 10 minutes. The file
is therefore walked from several places at once. The first block header behind each place is found by its magic word.
That may be a mistake, since data can look like a header: a chain counts only if the chain before it ends exactly where
it begins.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

HEADER_BYTES = 32
CHAINS = 16
FIRST_BLOCKS = 8  # walked one by one, to learn how long blocks are
MIN_BLOCKS = 64  # of a chain
SEARCH_BYTES = (
    1 << 16,
    1 << 20,
)  # read at once to find a block header: the mean length of a block, in this range
MAX_SEARCH_BLOCKS = 8  # so many blocks of mean length are searched

Read = Callable[[int, int], bytes]


def read_headers(
    read: Read,
    size: int,
    order: str,
    magic: int,
    max_blocks: int,
    begin: int = 0,
    header_words: int = 8,
    version: int = 4,
) -> tuple[list[int], list[bytes]]:
    """Read all block headers of a file.

    Parameters
    ----------
    read
        Returns bytes of the file by offset and length; called from several threads.
    size
        Of the file [bytes].
    order
        < or >, as in module struct.
    magic
        Word 8 of a block header.
    max_blocks
        The walk ends after so many.
    begin
        Of the first block [bytes].
    header_words
        Length of a block header; its first 8 words are read.
    version
        Of the format, in the low 8 bits of word 6.

    Returns
    -------
    tuple[list[int], list[bytes]]
        Where each block begins and the last one ends [bytes], and the headers. The walk ends at the first header whose
        length is less than its own, or at the end of the file; nothing else is checked.
    """
    walk = _Walk(read, size, order, magic, max_blocks, header_words, version)
    starts, headers = walk.chain(begin, size, FIRST_BLOCKS)
    mean = (starts[-1] - begin) / max(len(headers), 1)
    chains = min(CHAINS, int((size - starts[-1]) / mean / MIN_BLOCKS)) if mean else 0
    if len(headers) < FIRST_BLOCKS or chains < 2:
        more = walk.chain(starts[-1], size, max_blocks)
        return starts[:-1] + more[0], headers + more[1]
    step = (size - starts[-1]) // chains
    with ThreadPoolExecutor(chains) as threads:
        places = [starts[-1] + n * step for n in range(1, chains)]
        searched = threads.map(lambda place: walk.find(place, int(mean)), places)
        begins = sorted({starts[-1], *(found for found in searched if found is not None)})
        ends = [*begins[1:], size]
        parts = list(threads.map(lambda begin, end: walk.chain(begin, end, max_blocks), begins, ends))
    by_begin = dict(zip(begins, parts, strict=True))
    while (part := by_begin.get(starts[-1])) and part[1]:
        starts = starts[:-1] + part[0]
        headers += part[1]
        if (
            starts[-1] < size and starts[-1] not in by_begin
        ):  # the next chain began at a mistake: go on past it
            later = min((begin for begin in begins if begin > starts[-1]), default=size)
            by_begin[starts[-1]] = walk.chain(starts[-1], later, max_blocks)
    return starts, headers


class _Walk:
    def __init__(
        self,
        read: Read,
        size: int,
        order: str,
        magic: int,
        max_blocks: int,
        header_words: int,
        version: int,
    ) -> None:
        self._header_words, self._version = header_words, version
        self._read, self._size, self._max_blocks = read, size, max_blocks
        self._word = struct.Struct(order + "I")
        self._header = struct.Struct(order + "8I")
        self._magic = self._word.pack(magic)

    def chain(self, begin: int, end: int, count: int) -> tuple[list[int], list[bytes]]:
        """Walk from a block header to `end` or past it, or for `count` blocks."""
        starts = [begin]
        headers: list[bytes] = []
        while starts[-1] < end and len(headers) < count:
            header = self._read(starts[-1], HEADER_BYTES)
            if len(header) < HEADER_BYTES or self._word.unpack_from(header)[0] < self._header_words:
                break
            headers.append(header)
            starts.append(starts[-1] + 4 * self._word.unpack_from(header)[0])
        return starts, headers

    def find(self, place: int, block_bytes: int) -> int | None:
        """Return where a block probably begins, the first one behind `place`; blocks have a mean length."""
        at = place & ~3
        end = min(at + MAX_SEARCH_BLOCKS * block_bytes, self._size)
        window = min(max(block_bytes & ~3, SEARCH_BYTES[0]), SEARCH_BYTES[1])
        while at < end:
            data = self._read(at, window)
            hit = data.find(self._magic)
            while hit >= 0:
                begin = at + hit - (HEADER_BYTES - 4)
                if (
                    hit % 4 == 0
                    and hit >= HEADER_BYTES - 4
                    and self._is_header(data[hit - 28 : hit + 4], begin)
                ):
                    return begin
                hit = data.find(self._magic, hit + 1)
            if len(data) < window:
                return None
            at += window - HEADER_BYTES
        return None

    def _is_header(self, header: bytes, begin: int) -> bool:
        """Does it look like one, and is there one where it ends?"""
        length, _, header_words, count, _, info, _, _ = self._header.unpack(header)
        end = begin + 4 * length
        if header_words != self._header_words or info & 0xFF != self._version or end > self._size:
            return False
        if length < header_words or (self._version == 4 and 2 * count > length - header_words):
            return False
        return end == self._size or self._read(end, HEADER_BYTES)[28:] == self._magic
