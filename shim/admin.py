"""The operator's calls in Python, under the original's names. The command ``osgprod`` is in shim/commands.

Each is one call of one function of schema osgprod. Whoever prefers psql can do the same with
``SELECT * FROM osgprod.f(p_x => ...)``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import psycopg

from shim.__main__ import main
from shim.cli.terminal import Bar, working
from shim.database import call, connect
from shim.evio import scan
from shim.evio.errors import EvioError
from shim.evio.index import BlockIndex
from shim.registry import register_all

PAGE_FILES = 10_000
FILES_A_COMMIT = 64  # a commit waits for the disk, and takes longer than the rest


def add_project(
    projectname: str,
    subnet_pattern: str,
    workscript: str,
    xrootd_prefix: str,
    maxblockspercore: int,
    magic: str | None = None,
    dry_run: bool = False,
) -> int:
    """Makes a project and returns its number.

    Parameters: projectname       letters, digits and _ . + -; its folder below the document root as well
                subnet_pattern    who may ask: CIDR list, or an SQL LIKE pattern on the address
                workscript        file name of its work script in that folder
                xrootd_prefix     what stands before a file's path in a URL
                maxblockspercore  blocks of a slice for each core of the job [1 .. 1000000]
                magic             the secret of its jobs; None = nobody may work until it is set
                dry_run           only see whether the database would take it
    Errors:     psycopg.Error  the function's own code, message and hint; a name that is taken is refused
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


def load_rawdata_files(my_rawdata_dir: str | Path, dry_run: bool = False) -> dict[str, int]:
    """Registers all raw data files below a folder, or compares them with what is registered.

    Parameters: my_rawdata_dir  walked for hd_rawdata_RRRRRR_SSS.evio
                dry_run         compare only; nothing is changed
    Returns:    how many files were new, same, renewed (an older release registered them not quite right), differs
                (from what is registered: nothing is changed) and bad (can't be sliced); and without_bor: how many of
                the others have no begin-of-run record. Each that differs, is bad or has none is named on the standard
                error output
    Errors:     EvioError  the folder can't be read;  psycopg.Error  the database refuses
    """
    counts = {"new": 0, "same": 0, "renewed": 0, "differs": 0, "bad": 0, "without_bor": 0}
    paths = scan.find(my_rawdata_dir)
    with connect() as connection, Bar("indexing files", len(paths), "files") as bar:
        for status, what, index in _register(connection, paths, dry_run):
            counts[status] += 1
            if status in ("differs", "bad"):
                bar.say(what)
            if isinstance(index, BlockIndex) and not index.has_bor:
                counts["without_bor"] += 1
                bar.say(f"{index.path}: no begin-of-run record before the first physics event")
            bar.advance()
    return counts


def check_rawdata_files(my_rawdata_dir: str | Path) -> list[dict[str, Any]]:
    """Compares all raw data files below a folder with what is registered, both ways; changes nothing.

    Parameters: my_rawdata_dir  as for load_rawdata_files
    Returns:    a row for each fault: path and what: not registered, gone, how it differs, or why it can't be sliced
    Errors:     EvioError  the folder can't be read;  psycopg.Error  the database refuses
    """
    faults = []
    folder = os.path.abspath(my_rawdata_dir)  # noqa: PTH100  # a link keeps its name, as in read_index
    paths = scan.find(folder)
    with connect() as connection, Bar("checking files", len(paths), "files") as bar:
        gone = set(_registered_below(connection, folder)) - {str(path) for path in paths}
        for path, (status, what, _) in zip(paths, _register(connection, paths, dry_run=True), strict=True):
            if status != "same":
                what = "not registered" if status == "new" else what.removeprefix(f"{path}: ")
                faults.append({"path": str(path), "what": what})
            bar.advance()
    return faults + [{"path": path, "what": "registered, but not there"} for path in sorted(gone)]


def _registered_below(connection: psycopg.Connection[dict[str, Any]], folder: str) -> Iterator[str]:
    pattern, after = re.sub(r"([\\%_])", r"\\\1", folder) + "/%", None
    while rows := call(connection, "list_rawdata", path=pattern, limit=PAGE_FILES, after=after):
        yield from (row["path"] for row in rows)
        after = rows[-1]["file_id"]


def _register(
    connection: psycopg.Connection[dict[str, Any]], paths: Sequence[Path], dry_run: bool
) -> Iterator[tuple[str, str, BlockIndex | EvioError]]:
    """Registers files, or only compares them; gives what register() says of each, in order, and its index."""
    indexes = scan.indexes(paths)
    while group := list(islice(indexes, FILES_A_COMMIT)):
        with connection.transaction(force_rollback=dry_run):
            results = register_all(connection, group)
        yield from ((*result, index) for result, index in zip(results, group, strict=True))


def load_slices(
    runs: Iterable[int] | None = None,
    projectname: str | None = None,
    start_over: bool = False,
    dry_run: bool = False,
) -> dict[str, int]:
    """Makes registered files the work of a project; says how many files and blocks, and how many were before.

    Parameters: runs         run numbers; None = all registered files
                projectname  None = the only project that there is
                start_over   forget what was done of files loaded already, and hand them out anew
                dry_run      only tell what would be loaded
    Errors:     psycopg.Error  unknown project, nothing registered
    """
    chosen = None if runs is None else list(runs)
    with connect() as connection, connection.transaction(force_rollback=dry_run):
        rows = call(connection, "load_slices", project=projectname, runs=chosen, start_over=start_over)
    return dict(rows[0])


def archive_project(projectname: str, dry_run: bool = False) -> dict[str, int]:
    """Moves a production that has ended out of the hot tables, batch after batch, each a transaction of its own.

    A call that was killed is made good by the next one.

    Parameters: dry_run  only tell what would be moved
    Returns:    how many files, slices, attempts and reports were moved; waiting: attempts that ended so
                lately that they are moved only by a call in ten minutes
    Errors:     psycopg.Error  unknown project, or it has not ended
    """
    with connect() as connection:
        with working("counting"):
            whole = call(connection, "archive", project=projectname, dry_run=True)[0]
        if dry_run:
            return _archived([whole])
        batches: list[dict[str, Any]] = []
        with Bar("archiving", whole["slices"] + whole["attempts"], "rows") as bar:
            while not batches or batches[-1]["more"]:
                batches += call(connection, "archive", project=projectname)
                bar.advance(batches[-1]["slices"] + batches[-1]["attempts"])
    return _archived(batches)


def _archived(batches: list[dict[str, Any]]) -> dict[str, int]:
    names = ("files", "slices", "attempts", "reports", "waiting")
    return {name: sum(batch[name] or 0 for batch in batches) for name in names}


if __name__ == "__main__":
    main()
