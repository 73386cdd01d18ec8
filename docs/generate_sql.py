#!/usr/bin/env python3
"""Writes docs/sql.md from a freshly migrated database: signatures, comments, headers, and examples whose
output is what the functions really answered. ``make docs`` runs it; a test fails when docs/sql.md is not current.

Times, tokens and seconds differ from run to run: they are replaced by fixed ones, everything else is as it came.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file

from shim.cli.terminal import records, table
from shim.database import connect
from shim.local.embedded import temporary_server
from shim.migrate import migrate
from shim.snapshot import function_files
from shim.version import SQL_FOLDER

Connection = psycopg.Connection[dict[str, Any]]

# In this order: each stands on those before. register_rawdata makes three files of 4 blocks of work.
WORKER = "p_project => 'spring-2026', p_magic => 'xyzzy', p_client => '10.1.2.3'"
AS_JSON = '"project": "spring-2026", "magic": "xyzzy", "client": "10.1.2.3", "cluster": 4711'
REGISTER = """SELECT * FROM osgprod.register_rawdata(
    p_path => '/data/hd_rawdata_071728_{seqno:03d}.evio', p_run => 71728, p_seqno => {seqno}, p_size_bytes => 5032,
    p_nblocks => 5, p_first_block => 1, p_byte_order => 'big', p_has_trailer => true, p_last_has_bit => false,
    p_trailer => '\\x{trailer}', p_preamble => '[{{"from_block": 1, "offset": 0, "bytes": 1000, "events": 1}}]',
    p_block_index => '\\x{index}')"""
EXAMPLES: list[tuple[str, str]] = [
    ("add_project", """SELECT osgprod.add_project(
    p_project => 'spring-2026', p_subnet_pattern => '10.0.0.0/8', p_workscript => 'osgprod_work.bash',
    p_xrootd_prefix => 'https://data.example.org:1094', p_maxblockspercore => 2)"""),
    ("set_magic", "SELECT osgprod.set_magic(p_project => 'spring-2026', p_magic => 'xyzzy', p_overlap_s => 86400)"),
    ("set_project", """SELECT * FROM osgprod.set_project(p_project => 'spring-2026',
    p_settings => '{"max_failures": 1, "backoff_s": 0}') WHERE setting LIKE 'max%'"""),
    ("register_rawdata", ""),
    ("list_rawdata", "SELECT * FROM osgprod.list_rawdata(p_runs => '{71728}', p_limit => 2)"),
    ("forget_rawdata", "SELECT * FROM osgprod.forget_rawdata(p_path => '/data/hd_rawdata_071727_%')"),
    ("load_slices", "SELECT * FROM osgprod.load_slices(p_project => 'spring-2026', p_runs => '{71728}')"),
    ("jobs_needed", "SELECT * FROM osgprod.jobs_needed(p_project => 'spring-2026', p_cores => 4)"),
    ("foretell_work", "SELECT * FROM osgprod.foretell_work(p_project => 'spring-2026', p_cores => 4)"),
    ("list_doors", "SELECT * FROM osgprod.list_doors(p_project => 'spring-2026')"),
    ("record_locality", """SELECT * FROM osgprod.record_locality(
    p_found => '[{"file_id": 1, "locality": "online"}]')"""),
    ("list_next_files", "SELECT * FROM osgprod.list_next_files(p_project => 'spring-2026', p_limit => 2)"),
    ("checkout_slice", f"""SELECT * FROM osgprod.checkout_slice({WORKER},
    p_cluster => 4711, p_process => 0, p_cpus => 1, p_host => 'wn7', p_site => 'SITE_A')"""),
    ("heartbeat", f"""SELECT * FROM osgprod.heartbeat({WORKER},
    p_cluster => 4711, p_process => 0, p_token => 'TOKEN', p_bytes => 3032, p_cpu_s => 40)"""),
    ("live_attempts", "SELECT * FROM osgprod.live_attempts(p_project => 'spring-2026')"),
    ("report_exit", f"""SELECT * FROM osgprod.report_exit({WORKER},
    p_cluster => 4711, p_process => 0, p_exitcode => 0, p_token => 'TOKEN', p_events => 21, p_outputs => 1,
    p_output_bytes => 104857, p_output_adler32 => '11e60398')"""),
    ("", f"""SELECT * FROM osgprod.checkout_slice({WORKER}, p_cluster => 4711, p_process => 1, p_host => 'wn8',
    p_site => 'SITE_A')"""),
    ("", f"""SELECT * FROM osgprod.report_exit({WORKER}, p_cluster => 4711, p_process => 1, p_exitcode => 6,
    p_token => 'TOKEN', p_reason => 'bank 3 is broken', p_host => 'wn8')"""),
    ("", f"""SELECT * FROM osgprod.checkout_slice({WORKER}, p_cluster => 4711, p_process => 2, p_host => 'wn9')"""),
    ("", f"""SELECT * FROM osgprod.report_exit({WORKER}, p_cluster => 4711, p_process => 2, p_exitcode => 6,
    p_token => 'TOKEN', p_reason => 'bank 3 is broken', p_host => 'wn9', p_output_url => 'https://store/logs/2.gz',
    p_log_tail => E'event 40\\nbank 3 is broken')"""),
    *(("", f"""SELECT * FROM osgprod.{call}, p_cluster => 4711, p_process => {process}{more}""")
      for process in (4, 5) for call, more in (
          (f"checkout_slice({WORKER}", ", p_host => 'wn9', p_site => 'GridPoint')"),
          (f"report_exit({WORKER}", ", p_exitcode => 0, p_token => 'TOKEN')"))),
    ("", f"SELECT * FROM osgprod.checkout_slice({WORKER}, p_cluster => 4711, p_process => 3, p_host => 'wn9')"),
    ("checkout_slices", f"""SELECT * FROM osgprod.checkout_slices(p_calls => '[
    {{"n": 1, {AS_JSON}, "process": 6, "cpus": 1}},
    {{"n": 2, {AS_JSON}, "process": 0, "cpus": 1}}]')"""),
    ("heartbeats", f"""SELECT * FROM osgprod.heartbeats(p_calls => '[
    {{"n": 1, {AS_JSON}, "process": 6,
     "token": "TOKEN"}}]')"""),
    ("report_exits", f"""SELECT * FROM osgprod.report_exits(p_calls => '[
    {{"n": 1, {AS_JSON}, "process": 6,
     "token": "TOKEN", "exitcode": 0}}]')"""),
    ("tick", "SELECT * FROM osgprod.tick()"),
    ("reclaim_lost", "SELECT * FROM osgprod.reclaim_lost(p_project => 'spring-2026')"),
    ("progress", "SELECT * FROM osgprod.progress(p_project => 'spring-2026')"),
    ("idle_and_leased", "SELECT * FROM osgprod.idle_and_leased(p_project => 'spring-2026')"),
    ("health", "SELECT * FROM osgprod.health(p_project => 'spring-2026')"),
    ("amounts", "SELECT * FROM osgprod.amounts(p_project => 'spring-2026')"),
    ("done_over_time", "SELECT * FROM osgprod.done_over_time(p_project => 'spring-2026', p_points => 4)"),
    ("estimate", "SELECT * FROM osgprod.estimate(p_project => 'spring-2026', p_hours => 6)"),
    ("rate", "SELECT * FROM osgprod.rate(p_project => 'spring-2026', p_hours => 24) WHERE done > 0"),
    ("totals", "SELECT * FROM osgprod.totals(p_project => 'spring-2026')"),
    ("attempts_by_exit", "SELECT * FROM osgprod.attempts_by_exit(p_project => 'spring-2026', p_hours => 24)"),
    ("attempts_by_site", "SELECT * FROM osgprod.attempts_by_site(p_project => 'spring-2026')"),
    ("slice_size", "SELECT * FROM osgprod.slice_size(p_project => 'spring-2026', p_cpus => 4)"),
    ("resources", "SELECT * FROM osgprod.resources(p_project => 'spring-2026')"),
    ("attempts_by_worker", "SELECT * FROM osgprod.attempts_by_worker(p_project => 'spring-2026', p_order => 'busy')"),
    ("list_attempts", "SELECT * FROM osgprod.list_attempts(p_project => 'spring-2026', p_exit_code => 6)"),
    ("list_jobs", "SELECT * FROM osgprod.list_jobs(p_project => 'spring-2026', p_cluster => 4711)"),
    ("job_history", "SELECT * FROM osgprod.job_history(p_project => 'spring-2026', p_cluster => 4711, p_process => 3)"),
    ("list_files", "SELECT * FROM osgprod.list_files(p_project => 'spring-2026', p_state => 'open')"),
    ("list_slices", "SELECT * FROM osgprod.list_slices(p_project => 'spring-2026')"),
    ("map_files", "SELECT * FROM osgprod.map_files(p_project => 'spring-2026')"),
    ("quarantined", "SELECT * FROM osgprod.quarantined(p_project => 'spring-2026')"),
    ("recycle", "SELECT * FROM osgprod.recycle(p_project => 'spring-2026', p_exit_code => 6, p_dry_run => true)"),
    ("ban_worker", """SELECT osgprod.ban_worker(p_project => 'spring-2026', p_worker => 'wn8', p_seconds => 3600,
    p_reason => 'its disk is full')"""),
    ("blocked_workers", "SELECT * FROM osgprod.blocked_workers()"),
    ("stop_jobs", "SELECT osgprod.stop_jobs(p_project => 'spring-2026', p_worker => 'site:SITE_Z')"),
    ("verify", "SELECT * FROM osgprod.verify(p_project => 'spring-2026')"),
    ("diagnose", "SELECT * FROM osgprod.diagnose() WHERE what LIKE '% of spring-2026'"),
    ("stop_project", "SELECT osgprod.stop_project(p_project => 'spring-2026')"),
    ("resume_files", "SELECT * FROM osgprod.resume_files(p_project => 'spring-2026')"),
    ("log_tail", "SELECT * FROM osgprod.log_tail(p_project => 'spring-2026', p_cluster => 4711, p_process => 2)"),
    ("find", "SELECT * FROM osgprod.find(p_text => 'hd_rawdata_071728_001')"),
    ("run_periods", "SELECT * FROM osgprod.run_periods()"),
    ("import_file", """SELECT * FROM osgprod.import_file(p_project => 'spring-2026',
    p_path => '/data/hd_rawdata_071729_000.evio', p_size_bytes => 5032, p_nblocks => 6,
    p_slices => '[{"block1": 1, "block2": 3, "cluster": 812, "process": 4, "worker": "10.1.2.9", "exit_code": 0,
        "started_at": "2026-01-03 10:00:00+00", "ended_at": "2026-01-03 14:30:00+00", "slices_of_job": 1},
        {"block1": 3, "block2": 6}]')"""),
    ("delivery", "SELECT * FROM osgprod.delivery(p_project => 'spring-2026')"),
    ("outputs_of", "SELECT block1, block2, kind, url, bytes, state FROM"
     " osgprod.outputs_of(p_project => 'spring-2026', p_file_id => 1)"),
    ("list_merges", "SELECT * FROM osgprod.list_merges(p_project => 'spring-2026', p_state => 'open')"),
    ("list_outputs", "SELECT * FROM osgprod.list_outputs(p_project => 'spring-2026', p_what => 'merged')"),
    ("list_versions", "SELECT * FROM osgprod.list_versions(p_project => 'spring-2026')"),
    ("retry_merges", "SELECT * FROM osgprod.retry_merges(p_project => 'spring-2026', p_dry_run => true)"),
    ("lose_outputs", """SELECT * FROM osgprod.lose_outputs(p_project => 'spring-2026',
    p_attempts => '[{"cluster": 4711, "process": 99, "nstart": 1, "reason": "is not there"}]')"""),
    ("import_merge", """SELECT osgprod.import_merge(p_project => 'spring-2026',
    p_path => '/data/hd_rawdata_071729_000.evio', p_ended_at => '2026-01-05 10:00:00+00')"""),
    ("note_answers", """SELECT osgprod.note_answers(p_answers => jsonb_build_array(jsonb_build_object(
    'minute', extract(epoch FROM now()), 'project', 'spring-2026', 'route', 'checkout', 'status', 200,
    'reason', 'assigned', 'times', 12)))"""),
    ("alive", "SELECT * FROM osgprod.alive()"),
    ("freshness", "SELECT * FROM osgprod.freshness()"),
    ("write_check", "SELECT osgprod.write_check()"),
    ("", """SELECT osgprod.add_project(p_project => 'autumn-2025', p_subnet_pattern => '10.0.0.0/8',
    p_workscript => 'osgprod_work.bash', p_xrootd_prefix => '', p_maxblockspercore => 2)"""),
    ("", """SELECT * FROM osgprod.import_file(p_project => 'autumn-2025',
    p_path => '/data/hd_rawdata_071729_000.evio', p_size_bytes => 5032, p_nblocks => 6,
    p_slices => '[{"block1": 1, "block2": 5, "cluster": 77, "process": 0, "worker": "10.1.2.9", "exit_code": 0,
        "started_at": "2025-10-03 10:00:00+00", "ended_at": "2025-10-03 14:30:00+00", "slices_of_job": 1}]')"""),
    ("unload_slices", """SELECT * FROM osgprod.unload_slices(p_project => 'spring-2026',
    p_path => '/data/hd_rawdata_071728_002.evio', p_dry_run => true)"""),
    ("list_operations", """SELECT * FROM osgprod.list_operations(p_limit => 3)"""),
    ("remove_project", "SELECT * FROM osgprod.remove_project(p_project => 'autumn-2025', p_dry_run => true)"),
    ("add_notify_target", "SELECT osgprod.add_notify_target(p_name => 'mail', p_place => 'file:/etc/mail.url')"),
    ("list_notify_targets", "SELECT * FROM osgprod.list_notify_targets()"),
    ("next_notifications", "SELECT * FROM osgprod.next_notifications(p_name => 'mail', p_limit => 10)"),
    ("mark_notified", "SELECT osgprod.mark_notified(p_name => 'mail', p_problem => 'no route to host')"),
    ("note_health", "SELECT osgprod.note_health()"),
    ("remove_notify_target", "SELECT osgprod.remove_notify_target(p_name => 'mail')"),
]  # fmt: skip

# The functions by task, in the order of the story.
CHAPTERS = (
    ("What a job asks", ("checkout_slice", "heartbeat", "report_exit")),
    ("What several jobs ask at once", ("checkout_slices", "heartbeats", "report_exits")),
    ("Projects", ("add_project", "set_magic", "set_project", "list_doors", "remove_project")),
    ("Files and their work", ("register_rawdata", "list_rawdata", "record_locality", "list_next_files",
                              "forget_rawdata", "load_slices", "list_files",
                               "list_slices")),
    ("How it goes", ("health", "progress", "amounts", "idle_and_leased", "done_over_time", "estimate", "rate", "totals",
                     "map_files", "foretell_work", "jobs_needed", "slice_size")),
    ("Jobs and attempts", ("live_attempts", "list_attempts", "list_jobs", "job_history", "attempts_by_exit",
                           "attempts_by_site", "attempts_by_worker", "resources")),
    ("Outputs and merges", ("list_outputs", "outputs_of", "lose_outputs", "list_merges", "retry_merges", "delivery",
                            "list_versions")),
    ("When something is wrong", ("quarantined", "recycle", "reclaim_lost", "blocked_workers", "ban_worker", "stop_jobs",
                                 "verify", "diagnose")),
    ("Find, stop, undo, and who did it", ("find", "log_tail", "stop_project", "run_periods", "unload_slices",
                                          "resume_files", "list_operations")),
    ("Notifications", ("add_notify_target", "remove_notify_target", "list_notify_targets", "next_notifications",
                       "mark_notified", "note_health")),
    ("Moving and housekeeping", ("import_file", "import_merge", "tick", "alive", "freshness", "note_answers",
                               "write_check")),
)  # fmt: skip

_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?\+00(:00)?")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PERSON = re.compile(r"\([\w.-]+@[\w.-]+\)")  # who runs this, and on which machine
# What depends on the moment, by the name of its column.
_FIXED = {"age_s": 312, "lease_left_s": 21288, "progress_s": 12}


def generate(connection: Connection) -> str:
    """Returns docs/sql.md.

    Parameters
    ----------
    connection : Connection
        To a freshly migrated database, as its superuser; it is filled by the examples.
    """
    answers = dict(_examples(connection))
    parts = [_INTRODUCTION.strip()]
    for title, names in CHAPTERS:
        parts.append(f"## {title}")
        parts += [_function(connection, name, answers[name]) for name in names]
    listed = {name for _, names in CHAPTERS for name in names}
    others = [row["name"] for row in _public(connection) if row["name"] not in listed]
    if others:
        parts.append("## Others")
        parts += [_function(connection, name, answers.get(name)) for name in others]
    parts += [_notices(), _settings(connection), _errors(), _tables(connection)]
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = """
# The SQL interface

<!-- Written by docs/generate_sql.py from the database: change headers and comments there, then `make docs`. -->

All that the shim and the command `osgprod` do about work is a function of schema `osgprod`; psql can do the same.
Tables are in schema `osgprod_data` and are changed by these functions only. Call them with named notation, as in the
examples: the names of parameters are kept, their order may change.

Roles: a login that is a member of `osgprod_worker` is what the shim needs, a member of `osgprod_operator` may call all
of them and read the tables. Errors have a code `OGgxx` of our own, a message, and a hint what to do; `g` says which
HTTP status it has (docs/design.md). Blocks are counted from 0, ranges are half open: [block1, block2). In the examples
times, tokens and seconds are made alike; everything else is what the functions answered.

Who works for a project shows it by `p_magic`, its shared secret, or by `p_bearer`, the claims of a bearer token whose
signature the caller has verified; `p_client` is the address that the job came from, which has to be inside of the
project's subnets. Functions that begin with `_` are helpers and granted to nobody.
"""


def _examples(connection: Connection) -> Iterator[tuple[str, tuple[str, str]]]:
    """Runs the examples in their order; gives the name of a function, its statement, and the answer as text."""
    token = ""
    connection.execute("SET TimeZone = 'UTC'")
    for name, statement in EXAMPLES:
        if name == "tick":  # it measures how long attempts took, which differs from machine to machine
            connection.execute("UPDATE osgprod_data.reports SET ran_s = 298")
        elif name == "ban_worker":
            connection.execute("COMMIT")
        if name == "register_rawdata":
            for run in ("71727", "71729"):
                connection.execute(_registration(0).replace("71728", run))
            for seqno in range(3):
                statement = _registration(seqno)
                rows = connection.execute(statement).fetchall()
            statement = re.sub(r"(\\x[0-9a-f]{24})[0-9a-f]{16,}", r"\1...", statement)
        else:
            rows = connection.execute(statement.replace("TOKEN", token)).fetchall()
        for row in rows:
            token = str(row.get("token") or token)
        if name:
            yield name, (statement, _answer(rows))
        if name == "live_attempts":
            connection.execute("UPDATE osgprod_data.attempts SET started_at = started_at - interval '5 min'")
        if name == "tick":
            # In one transaction, and so at one time: no interval ends between this and what counts intervals.
            connection.execute("BEGIN")
            # Some hours ago, some minutes apart, and not on the edge of two intervals.
            connection.execute(
                "UPDATE osgprod_data.reports SET reported_at = interval '25 min' * process"
                " + to_timestamp(floor(extract(epoch FROM now()) / 600) * 600) - interval '3 h' + interval '1 s'"
            )
            connection.execute("UPDATE osgprod_data.projects SET tallied_until = '-infinity'")


def _registration(seqno: int) -> str:
    events = [0, 1, 11, 21, 31, 41]
    index = b"".join(
        (1000 * n).to_bytes(8, "big") + before.to_bytes(4, "big") for n, before in enumerate(events)
    )
    trailer = "00000008" + "00000006" + "00000008" + "00000000" * 2 + "00000204" + "00000000" + "c0da0100"
    return REGISTER.format(seqno=seqno, trailer=trailer, index=index.hex())


def _answer(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "(no rows)"
    fixed = [
        {
            name: _FIXED[name] if name in _FIXED and value is not None else _plain(value)
            for name, value in row.items()
        }
        for row in rows
    ]
    lines = table(fixed, 118)
    return "\n".join(records(fixed) if any("…" in line for line in lines) else lines)


def _plain(value: object) -> object:
    if value is None or isinstance(value, int | float):
        return value
    text = value.isoformat(sep=" ") if hasattr(value, "isoformat") else str(value)
    text = re.sub(r"^\d{4}-[a-z-]+$", "0010-functions", text)  # the newest migration
    text = _PERSON.sub("(me@db)", _TIME.sub("2026-11-24 09:00:00+00", text))
    return _UUID.sub("8f14e45f-ceea-467f-a0b6-1c2d3e4f5a6b", text).replace("\n", " | ")


def _public(connection: Connection) -> list[dict[str, Any]]:
    return connection.execute(
        """SELECT p.proname AS name, pg_get_function_arguments(p.oid) AS arguments,
                  coalesce((SELECT 'TABLE(' || string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', '
                                                          ORDER BY a.attnum) || ')'
                              FROM pg_type t JOIN pg_attribute a ON a.attrelid = t.typrelid
                             WHERE t.oid = p.prorettype AND t.typnamespace = 'osgprod'::regnamespace),
                           pg_get_function_result(p.oid)) AS result,
                  p.prosrc AS body, obj_description(p.oid, 'pg_proc') AS comment
             FROM pg_proc p WHERE p.pronamespace = 'osgprod'::regnamespace AND p.proname NOT LIKE '\\_%'
            ORDER BY p.proname"""
    ).fetchall()


def _function(connection: Connection, name: str, example: tuple[str, str] | None) -> str:
    row = next(row for row in _public(connection) if row["name"] == name)
    inputs = [a for a in _split(row["arguments"]) if not a.startswith("OUT ")]
    outputs = [a.removeprefix("OUT ") for a in _split(row["arguments"]) if a.startswith("OUT ")]
    result = row["result"] if not outputs else f"TABLE({', '.join(outputs)})"
    signature = f"osgprod.{name}({_list(inputs)})\n{_wrapped('RETURNS ' + result)}"
    text = f"### {name}\n\n{row['comment']}\n\n```\n{signature}\n```\n\n{_header(row['body'])}"
    if example:
        text += f"\n\n```sql\n{example[0]};\n```\n```\n{example[1]}\n```"
    return text


def _split(arguments: str) -> list[str]:
    """Takes a list of arguments apart at its commas, not at those inside of ARRAY[...] or texts."""
    return [part.strip() for part in re.split(r",(?![^\[(]*[\])])", arguments) if part.strip()]


def _list(inputs: list[str]) -> str:
    inputs = [re.sub(r"(DEFAULT (?:NULL|'[^']*'))::.*", r"\1", argument) for argument in inputs]
    return "".join(f"\n    {argument}," for argument in inputs).removesuffix(",")


def _wrapped(text: str) -> str:
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + len(word) > 116:
            lines.append(line)
            line = "   "
        line = f"{line} {word}" if line else word
    return "\n".join([*lines, line])


def _header(body: str) -> str:
    """The header of a function as its source has it: promise, parameters, result, errors."""
    match = re.match(r"\s*((?:[ \t]*--[^\n]*\n)+)", body)
    lines = (
        [line.strip().removeprefix("--").removeprefix(" ") for line in match.group(1).splitlines()]
        if match
        else []
    )
    first = next((n for n, line in enumerate(lines) if re.match(r"[A-Z][a-z]+: ", line)), len(lines))
    return f"{' '.join(lines[:first])}\n\n```\n" + "\n".join(lines[first:]) + "\n```"


def _escaped(text: str) -> str:
    return re.sub(r"(?<![\w*])\*(?!\*)", r"\\*", text).replace("<", "&lt;")


def _notices() -> str:
    events = {
        "file-finished": "path: each block of the file is done or quarantined",
        "run-finished": "run: all its files are complete",
        "project-done": "all files of the project are complete; a tick notices it",
        "block-quarantined": "path, block: it failed alone, as often as the project allows",
        "worker-banned": "worker, until, reason: the server or an operator banned a worker node, a site or an address",
        "file-suspended": "path, reason: the file can't be read, or its slices fail alike",
        "file-resumed": "path, reason: why its slices are assigned again",
        "project-paused": "reason: the server paused the project, since all attempts fail alike",
        "project-resumed": "reason: of the pause, which a success or an operator has ended",
        "merge-done": "merge, run, seqno: the merged files of a file or a run are delivered",
        "merge-failed": "merge, run, seqno: it failed as often as the project allows",
        "production-delivered": "all files are complete and all merges are done; a tick notices it",
        "health-bad": "what, found, advice: as osgprod health prints them; noticed by osgprod notify run",
        "health-well": "what: the finding that ended",
    }
    rows = "\n".join(f"| `{event}` | {meaning} |" for event, meaning in events.items())
    return (
        "## Events\n\nThe server notifies of rare events on the channel `osgprod`: `LISTEN osgprod` receives them,"
        " `osgprod watch` prints them, `osgprod notify` delivers them. Each is a JSON object with"
        f" `event`, `project`, `at`, and:\n\n| event | with |\n|---|---|\n{rows}"
    )


def _settings(connection: Connection) -> str:
    """The settings of a project: the columns that set_project lets through, with their comments and defaults."""
    settings = "SELECT setting FROM osgprod.set_project(p_project => 'spring-2026', p_settings => '{}')"
    names = [row["setting"] for row in connection.execute(settings).fetchall()]
    rows = {row["name"]: row for row in _columns(connection, "projects")}
    lines = [
        f"| `{n}` | {rows[n]['type']} | {rows[n]['standard'] or ''} | {rows[n]['comment']} |" for n in names
    ]
    return (
        "## Settings of a project\n\n`osgprod project set PROJECT NAME=VALUE ...` or `osgprod.set_project`;"
        " they hold from the next call of a job on.\n\n| setting | type | default | meaning |\n|---|---|---|---|\n"
        + "\n".join(lines)
    )


def _columns(connection: Connection, name: str) -> list[dict[str, Any]]:
    return connection.execute(
        """SELECT a.attname AS name, format_type(a.atttypid, NULL) AS type,
                  col_description(a.attrelid, a.attnum) AS comment,
                  regexp_replace(pg_get_expr(d.adbin, d.adrelid), '''(.*)''::.*', '\\1') AS standard
             FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
            WHERE a.attrelid = to_regclass('osgprod_data.' || %s) AND a.attnum > 0 AND NOT a.attisdropped
            ORDER BY a.attnum""",
        [name],
    ).fetchall()


def _errors() -> str:
    """Each code with its messages and hints, as the functions have them."""
    found: dict[str, dict[str, str]] = {}
    raised = re.compile(r"RAISE EXCEPTION\s+'((?:[^']|'')*)'(?:(?!RAISE).)*?ERRCODE = '(OG\d\d\d)'"
                        r"(?:,\s*HINT = (?:format\()?'((?:[^']|'')*)')?", re.DOTALL)  # fmt: skip
    # Of a call of a job: code, message and hint are the answer.
    answered = re.compile(
        r"ARRAY\['(OG\d\d\d)',\s*(?:format\()?'((?:[^']|'')*)'(?:[^']|'[^']*'(?!\]))*?,"
        r"\s*(?:format\()?'((?:[^']|'')*)'(?:, [^'\]]*\))?\]"
    )
    for path in function_files():
        text = path.read_text()
        problems = [(code, message, hint) for message, code, hint in raised.findall(text)]
        for code, message, hint in problems + answered.findall(text):
            found.setdefault(code, {}).setdefault(_with_gaps(message), _with_gaps(hint))
    lines = [
        f"| {code} | {_escaped(message)} | {_escaped(hint)} |"
        for code, messages in sorted(found.items())
        for message, hint in messages.items()
    ]
    return "## Errors\n\n| code | message | hint |\n|---|---|---|\n" + "\n".join(lines)


def _with_gaps(text: str) -> str:
    """A format of a message as text: each value is …, also one that is appended."""
    text = re.sub(r"%(?!2B)[sLI]?|\{isolation\}", "…", text.replace("''", "'"))
    return f"{text}…" if text.endswith(" ") else text


def _tables(connection: Connection) -> str:
    parts = [
        "## Tables\n\nOf schema `osgprod_data`; an operator may read them. They are not an interface: columns"
        " come and go with versions."
    ]
    rows = connection.execute(
        """SELECT c.relname AS name, obj_description(c.oid, 'pg_class') AS comment FROM pg_class c
            WHERE c.relnamespace = 'osgprod_data'::regnamespace AND c.relkind IN ('r', 'p')
              AND c.relname NOT LIKE '%yoyo%' ORDER BY 1"""
    ).fetchall()
    for row in rows:
        columns = "\n".join(
            f"| `{c['name']}` | {c['type']} | {c['comment'] or ''} |"
            for c in _columns(connection, row["name"])
        )
        parts.append(
            f"### {row['name']}\n\n{row['comment']}\n\n| column | type | meaning |\n|---|---|---|\n{columns}"
        )
    return "\n\n".join(parts)


CONTENTS = """# The functions, by task

<!-- Written by docs/generate_sql.py from the files beside it: change a COMMENT or CHAPTERS there, then `make docs`. -->

A question? [CONTRIBUTING.md](../../CONTRIBUTING.md#where-is-what), "Where is what", names the function that answers it.

A public function is in the file of its name. The last table says in which file a private helper (`_name`) is.
[CALLS.md](CALLS.md) shows which function calls which, for each request of a job. `types.sql` is loaded first,
`grants.sql`, which has the rights of each role, last.

People edit these files. [CONTRIBUTING.md](../../CONTRIBUTING.md) says how a database gets them, and how one function
or all of them are rolled back. [docs/sql.md](../../docs/sql.md) has parameters, errors and examples,
[docs/design.md](../../docs/design.md) the invariants and the order of locks.
"""

CALLS = """# Which function calls which

<!-- Written by docs/generate_sql.py from the files beside it: change the functions, then `make docs`. -->

The functions that each call of a job can reach, with the first sentence of their headers, in the order of the caller's
text. Over HTTP `checkout_slices`, `report_exits` and `heartbeats` stand in the place of the first ones. Each
function is shown once in a section, below the first caller, and not below others.
"""
REQUESTS = (
    ("A job asks for work", "checkout_slice"),
    ("A job reports its exit code", "report_exit"),
    ("A job sends a heartbeat", "heartbeat"),
)
_FUNCTION = re.compile(r"^CREATE FUNCTION osgprod\.(\w+)\s*\(.*?^\$fn\$;", re.MULTILINE | re.DOTALL)


def contents(folder: Path = SQL_FOLDER / "functions") -> str:
    """Returns sql/functions/README.md: every public function with its file and its comment."""
    found: dict[str, tuple[str, str]] = {}
    for path in function_files(folder):
        for name, text in re.findall(
            r"^COMMENT ON FUNCTION osgprod\.(\w+)\(.*?\) IS\s+'((?:[^']|'')*)';",
            path.read_text(),
            re.MULTILINE,
        ):
            sentence = text.replace("''", "'").replace("|", r"\|").partition(" For osgprod_")[0]
            found[name] = (path.relative_to(folder).as_posix(), sentence)
    listed = [name for _, names in CHAPTERS for name in names]
    others = ("Others", tuple(sorted(found.keys() - set(listed) - {n for n in found if n.startswith("_")})))
    parts = [CONTENTS.strip()]
    for title, names in (*CHAPTERS, *([others] if others[1] else [])):
        lines = [f"| [`{name}`]({found[name][0]}) | {found[name][1]} |" for name in names]
        parts.append("\n".join([f"## {title}", "", "| function | what it does |", "|---|---|", *lines]))
    helpers = sorted(
        (file, name, _sentence(text))
        for name, (file, text) in _sources(folder).items()
        if name.startswith("_")
    )
    lines = [f"| [`{name}`]({file}) | {file} | {sentence} |" for file, name, sentence in helpers]
    parts.append(
        "\n".join(
            ["## Private helpers, by file", "", "| helper | file | what it does |", "|---|---|---|", *lines]
        )
    )
    return "\n\n".join(parts) + "\n"


def _sources(folder: Path) -> dict[str, tuple[str, str]]:
    """Returns each function's file and text, by its name."""
    return {
        match[1]: (path.relative_to(folder).as_posix(), match[0])
        for path in function_files(folder)
        for match in _FUNCTION.finditer(path.read_text())
    }


def calls(folder: Path = SQL_FOLDER / "functions") -> str:
    """Returns sql/functions/CALLS.md: what each request of a job can reach, as a tree."""
    sources = _sources(folder)
    parts = [CALLS.strip()]
    for title, name in REQUESTS:
        parts.append(f"## {title}")
        parts.append("\n".join(_tree(sources, name, 0, set())))
    return "\n\n".join(parts) + "\n"


def _tree(sources: dict[str, tuple[str, str]], name: str, depth: int, seen: set[str]) -> Iterator[str]:
    seen.add(name)
    file, text = sources[name]
    yield f"{'  ' * depth}- [`{name}`]({file}): {_sentence(text)}"
    body = text.partition("$fn$")[2]
    for called in re.findall(r"osgprod\.(\w+)\(", re.sub(r"--[^\n]*", "", body)):
        if called in sources and called not in seen:
            yield from _tree(sources, called, depth + 1, seen)


def _sentence(text: str) -> str:
    """Returns the first sentence of a function's header."""
    head = _header(text.partition("$fn$")[2]).partition("\n")[0]
    return _escaped(re.split(r"(?<=[^ .][.?])\s", head, maxsplit=1)[0]).replace("|", r"\|")


def main() -> None:
    """Write docs/sql.md, sql/functions/README.md and CALLS.md, on a temporary server."""
    with temporary_server() as dsn:
        migrate(dsn, say=lambda line: None)
        with connect(dsn) as connection:
            text = generate(connection)
    path = Path(__file__).resolve().parent / "sql.md"
    path.write_text(text)
    print(f"{path.name}: {len(text.splitlines())} lines")
    (SQL_FOLDER / "functions" / "README.md").write_text(contents())
    (SQL_FOLDER / "functions" / "CALLS.md").write_text(calls())


if __name__ == "__main__":
    main()
