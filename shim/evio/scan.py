"""Reads the block indexes of many files side by side.

Storage answers slowly, not in small measure: several files are read at once, in the order of their names.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from shim.evio.errors import EvioError
from shim.evio.index import FILE_NAME, BlockIndex, find_files, read_index

READERS = 16
SLOW_READ_S = 0.0003  # for a block header; from the page cache it takes a hundredth


def find(folder: str | Path) -> list[Path]:
    """Returns all raw data files below a folder, in order.

    Errors: EvioError  the folder can't be read
    """
    return list(find_files(folder))


def passed_over(folder: str | Path, count: int) -> list[Path]:
    """Returns the first few EVIO files below a folder whose names are not of the form that is taken."""
    others = (path for path in Path(folder).rglob("*.evio") if not FILE_NAME.fullmatch(path.name))
    return sorted(others)[:count]


def indexes(paths: Sequence[Path]) -> Iterator[BlockIndex | EvioError]:
    """Gives the block index of each file, in order; for one that can't be sliced, the error that says why.

    What is in the page cache is read one file after the other by the caller's thread, since others would only stand in
    its way; many at once as soon as a file is slow to read, until one is quick again.
    """
    waiting: deque[Future[tuple[BlockIndex | EvioError, bool]]] = deque()
    is_slow = False
    with ThreadPoolExecutor(READERS) as readers:
        for path in paths:
            if not is_slow:
                index, is_slow = _read(path)
                yield index
                continue
            waiting.append(readers.submit(_read, path))
            while len(waiting) > (4 * READERS if is_slow else 0):
                index, is_slow = waiting.popleft().result()
                yield index
        while waiting:
            yield waiting.popleft().result()[0]


def _read(path: Path) -> tuple[BlockIndex | EvioError, bool]:
    """The index of a file, or why it has none; and was it slow to read?"""
    started = time.perf_counter()
    try:
        index = read_index(path)
    except EvioError as error:
        return error, time.perf_counter() - started > SLOW_READ_S
    return index, time.perf_counter() - started > SLOW_READ_S * index.nblocks
