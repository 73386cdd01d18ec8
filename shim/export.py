"""The record of a project's work, as CSV files: to keep it elsewhere before the project is removed."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from shim.database import call, connect
from shim.errors import OperatorError

# What an export holds of each table: no token, and no digest of one.
EXPORTS: dict[LiteralString, LiteralString] = {
    "files": "SELECT f.*, w.path, w.size_bytes, w.first_block, w.nblocks FROM osgprod_data.loaded_files f"
    " JOIN osgprod_data.rawdata w USING (rawdata_id, run, seqno) WHERE f.project_id = {} ORDER BY f.run, f.seqno",
    "slices": "SELECT * FROM osgprod_data.slices WHERE project_id = {} ORDER BY run, seqno, block1",
    "attempts": "SELECT project_id, cluster, process, nstart, rawdata_id, block1, block2, opened_at, cpus,"
    " started_at, client, host, site, schedd, qdate, job_start, follows, time_left_s, merge_id, version_id, events"
    " FROM osgprod_data.attempts"
    " WHERE project_id = {}"
    " ORDER BY cluster, process, nstart",
    "reports": "SELECT * FROM osgprod_data.reports WHERE project_id = {} ORDER BY cluster, process, nstart",
    "merges": "SELECT * FROM osgprod_data.merges WHERE project_id = {} ORDER BY merge_id",
    "outputs": "SELECT * FROM osgprod_data.outputs WHERE project_id = {} ORDER BY cluster, process, nstart, n",
    "lost_outputs": "SELECT * FROM osgprod_data.lost_outputs WHERE project_id = {} ORDER BY cluster, process, nstart",
    "versions": "SELECT * FROM osgprod_data.versions WHERE project_id = {} ORDER BY version_id",
}


def export_project(projectname: str, folder: Path) -> dict[str, int]:
    """Write the record of a project's work to a new folder: a CSV file for each of EXPORTS, and the settings.

    Parameters
    ----------
    projectname : str
        The project.
    folder : Path
        Is made; it is there only when it is whole.

    Returns
    -------
    dict of str to int
        Rows of each file.

    Raises
    ------
    OperatorError
        The folder is there already, or can't be written.
    psycopg.Error
        Unknown project.
    """
    if folder.exists():
        raise OperatorError(f"{folder} is there already", "name a folder that is not there yet")
    part = folder.with_name(folder.name + ".part")
    try:
        part.mkdir(parents=True)
    except FileExistsError:
        raise OperatorError(
            f"{part} is there already, and an export is written there until it is whole",
            "another export runs, or was killed: look into that folder, or name another one",
        ) from None
    except OSError as error:
        raise _not_written(folder, error) from None
    try:
        with connect() as connection:
            # One snapshot for all files. Jobs continue during the export.
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            with connection.transaction():
                manifest = _export(connection, projectname, part)
        (part / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        part.rename(folder)
    except BaseException as error:  # Ctrl-C, too: the folder is ours
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError):
            raise _not_written(folder, error) from None
        raise
    return {name: table["rows"] for name, table in manifest["files"].items()}


def _not_written(folder: Path, error: OSError) -> OperatorError:
    return OperatorError(
        f"{folder} can't be written: {error.strerror}", "make room there, or name a folder that you can write"
    )


def _export(connection: psycopg.Connection[dict[str, Any]], projectname: str, folder: Path) -> dict[str, Any]:
    settings = call(connection, "set_project", project=projectname, settings="{}")
    row = connection.execute(
        "SELECT project_id, now() AS at FROM osgprod_data.projects WHERE name = %s", [projectname]
    ).fetchone()
    assert row
    manifest: dict[str, Any] = {
        "project": projectname,
        "exported_at": row["at"].isoformat(),
        "settings": {setting["setting"]: setting["value"] for setting in settings},
        "files": {},
    }
    for name, query in EXPORTS.items():
        rows, digest = -1, hashlib.sha256()  # the first line is the header
        copy = sql.SQL("COPY (" + query + ") TO STDOUT (FORMAT csv, HEADER)").format(row["project_id"])
        with (folder / f"{name}.csv").open("wb") as file, connection.cursor().copy(copy) as lines:
            for line in lines:
                file.write(line)
                digest.update(line)
                rows += 1
        manifest["files"][name] = {"rows": rows, "sha256": digest.hexdigest()}
    return manifest
