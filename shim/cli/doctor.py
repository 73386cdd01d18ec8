"""``osgprod doctor``: looks for faults in the database and in its surroundings."""

from __future__ import annotations

import asyncio
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg

from shim import migrate, replica
from shim.config import Settings
from shim.database import HOST_TIMEOUT_S, POOLER_HINT, DatabaseError, call, connect, pooling
from shim.words import counted, noun
from shim.workscript import TemplateError, TemplateFolder

Finding = dict[str, Any]
CLOCK_S = 2.0
FREE_BYTES = 1 << 30
CONNECT_S = 5.0
FILES_AHEAD = 1000
OSDF_HOST = "osg-htc.org"
PORTS = {
    **dict.fromkeys(("root", "roots", "xroot", "xroots"), 1094),
    **dict.fromkeys(("http", "dav"), 80),
    **dict.fromkeys(("https", "davs", "osdf", "pelican"), 443),
}


def examine() -> list[Finding]:
    """Returns a row for each thing looked at: what, is_well, found, and advice where it is not well.

    Raises
    ------
    psycopg.OperationalError
        The database can't be reached.
    """
    with connect() as connection:
        findings = [_finding("database", True, f"reached as {connection.info.user}", "")]
        try:
            findings.append(_pooler())
            if not findings[-1]["is_well"]:
                return findings  # through such a pooler every other answer may be wrong
            findings.append(_up_to_date())
            if not findings[-1]["is_well"]:
                return findings  # nothing else can be asked
            findings.append(_clock(connection))
            findings.append(_disk("disk of the work scripts", Settings.read().document_root))
            findings.append(_database_disk(connection))
            findings += _replica()
            findings += call(connection, "diagnose")
            for row in call(connection, "progress"):
                findings += _project(connection, row["project"])
        except psycopg.errors.InsufficientPrivilege:
            advice = f"GRANT osgprod_operator TO {connection.info.user}, or log in as an operator"
            findings.append(_finding("role", False, f"{connection.info.user} is not an operator", advice))
    return findings


def _finding(what: str, is_well: bool, found: str, advice: str) -> Finding:
    return {"what": what, "is_well": is_well, "found": found, "advice": advice}


def _up_to_date() -> Finding:
    what = "version of the database"
    try:
        pending = migrate.pending()
    except DatabaseError as error:
        return _finding(what, False, str(error), error.hint)
    found = "tables and functions are those of this version"
    if pending:
        more = f", and {len(pending) - 1} more" if len(pending) > 1 else ""
        found = f"older than this program: {pending[0]}{more}"
    return _finding(what, not pending, found, "osgprod migrate brings it up to date")


def _pooler() -> Finding:
    mode = asyncio.run(pooling(Settings.read().dsn.text))
    found = f"through a connection pooler in {mode} mode" if mode else "to the server itself"
    return _finding("connection", mode != "transaction", found, POOLER_HINT)


def _replica() -> list[Finding]:
    troubles: list[str] = []
    if not Settings.read().read_dsn:
        return []
    fit = replica.look("alive", {}, troubles.append) is not None
    well = "it answers, with fresh data" if fit else "it refuses this login, or is of another version"
    cause, advice = ("", "") if fit else _why_behind()
    found = "; ".join(filter(None, (*troubles, cause))) or well
    return [_finding("replica", fit, found, advice)]


def _why_behind() -> tuple[str, str]:
    """Why the replica has stopped to follow, as far as it says so itself, and what to do."""
    try:
        with connect(Settings.read().read_dsn.text, HOST_TIMEOUT_S) as connection:
            row = connection.execute(
                "SELECT pg_is_in_recovery() AS is_replica, EXISTS (SELECT FROM pg_stat_wal_receiver) AS receives,"
                " CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() END AS is_paused"
            ).fetchone()
    except psycopg.Error:
        row = None
    if row and not row["is_replica"]:
        return "it follows no primary", "make it a replica again: docs/operations.md has the command"
    if row and row["is_paused"]:
        return "its replay is paused", "SELECT pg_wal_replay_resume() there"
    if row and not row["receives"]:
        advice = "read its log; where a WAL segment has been removed, make it again: docs/operations.md has the command"
        return "it receives nothing from the primary", advice
    return "", "see in pg_stat_replication of the primary whether it follows; OSGPROD_READ_DSN names it"


def _clock(connection: psycopg.Connection[dict[str, Any]]) -> Finding:
    """A shim's clock matters only to its log; an operator's to what they read of times on the dashboard."""
    before = time.time()
    there = call(connection, "alive")[0]["alive"].timestamp()
    off = there - (before + time.time()) / 2
    return _finding(
        "clock", abs(off) < CLOCK_S, f"{off:+.2f} s from the server's", "switch NTP on at both machines"
    )


def _database_disk(connection: psycopg.Connection[dict[str, Any]]) -> Finding:
    """Room beside the database: seen where it is on this machine, by a login that may know its folder."""
    what, host = "disk of the database", connection.info.host
    unseen = _finding(
        what, True, "can't be seen from here: run df on the database's machine, and watch it there", ""
    )
    if not host.startswith("/") and host not in ("localhost", "127.0.0.1", "::1"):
        return unseen
    try:
        row = connection.execute("SELECT current_setting('data_directory') AS folder").fetchone()
        return _disk(what, Path(row["folder"])) if row and Path(row["folder"]).exists() else unseen
    except (psycopg.errors.InsufficientPrivilege, PermissionError):
        return unseen


def _disk(what: str, folder: Path) -> Finding:
    advice = f"make room on the file system of {folder}"
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return _finding(
            what,
            False,
            f"{folder}: {error.strerror}",
            "OSGPROD_DOCUMENT_ROOT names the folder of the projects",
        )
    return _finding(what, free > FREE_BYTES, f"{folder}: {free / 1e9:.1f} GB free", advice)


def _project(connection: psycopg.Connection[dict[str, Any]], name: str) -> Iterator[Finding]:
    rows = call(connection, "set_project", project=name, settings="{}")
    settings = {row["setting"]: row["value"] for row in rows}
    yield _template(name, "slice", settings["workscript"])
    if settings["merge_by"] != "none" and settings["mergescript"]:
        yield _template(name, "merge", settings["mergescript"])
    doors = call(connection, "list_doors", project=name)
    for number, door in enumerate(doors, 1):
        yield _door(name, f"files of {name}{f', door {number}' if len(doors) > 1 else ''}", door)
    yield _tape(connection, name)


def _template(name: str, task: str, script: str) -> Finding:
    path = Settings.read().document_root / name / script
    what = "work script" if task == "slice" else "merge script"
    advice = f"put the project's {what} at {path}, readable by the shim"
    try:
        TemplateFolder(Settings.read().document_root).load(name, script, task)
    except TemplateError as error:
        return _finding(f"{what} of {name}", False, str(error), advice)
    return _finding(f"{what} of {name}", True, str(path), advice)


def _tape(connection: psycopg.Connection[dict[str, Any]], name: str) -> Finding:
    """What storage said last of the files that come next, see osgprod rawdata check-online."""
    coming = call(connection, "list_next_files", project=name, limit=FILES_AHEAD)
    known = [row["locality"] for row in coming if row["locality"]]
    away = sum(locality != "online" for locality in known)
    if not known:
        return _finding(f"tape of {name}", True, "storage was not asked, or can't tell", "")
    ahead = f"of the next {counted(len(coming), 'file')}"
    found = f"{away} {ahead} {noun(away, 'is', 'are')} on tape only"
    if "gone" in known:
        gone = known.count("gone")
        found = f"{gone} {ahead} {noun(gone, 'is', 'are')} gone, {away - gone} on tape only"
    urls = f"osgprod rawdata list --project {name} --next 50 --urls"
    advice = f"stage them ({urls}), then osgprod rawdata check-online {name}"
    return _finding(f"tape of {name}", away == 0, found, advice)


def _door(name: str, what: str, door: dict[str, Any]) -> Finding:
    prefix = door["prefix"]
    if door["problem"]:
        advice = f"osgprod project set {name} xrootd_prefix=URL, like root://server.example.org/ or https://server.example.org"
        return _finding(what, False, f"{prefix} {door['problem']}", advice)
    url = urlsplit(prefix)
    host = OSDF_HOST if url.scheme == "osdf" else url.hostname
    if not host or url.scheme == "file":
        return _finding(what, True, f"paths of a file system{f' below {prefix}' if prefix else ''}", "")
    try:
        port = PORTS[url.scheme] if url.scheme == "osdf" else url.port or PORTS[url.scheme]
        with socket.create_connection((host, port), CONNECT_S):
            return _finding(what, True, f"{host} port {port} answers", "")
    except (OSError, ValueError) as error:
        advice = (
            f"repair the server of {prefix}, or name another: osgprod project set {name} xrootd_prefix=URL"
        )
        reason = getattr(error, "strerror", None) or error
        return _finding(what, False, f"{host}: {reason}", advice)
