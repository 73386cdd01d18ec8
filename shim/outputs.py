"""What a production delivered: its list, its comparison with storage, and its manifest."""

from __future__ import annotations

import csv
import json
import re
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import UTC, datetime
from typing import Any, Protocol, TextIO
from urllib.parse import unquote

import psycopg

from shim.database import call, connect, statement
from shim.errors import OperatorError
from shim.evio.remote import is_url
from shim.evio.scan import files_below
from shim.storage import Found, Storage
from shim.words import for_csv

ROWS_A_FETCH = 2000
REQUEUED_A_CALL = 200
FIRST_LOOK, FIRST_BAD = 100, 90  # so many bad ones among the first files: the fault is not the files'
FORMAT = 1  # of a manifest
# What condor/osgprod_exec.sh calls the tarball of a job's nth attempt, however it is delivered; without n: the first.
TARBALL = re.compile(r"(?:failed_)?job_([0-9]+)_([0-9]+)(?:\.([0-9]+))?\.tar\.gz")


class Progress(Protocol):
    """Shows how far it is."""

    def advance(self, count: int = 1) -> None:
        """So many more are done."""


@contextmanager
def listed(
    connection: psycopg.Connection[dict[str, Any]], projectname: str, **choice: object
) -> Iterator[psycopg.ServerCursor[dict[str, Any]]]:
    """Give the rows of list_outputs one by one, in constant memory, as of one moment.

    Parameters
    ----------
    connection
        An open connection.
    projectname : str
        The project.
    **choice : object
        Further arguments of osgprod.list_outputs without the p_; None: its default.

    Raises
    ------
    psycopg.Error
        Unknown project.
    """
    arguments = {
        "project": projectname,
        **{name: value for name, value in choice.items() if value is not None},
    }
    query, values = statement("list_outputs", arguments)
    with connection.transaction(), connection.cursor(name="outputs") as cursor:
        cursor.itersize = ROWS_A_FETCH
        cursor.execute(query, values)
        yield cursor


def write_csv(rows: psycopg.ServerCursor[dict[str, Any]], file: TextIO) -> int:
    """Write rows as CSV with a header, and return their number."""
    count = 0
    writer = csv.DictWriter(file, [column.name for column in rows.description or ()], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: for_csv(_plain(value)) for name, value in row.items()})
        count += 1
    return count


def write_json(rows: Iterable[Mapping[str, Any]], file: TextIO) -> int:
    """Write rows as one JSON array, one object a line, and return their number."""
    count = 0
    for count, row in enumerate(rows, 1):
        file.write("[\n" if count == 1 else ",\n")
        file.write(json.dumps({name: _plain(value) for name, value in row.items()}))
    file.write("\n]\n" if count else "[]\n")
    return count


def write_urls(rows: Iterable[Mapping[str, Any]], file: TextIO) -> int:
    """Write the URLs of rows that have one, one a line, and return their number."""
    count = 0
    for row in rows:
        if row["url"]:
            file.write(row["url"] + "\n")
            count += 1
    return count


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value


def check(
    projectname: str,
    runs: list[int] | None,
    storage: Storage,
    requeue: bool,
    report: Callable[[dict[str, Any]], None],
    progress: Callable[[str, int, str], AbstractContextManager[Progress]],
    threads: int = 16,
    what: str | None = None,
    dry_run: bool = False,
    confirm: Callable[[int, int], None] = lambda _bad, _files: None,
    every: bool = False,
    *,
    again_s: float,
) -> dict[str, int]:
    """Compare the delivered files with what storage says of them.

    Merged files are compared, and the outputs of slices that are in no merged file yet: the others are needed no more.
    Files that seem to be gone or to differ are looked at again when all have been: an overloaded cache may answer
    404 for a while. Nothing is requeued before that. What does not count any more then is left alone.

    Parameters
    ----------
    projectname : str
        The project.
    runs : list of int or None
        Run numbers; None: all.
    storage : Storage
        Asks storage.
    requeue : bool
        Requeue the slices and merges whose outputs are gone or differ.
    report : callable
        Is called with each row that is bad or unknown, which then has ``fault``.
    progress : callable
        Shows how far it is.
    threads : int
        Questions at a time [1 ..].
    what : str or None
        merged or slices; None: as above.
    dry_run : bool
        With requeue: only count what would be requeued.
    confirm : callable
        Is called before anything is requeued, with the numbers of bad files and of all; raises to prevent it.
    every : bool
        Go on when nearly all of the first files are bad.
    again_s : float
        How long to wait before the second look [s]; not where all of these files are local.

    Returns
    -------
    dict of str to int
        How many files are same, bad (gone or different at both looks), unknown (storage did not say), and how many
        slices and merges were requeued. Files that were gone, and are in a merged file by then, are not counted.

    Raises
    ------
    OperatorError
        With requeue: nearly all of the first files are bad. Nothing was requeued.
    psycopg.Error
        Unknown project.
    """
    counts = {"same": 0, "bad": 0, "unknown": 0, "requeued": 0}

    def settle(row: dict[str, Any], found: Found) -> None:
        counts["same" if not found.fault else "bad" if found.is_known else "unknown"] += 1
        if found.fault:
            report(row | {"fault": found.fault})

    suspects: list[dict[str, Any]] = []
    with connect() as connection:
        total = sum(1 for _ in _to_check(connection, projectname, runs, what))
        rows = _to_check(connection, projectname, runs, what)
        with (
            progress("comparing outputs", total, "files") as bar,
            closing(_asked(storage, rows, threads)) as asked,
        ):
            for looked, (row, found) in enumerate(asked, 1):
                if found.fault and found.is_known:
                    suspects.append(row)
                else:
                    settle(row, found)
                bar.advance()
                if requeue and not every and looked == FIRST_LOOK and len(suspects) >= FIRST_BAD:
                    raise OperatorError(
                        f"{len(suspects)} of the first {looked} files are gone or differ, so nothing was requeued",
                        f"{suspects[-1]['url']} {found.fault}: mount the storage here, or give its server a token"
                        " (--token-file); if the files are gone indeed: --all",
                    )
    if not suspects:
        return counts
    if any(is_url(row["url"]) for row in suspects):
        time.sleep(again_s)
    bad: list[dict[str, Any]] = []
    with (
        progress("looking again", len(suspects), "files") as bar,
        closing(_asked(storage, suspects, threads)) as asked,
    ):
        for row, found in asked:
            if found.fault and found.is_known:
                bad.append(row | {"fault": found.fault})
            else:
                settle(row, found)
            bar.advance()
    bad = _still_to_check(bad, projectname, what)
    for row in bad:
        settle(row, Found(row["fault"]))
    if bad and requeue:
        if not dry_run:
            confirm(len(bad), total)
        counts["requeued"] = _requeue(projectname, bad, dry_run)
    return counts


def _asked(
    storage: Storage, rows: Iterable[dict[str, Any]], threads: int
) -> Generator[tuple[dict[str, Any], Found]]:
    """Give rows of list_outputs, in order, each with what storage says of its file."""
    pool = ThreadPoolExecutor(threads)
    try:
        asked: deque[tuple[dict[str, Any], Future[Found]]] = deque()
        for row in rows:
            asked.append((row, pool.submit(storage.compare, row["url"], row["bytes"], row["adler32"])))
            if len(asked) >= 4 * threads:
                first, future = asked.popleft()
                yield first, future.result()
        for first, future in asked:
            yield first, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _still_to_check(bad: list[dict[str, Any]], projectname: str, what: str | None) -> list[dict[str, Any]]:
    """Those that count still: a merge that is done since may have removed its inputs (merge_cleanup)."""
    if not bad:
        return []
    runs = sorted({row["run"] for row in bad})
    with connect() as connection:
        counting = {_attempt(row) for row in _to_check(connection, projectname, runs, what)}
    return [row for row in bad if _attempt(row) in counting]


def _attempt(row: Mapping[str, Any]) -> tuple[int, int, int]:
    return row["cluster"], row["process"], row["nstart"]


def _requeue(projectname: str, bad: list[dict[str, Any]], dry_run: bool) -> int:
    """Requeue the slices and merges of bad outputs, and return how many."""
    lost = {
        _attempt(row): {
            "cluster": row["cluster"], "process": row["process"], "nstart": row["nstart"], "reason": row["fault"]
        }
        for row in bad
    }  # fmt: skip
    attempts, count = list(lost.values()), 0
    with connect() as connection:
        for start in range(0, len(attempts), REQUEUED_A_CALL):
            part = json.dumps(attempts[start : start + REQUEUED_A_CALL])
            count += len(
                call(connection, "lose_outputs", project=projectname, attempts=part, dry_run=dry_run)
            )
    return count


def orphans(projectname: str, folder: str, hours: float, report: Callable[[str], None]) -> dict[str, int]:
    """Find the files of a folder that no report names: outputs of attempts that a failover or a restore lost.

    A file is known by its name, which is another one for each attempt, when any report of the project names it, also
    that of a failure or one that came too late; or when it is named after an attempt that has reported. Nothing is
    changed.

    Parameters
    ----------
    projectname : str
        The project, which is the only one that delivers there.
    folder : str
        A path, or a URL root://; its tree is walked.
    hours : float
        Leave out files that changed within so many hours: their reports may be under way.
    report : callable
        Is called with the path or URL of each orphan.

    Returns
    -------
    dict of str to int
        How many files were looked at, and how many of them are orphans.

    Raises
    ------
    EvioError
        The folder can't be read.
    OperatorError
        A success names no URL, and the project has no output_home: its outputs would be taken for orphans.
    psycopg.Error
        Unknown project.
    """
    before = time.time() - 3600 * hours
    # The folder first: files that are delivered and reported in between are on record then.
    found = [(url, changed) for url, changed in files_below(folder) if changed <= before]
    known: set[str] = set()
    attempts: set[tuple[int, int, int]] = set()
    with connect() as connection, listed(connection, projectname, any=True) as rows:
        for row in rows:
            attempts.add(_attempt(row))
            if row["url"]:
                known.add(_name(row["url"]))
            elif row["state"] in ("current", "replaced", "lost"):
                raise OperatorError(
                    f"outputs of project {projectname} have no URL, so their files would be taken for orphans",
                    f"osgprod project set {projectname} output_home=URL: where HTCondor delivers them",
                )
    counts = {"files": len(found), "orphans": 0}
    for url, _ in found:
        name = _name(url)
        if name not in known and _attempt_of(name) not in attempts:
            counts["orphans"] += 1
            report(url)
    return counts


def _name(url: str) -> str:
    """The name of a file, from its path or URL."""
    path = re.sub(r"[?#].*", "", url, flags=re.DOTALL) if is_url(url) else url
    return unquote(path).rpartition("/")[2]


def _attempt_of(name: str) -> tuple[int, int, int] | None:
    """Cluster, process and number of the attempt that a tarball is named after; None = it is not named so."""
    found = TARBALL.fullmatch(name)
    return (int(found[1]), int(found[2]), int(found[3] or 1)) if found else None


def _to_check(
    connection: psycopg.Connection[dict[str, Any]], projectname: str, runs: list[int] | None, what: str | None
) -> Iterator[dict[str, Any]]:
    with listed(connection, projectname, runs=runs, what=what or "final") as rows:
        yield from rows


def manifest(projectname: str, runs: list[int] | None, file: TextIO) -> dict[str, int]:
    """Write what a production delivered as one JSON object, file by file, in constant memory but for one raw data file.

    Parameters
    ----------
    projectname : str
        The project; it may be empty.
    runs : list of int or None
        Run numbers; None: all.
    file : TextIO
        Where to.

    Returns
    -------
    dict of str to int
        How many raw data files (or runs that are merged as a whole) and outputs it names; bytes of the merged files.
    """
    counts = {"files": 0, "outputs": 0, "bytes": 0}
    with connect() as connection:
        delivery = call(connection, "delivery", project=projectname)[0]
        versions = call(connection, "list_versions", project=projectname)
        head = {
            "format": FORMAT,
            "project": projectname,
            "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "runs": runs,
            "merge_by": delivery["merge_by"],
            "is_delivered": delivery["is_delivered"],
            "versions": [{name: _plain(value) for name, value in row.items()} for row in versions],
        }
        file.write(json.dumps(head)[:-1] + ', "files": [')
        with listed(connection, projectname, runs=runs) as rows:
            of_file: list[dict[str, Any]] = []
            for row in rows:
                if of_file and (row["run"], row["seqno"]) != (of_file[0]["run"], of_file[0]["seqno"]):
                    _write_file(of_file, counts, file)
                    of_file = []
                of_file.append(row)
            if of_file:
                _write_file(of_file, counts, file)
    file.write("\n]}\n")
    return counts


def _write_file(rows: list[dict[str, Any]], counts: dict[str, int], file: TextIO) -> None:
    """Write the part of a manifest that is about one raw data file, or one run."""
    merged = [_of_manifest(row) for row in rows if row["merge_id"] is not None]
    slices = [
        {"blocks": [row["block1"], row["block2"]], **_of_manifest(row)}
        for row in rows
        if row["merge_id"] is None
    ]
    part = {
        "run": rows[0]["run"],
        "seqno": rows[0]["seqno"],
        "path": rows[0]["path"] if rows[0]["seqno"] is not None else None,
        "merged": merged,
        "slices": slices,
    }
    file.write((",\n" if counts["files"] else "\n") + json.dumps(part))
    counts["files"] += 1
    counts["outputs"] += len(rows)
    counts["bytes"] += sum(output["bytes"] or 0 for output in merged)


def _of_manifest(row: Mapping[str, Any]) -> dict[str, Any]:
    names = (
        "kind",
        "url",
        "bytes",
        "adler32",
        "events",
        "script",
        "digest",
        "exec_version",
        "image",
        "software",
    )
    return {name: row[name] for name in names} | {"reported_at": _plain(row["reported_at"])}
