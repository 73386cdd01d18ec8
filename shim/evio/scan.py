"""Finds raw data files, and reads the block indexes of many side by side.

Storage answers slowly, so several files are read at once, in the order of their names.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from shim.evio.errors import EvioError
from shim.evio.index import FILE_NAME, BlockIndex, parse_name, read_index
from shim.evio.remote import is_url, list_folder, path_of

READERS = 16
REMOTE_READERS = 4  # of which each has several requests under way, see ahead.CHAINS
SLOW_READ_S = 0.0003  # for a block header; from the page cache it takes a hundredth


def name_pattern(text: str) -> re.Pattern[str]:
    """Return the pattern of file names that an operator gave.

    Raises
    ------
    EvioError
        It is not a regular expression with the groups run and seqno.
    """
    try:
        pattern = re.compile(text, re.ASCII)
    except re.error as error:
        raise EvioError(f"pattern {text}: {error}") from error
    if not {"run", "seqno"} <= set(pattern.groupindex):
        raise EvioError(
            f"pattern {text}: it needs groups named run and seqno, like (?P<run>\\d+)_(?P<seqno>\\d+)"
        )
    return pattern


def find(
    source: str | os.PathLike[str], pattern: re.Pattern[str] = FILE_NAME, since: float | None = None
) -> list[str]:
    """Return the raw data files that a source names, in order.

    Parameters
    ----------
    source
        A folder, whose tree is walked; a file; or a URL of either (folders: root:// only).
    pattern
        Of the names of files in a folder; others are not taken.
    since
        Take only files of a folder that changed since then [s since 1970].

    Raises
    ------
    EvioError
        The folder can't be read.
    """
    name = os.fspath(source)
    if not is_url(name):
        return [name] if Path(name).is_file() else list(_walk(name, pattern, since))
    try:
        path = urlsplit(name).path
    except ValueError:  # a broken URL: read_index says so
        return [name]
    is_file = pattern.fullmatch(unquote(path.rpartition("/")[2])) or path.endswith(".evio")
    if is_file:
        return [name]
    return [
        url
        for url, changed in list_folder(name)
        if pattern.fullmatch(url.rpartition("/")[2]) and (since is None or changed >= since)
    ]


def files_below(folder: str) -> Iterator[tuple[str, float]]:
    """Give path or URL, and time of the last change [s since 1970], of each file below a folder, with any name.

    Parameters
    ----------
    folder : str
        A path, a URL file://, or a URL root://.

    Raises
    ------
    EvioError
        The folder can't be read, or it is that of a web server, which has no common way to list one.
    """
    place = unquote(folder.removeprefix("file://")) if folder.startswith("file://") else folder
    if is_url(place):
        yield from list_folder(place)
        return
    for path in _walk(place, re.compile(".*", re.DOTALL), None):
        yield path, _changed(Path(path))  # of one that has just been removed: never


def _walk(folder: str, pattern: re.Pattern[str], since: float | None) -> Iterator[str]:
    def stop(error: OSError) -> None:
        raise EvioError(f"{error.filename or repr('')}: {error.strerror}") from error

    for parent, folders, names in os.walk(folder, onerror=stop):
        folders.sort()
        for name in sorted(names):
            path = Path(parent) / name
            if pattern.fullmatch(name) and (since is None or _changed(path) >= since):
                yield str(path)


def _changed(path: Path) -> float:
    """When a file changed [s since 1970]; one that can't be asked counts as new, and reading it says why."""
    try:
        return path.stat().st_mtime
    except OSError:
        return math.inf


def passed_over(folder: str | Path, count: int, pattern: re.Pattern[str] = FILE_NAME) -> list[Path]:
    """Return the first few EVIO files below a folder whose names are not of the pattern."""
    others = (path for path in Path(folder).rglob("*.evio") if not pattern.fullmatch(path.name))
    return sorted(others)[:count]


def indexes(
    paths: Sequence[str | os.PathLike[str]],
    *,
    pattern: re.Pattern[str] = FILE_NAME,
    is_deep: bool = False,
    token: str | None = None,
) -> Iterator[BlockIndex | EvioError]:
    """Give the block index of each file, in order; for one that can't be sliced, the error that says why.

    What is in the page cache is read one file after the other by the caller's thread, since others would only be in
    its way. Several files are read at once as soon as one is slow to read, until one is quick again.

    Parameters
    ----------
    paths
        Paths and URLs.
    pattern
        Of the names of files.
    is_deep, token
        See read_index().
    """
    waiting: deque[Future[tuple[BlockIndex | EvioError, bool]]] = deque()
    is_remote = any(is_url(os.fspath(path)) for path in paths)
    is_slow = is_remote
    read = partial(_read, pattern=pattern, is_deep=is_deep, token=token)
    with ThreadPoolExecutor(REMOTE_READERS if is_remote else READERS) as readers:
        for path in paths:
            if not is_slow:
                index, is_slow = read(path)
                yield index
                continue
            waiting.append(readers.submit(read, path))
            while len(waiting) > (4 * READERS if is_slow else 0):
                index, is_slow = waiting.popleft().result()
                yield index
        while waiting:
            yield waiting.popleft().result()[0]


def _read(
    path: str | os.PathLike[str], *, pattern: re.Pattern[str], is_deep: bool, token: str | None
) -> tuple[BlockIndex | EvioError, bool]:
    """The index of a file, or why it has none; and was it slow to read?"""
    started = time.perf_counter()
    try:
        parse_name(path_of(os.fspath(path)), pattern)
        index = read_index(path, is_deep=is_deep, token=token)
    except EvioError as error:
        return error, time.perf_counter() - started > SLOW_READ_S
    return index, time.perf_counter() - started > SLOW_READ_S * index.nblocks
