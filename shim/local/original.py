"""Takes a production over from the original osgprod of 2020: its tables projects, rawdata, jobs and slices.

What counts as done is decided by osgprod.import_file in our database. Here the original's tables are read, and nothing
in them is changed. They have no functions, so there is SQL on tables here.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from shim.admin import MakeProgress
from shim.database import call, connect
from shim.errors import UNREACHABLE, WRONG, OperatorError
from shim.evio.errors import EvioError
from shim.evio.index import read_index
from shim.registry import register

Connection = psycopg.Connection[dict[str, Any]]
COLUMNS = ("status", "files", "blocks_done", "blocks_left", "attempts")
NOT_TAKEN = ("differs", "unknown", "double")  # statuses of files that are not taken over

PROJECTS = "SELECT id, projectname, workersubnet, workscript, xrootdprefix, maxblockspercore FROM projects ORDER BY id"
# Files with a slice of this project's jobs, or with one that no job has.
FILES = """
SELECT count(*) AS files FROM rawdata r WHERE EXISTS (
    SELECT FROM slices s LEFT JOIN jobs j ON j.id = s.ijob WHERE s.iraw = r.id AND (j.id IS NULL OR j.project = %(id)s))
"""
# The original puts the time of Greenwich, without a zone, into columns with one: its clock was read in the zone of the
# session, and is off by that. Read back in the same zone, and called what it is, it is right again.
SLICES = """
SELECT r.path, r.nbytes, r.nblocks, s.block1, s.block2, j.cluster, j.process, j.nstarts AS nstart, j.ncpus AS cpus,
       j.worker, (j.starttime AT TIME ZONE current_setting('TimeZone')) AT TIME ZONE 'UTC' AS started_at,
       (j.endtime AT TIME ZONE current_setting('TimeZone')) AT TIME ZONE 'UTC' AS ended_at,
       j.exitcode AS exit_code, h.slices_of_job
  FROM rawdata r
  JOIN slices s ON s.iraw = r.id
  LEFT JOIN jobs j ON j.id = s.ijob AND j.project = %(id)s
  LEFT JOIN (SELECT t.ijob, count(*) AS slices_of_job FROM slices t GROUP BY t.ijob) h ON h.ijob = j.id
 WHERE EXISTS (SELECT FROM slices u LEFT JOIN jobs k ON k.id = u.ijob
                WHERE u.iraw = r.id AND (k.id IS NULL OR k.project = %(id)s))
 ORDER BY r.run, r.seqno, r.path, s.block1, s.id
"""

# osgprod_bind.py of December 2020: one row for a file that it merged, or could not. The exit code is 0, or minus the
# number of bad slices, which details lists as block1,block2 joined by ':'.
BINDINGS = """
SELECT r.path, (b.starttime AT TIME ZONE current_setting('TimeZone')) AT TIME ZONE 'UTC' AS started_at,
       (b.endtime AT TIME ZONE current_setting('TimeZone')) AT TIME ZONE 'UTC' AS ended_at, b.exitcode,
       substring(b.details FROM '[0-9]+,[0-9]+(?::[0-9]+,[0-9]+)*') AS bad_inputs
  FROM bindings b JOIN rawdata r ON r.id = b.iraw
 WHERE b.endtime IS NOT NULL AND b.exitcode IS NOT NULL ORDER BY r.run, r.seqno
"""


def take_over(
    source: str, project: str, magic: str | None, dry_run: bool, progress: MakeProgress
) -> list[dict[str, Any]]:
    """Take one project over, with its files, their finished blocks, and its jobs.

    A repeated call continues where one was broken off; files that were taken over already stay as they are.

    Parameters
    ----------
    source : str
        libpq's connection string of the original's database.
    project : str
        Its name in both databases; it is made in ours when it isn't there.
    magic : str or None
        The secret of its jobs, for a project that is made; None: to be set later.
    dry_run : bool
        Only tell what would be taken over.
    progress : callable
        Shows how far it is; files that can't be taken over are named there.

    Returns
    -------
    list of dict
        A row a status: files, blocks done, blocks left, attempts.

    Raises
    ------
    OperatorError
        The original has no such project, or the tables are not the original's.
    psycopg.Error
        One of the databases refuses.
    """
    with contextlib.ExitStack() as stack:
        there = stack.enter_context(_connect(source))
        here = stack.enter_context(connect())
        stack.enter_context(here.transaction(force_rollback=True) if dry_run else contextlib.nullcontext())
        original = _project(there, project)
        _make_project(here, original, magic)
        number = there.execute(FILES, original).fetchone()
        bar = stack.enter_context(progress("taking over files", number["files"] if number else 0, "files"))
        counts: dict[str, dict[str, Any]] = {}
        for path, rows in _files(there, original):
            answer = _take_file(here, project, path, rows)
            if answer["status"] in NOT_TAKEN:
                bar.say(f"{path}: {answer['why']}")
            sums = counts.setdefault(
                answer["status"],
                {"status": answer["status"], "files": 0, "blocks_done": 0, "blocks_left": 0, "attempts": 0},
            )
            sums["files"] += 1
            for name in ("blocks_done", "blocks_left", "attempts"):
                sums[name] += answer[name] or 0
            bar.advance()
        for status, number_of_files in _take_merges(there, here, project).items():
            counts[status] = {
                "status": status,
                "files": number_of_files,
                "blocks_done": 0,
                "blocks_left": 0,
                "attempts": 0,
            }
    return list(counts.values())


def _take_merges(there: Connection, here: Connection, project: str) -> dict[str, int]:
    """Take over which files were merged, and which outputs were bad; count the files by what became of it."""
    counts: dict[str, int] = {}
    table = there.execute("SELECT to_regclass('bindings') AS name").fetchone()
    if table is None or table["name"] is None:
        return counts  # the binder came a month after the first release
    for row in there.execute(BINDINGS).fetchall():
        try:
            with here.transaction():
                answer = call(
                    here,
                    "import_merge",
                    project=project,
                    path=row["path"],
                    started_at=row["started_at"],
                    ended_at=row["ended_at"],
                    bad_inputs=row["bad_inputs"] if row["exitcode"] else None,
                )[0]["import_merge"]
        except psycopg.Error as error:
            if error.sqlstate != "OG302":  # a file of another project
                raise
            continue
        status = {"done": "merged", "requeued": "bad inputs", "unchanged": "merge unchanged"}[answer]
        counts[status] = counts.get(status, 0) + 1
    return counts


def _connect(source: str) -> Connection:
    try:
        connection = psycopg.connect(source, row_factory=dict_row, client_encoding="UTF8")
        connection.execute("SET DateStyle = 'ISO'")  # its time zone is that of its times
        return connection
    except psycopg.Error as error:
        is_unreachable = isinstance(error, psycopg.OperationalError)
        raise OperatorError(
            f"the original's database: {str(error).splitlines()[0]}",
            "--from or OSGPROD_ORIGINAL_DSN names it: host=db.example.org dbname=original user=me",
            exit_code=UNREACHABLE if is_unreachable else WRONG,
        ) from error


def _project(there: Connection, name: str) -> dict[str, Any]:
    try:
        projects = there.execute(PROJECTS).fetchall()
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
        raise OperatorError(
            f"these are not the original's tables: {error.diag.message_primary}",
            "name the database that the original's osgprod_db.py has made",
        ) from error
    for project in projects:
        if project["projectname"] == name:
            return project
    names = ", ".join(project["projectname"] for project in projects) or "none at all"
    raise OperatorError(f"the original has no project {name!r}", f"it has {names}")


def _make_project(here: Connection, original: dict[str, Any], magic: str | None) -> None:
    if original["projectname"] in {row["project"] for row in call(here, "progress")}:
        return
    call(
        here,
        "add_project",
        project=original["projectname"],
        subnet_pattern=original["workersubnet"],
        workscript=original["workscript"],
        xrootd_prefix=original["xrootdprefix"],
        maxblockspercore=original["maxblockspercore"],
        magic=magic,
    )


def _files(there: Connection, original: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    with there.cursor("osgprod_slices") as cursor:
        cursor.execute(SLICES, original)
        for path, rows in groupby(cursor, key=lambda row: row["path"]):
            yield path, list(rows)


def _take_file(here: Connection, project: str, path: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Hands one file to the database; one that is not registered yet is read and registered, where it can be."""
    names = ("block1", "block2", "cluster", "process", "nstart", "cpus", "worker", "started_at", "ended_at",
             "exit_code", "slices_of_job")  # fmt: skip
    arguments = {
        "project": project,
        "path": path,
        "size_bytes": rows[0]["nbytes"],
        "nblocks": rows[0]["nblocks"],
        "slices": json.dumps([{name: row[name] for name in names} for row in rows], default=str),
    }
    answer = call(here, "import_file", **arguments)[0]
    why = "not what the original knew: size or number of blocks differ"
    if answer["status"] == "unknown":
        try:
            register(here, read_index(Path(path)))
            answer = call(here, "import_file", **arguments)[0]
        except EvioError as error:
            why = f"not registered, and {error}"
    if answer["status"] == "double":
        unload = f"osgprod slices unload {arguments['project']} --path PATH"
        why = f"the project has its run and number at another path: {unload} takes that file out"
    return {**answer, "why": why}
