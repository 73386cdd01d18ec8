"""The operator's calls in Python, under the original's names. The command ``osgprod`` is in shim/cli.

They call functions of schema osgprod; in psql, ``SELECT * FROM osgprod.f(p_x => ...)`` does the same.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import psycopg

from shim.database import call, connect
from shim.evio import scan
from shim.evio.errors import EvioError
from shim.evio.index import FILE_NAME, BlockIndex
from shim.evio.locality import localities
from shim.evio.remote import is_url, path_of
from shim.registry import register_all

PAGE_FILES = 10_000
FILES_A_COMMIT = 64  # a commit waits for the disk, and takes longer than the inserts


class Progress(Protocol):
    """Shows how far a long call is."""

    def advance(self, count: int = 1) -> None:
        """So many more are done."""

    def say(self, line: str) -> None:
        """Tell the operator something while the call goes on."""


# Makes a Progress from a label, a total, and the unit of the total.
MakeProgress = Callable[[str, int, str], AbstractContextManager[Progress]]


class _Lines:
    """Progress for programs: lines on the standard error output, no bar."""

    def advance(self, count: int = 1) -> None:
        pass

    def say(self, line: str) -> None:
        print(line, file=sys.stderr)


def lines_only(label: str, total: int, unit: str) -> AbstractContextManager[Progress]:
    """Return a Progress that prints messages only, on the standard error output.

    Parameters
    ----------
    label, total, unit : str, int, str
        What is done, how many there are, and their unit; not shown.
    """
    return nullcontext(_Lines())


def add_project(
    projectname: str,
    subnet_pattern: str,
    workscript: str,
    xrootd_prefix: str,
    maxblockspercore: int,
    magic: str | None = None,
    dry_run: bool = False,
) -> int:
    """Make a project.

    Parameters
    ----------
    projectname : str
        Letters, digits and _ . + -; also the name of its folder below the document root.
    subnet_pattern : str
        Which addresses its jobs may have: a list of networks, or an SQL LIKE pattern on the address.
    workscript : str
        File name of its work script in that folder.
    xrootd_prefix : str
        What stands before a file's path in a URL; several, in order of preference, are separated by spaces.
    maxblockspercore : int
        Blocks of a slice for each core of the job [1 .. 1000000].
    magic : str, optional
        The secret of its jobs; default: none, so no job is accepted until one is set.
    dry_run : bool
        Only check whether the database would take it.

    Returns
    -------
    int
        The project's number.

    Raises
    ------
    psycopg.Error
        The function's own code, message and hint, also for a name that is taken.
    """
    with connect() as connection, connection.transaction(force_rollback=dry_run):
        rows = call(
            connection,
            "add_project",
            project=projectname,
            subnet_pattern=subnet_pattern,
            workscript=workscript,
            xrootd_prefix=xrootd_prefix,
            maxblockspercore=maxblockspercore,
            magic=magic,
        )
    return int(rows[0]["add_project"])


def load_rawdata_files(
    my_rawdata_dir: str | Path | Sequence[str],
    dry_run: bool = False,
    progress: MakeProgress = lines_only,
    *,
    pattern: re.Pattern[str] = FILE_NAME,
    since: float | None = None,
    only_new: bool = False,
    is_deep: bool = False,
    token: str | None = None,
    prefix: str | None = None,
) -> dict[str, int]:
    """Register raw data files, and compare those that are registered already.

    Parameters
    ----------
    my_rawdata_dir
        A folder, whose tree is walked; a file; a URL of either (see shim.evio.scan.find); or several of these.
    dry_run
        Compare only; nothing is changed.
    progress
        Shows how far it is; each file that differs, is bad, or has no begin-of-run record is named there.
    pattern
        Of the names of files, with groups run and seqno.
    since
        Of folders, take only files that changed since then [s since 1970].
    only_new
        Leave out files that are registered.
    is_deep
        Walk the banks of all blocks, and compare their number with the counts in the headers.
    token
        Bearer token for http(s).
    prefix
        URL prefix of these files, in the place of the project's, or a list of them; default: as it was; empty: none.

    Returns
    -------
    dict[str, int]
        How many files were new, same, renewed (an older release registered them not quite right), differs (from what
        is registered, which stays) and bad (can't be sliced); without_bor: how many of the others have no begin-of-run
        record.

    Raises
    ------
    EvioError
        A folder can't be read.
    psycopg.Error
        The database refuses.
    """
    counts = {"new": 0, "same": 0, "renewed": 0, "differs": 0, "bad": 0, "without_bor": 0}
    sources = [my_rawdata_dir] if isinstance(my_rawdata_dir, str | Path) else my_rawdata_dir
    paths = list(dict.fromkeys(path for source in sources for path in scan.find(source, pattern, since)))
    with connect() as connection:
        if only_new:
            known = set(_registered_below(connection, ""))
            paths = [path for path in paths if _registered_as(path) not in known]
        with progress("indexing files", len(paths), "files") as bar:
            found = scan.indexes(paths, pattern=pattern, is_deep=is_deep, token=token)
            for status, what, index in _register(connection, found, dry_run, pattern, prefix):
                counts[status] += 1
                if status in ("differs", "bad"):
                    bar.say(what)
                if isinstance(index, BlockIndex) and not index.has_bor:
                    counts["without_bor"] += 1
                    bar.say(
                        f"{index.path}: registered without a begin-of-run record before the first physics event"
                    )
                bar.advance()
    return counts


def _registered_as(path: str) -> str:
    """The path under which a file is registered."""
    with suppress(EvioError):  # a broken URL, which reading it names
        return path_of(path) if is_url(path) else os.path.abspath(path)  # noqa: PTH100  # a link keeps its name
    return path


def check_rawdata_files(
    my_rawdata_dir: str | Path, progress: MakeProgress = lines_only, pattern: re.Pattern[str] = FILE_NAME
) -> list[dict[str, Any]]:
    """Compare all raw data files below a folder with the registered ones, both ways; change nothing.

    Parameters
    ----------
    my_rawdata_dir : str or Path
        A folder, whose tree is walked.
    progress : callable
        Shows how far it is.
    pattern : re.Pattern
        Of the names of files, with groups run and seqno.

    Returns
    -------
    list of dict
        A row for each fault: path, and what: not registered, gone, how it differs, why it can't be sliced, or that it
        was not compared, since its name is not of the pattern.

    Raises
    ------
    EvioError
        The folder can't be read.
    psycopg.Error
        The database refuses.
    """
    faults: list[dict[str, Any]] = []
    folder = os.path.abspath(my_rawdata_dir)  # noqa: PTH100  # a link keeps its name, as in read_index
    paths = scan.find(folder, pattern)
    with connect() as connection:
        others = sorted(set(_registered_below(connection, folder)) - set(paths))
    there = [
        path for path in others if Path(path).exists()
    ]  # below a link, or with a name of another pattern
    gone = set(others) - set(there)
    paths += [path for path in there if pattern.fullmatch(Path(path).name)]
    faults += [
        {"path": path, "what": "not compared: its name is not of this pattern, see --pattern"}
        for path in there
        if not pattern.fullmatch(Path(path).name)
    ]
    with connect() as connection, progress("checking files", len(paths), "files") as bar:
        results = _register(connection, scan.indexes(paths, pattern=pattern), True, pattern)
        for path, (status, what, _) in zip(paths, results, strict=True):
            if status != "same":
                what = "not registered" if status == "new" else what.removeprefix(f"{path}: ")
                faults.append({"path": path, "what": what})
            bar.advance()
    return faults + [{"path": path, "what": "registered, but not there"} for path in sorted(gone)]


def _registered_below(connection: psycopg.Connection[dict[str, Any]], folder: str) -> Iterator[str]:
    pattern, after = re.sub(r"([\\%_])", r"\\\1", folder) + "/%", None
    while rows := call(connection, "list_rawdata", path=pattern, limit=PAGE_FILES, after=after):
        yield from (row["path"] for row in rows)
        after = rows[-1]["file_id"]


def _register(
    connection: psycopg.Connection[dict[str, Any]],
    indexes: Iterator[BlockIndex | EvioError],
    dry_run: bool,
    pattern: re.Pattern[str] = FILE_NAME,
    prefix: str | None = None,
) -> Iterator[tuple[str, str, BlockIndex | EvioError]]:
    """Register files, or only compare them; yield what register() returns for each, in order, and its index."""
    while group := list(islice(indexes, FILES_A_COMMIT)):
        with connection.transaction(force_rollback=dry_run):
            results = register_all(connection, group, pattern, prefix)
        yield from ((*result, index) for result, index in zip(results, group, strict=True))


def check_online(
    projectname: str, count: int = 1000, token: str | None = None, dry_run: bool = False
) -> list[dict[str, Any]]:
    """Ask storage which of the files that come next are on tape only, and record it.

    Parameters
    ----------
    projectname : str
        The project.
    count : int
        So many of the files that it assigns next [1 .. 100000].
    token : str, optional
        Bearer token for https.
    dry_run : bool
        Record nothing.

    Returns
    -------
    list of dict
        A row for each file that is not online: path, url, locality (nearline or gone).

    Raises
    ------
    psycopg.Error
        Unknown project.
    """
    with connect() as connection:
        coming = call(connection, "list_next_files", project=projectname, limit=count)
    found = localities([row["url"] for row in coming], token)  # outside of any transaction: it takes its time
    if not dry_run:
        known = [{"file_id": row["file_id"], "locality": found[row["url"]]} for row in coming]
        with connect() as connection:
            call(connection, "record_locality", found=json.dumps(known))
    return [
        {"path": row["path"], "url": row["url"], "locality": found[row["url"]]}
        for row in coming
        if found[row["url"]] not in (None, "online")
    ]


def load_slices(
    runs: Iterable[int] | None = None,
    projectname: str | None = None,
    start_over: bool = False,
    dry_run: bool = False,
    cores: int = 1,
) -> dict[str, Any]:
    """Make registered files the work of a project.

    Parameters
    ----------
    runs : iterable of int, optional
        Run numbers; default: all registered files.
    projectname : str, optional
        Default: the only project that there is.
    start_over : bool
        Reset files that are already loaded, and process them again.
    dry_run : bool
        Only tell what would be loaded, and foretell what it will take.
    cores : int
        Of a job, for the forecast.

    Returns
    -------
    dict of str to Any
        The row of osgprod.load_slices. With dry_run and projectname also the slices, events and bytes of these runs
        that nobody has begun, and the core hours that they will take (None: not known yet).

    Raises
    ------
    psycopg.Error
        Unknown project, nothing registered.
    """
    chosen = None if runs is None else list(runs)
    with connect() as connection, connection.transaction(force_rollback=dry_run):
        rows = call(connection, "load_slices", project=projectname, runs=chosen, start_over=start_over)
        counts = dict(rows[0])
        if dry_run and projectname is not None:
            work = call(connection, "foretell_work", project=projectname, runs=chosen, cores=cores)[0]
            counts |= {name: work[name] for name in ("slices", "events", "bytes", "core_hours")}
    return counts


def remove_project(projectname: str, force: bool = False, dry_run: bool = False) -> dict[str, Any]:
    """Remove a project with all that is recorded of it. Registered raw data files stay.

    Parameters
    ----------
    projectname : str
        The project.
    force : bool
        Also when work was done.
    dry_run : bool
        Only count what would be removed.

    Returns
    -------
    dict of str to int
        How many files, slices, blocks done, attempts and reports were removed, or would be.

    Raises
    ------
    psycopg.Error
        Unknown project, live attempts, or work that was done without force.
    """
    with connect() as connection:
        return call(connection, "remove_project", project=projectname, force=force, dry_run=dry_run)[0]
