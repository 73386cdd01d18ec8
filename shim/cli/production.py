"""Status, health, estimate, rate, attempts, resources, quarantined, workers, verify, reclaim, log, find."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from shim.cli.arguments import DAY_S, EXIT_CODES_OF_JOBS, NUMBERS, Real
from shim.cli.base import (
    NO_PROJECT,
    PROJECT,
    SAID_BY_PATH,
    ListByDefault,
    as_json,
    ask,
    change,
    dry,
    hours_option,
    limit_option,
    look,
    osgprod,
    project_argument,
    spare_of,
    until_ctrl_c,
    unused,
    whole,
)
from shim.cli.terminal import Row, cell, show, wants, working
from shim.words import counted, noun

if TYPE_CHECKING:
    from shim.database import Rows


@osgprod.command()
@click.argument("project", required=False, type=PROJECT)
@click.option("--watch", is_flag=True, help="Repeat until Ctrl-C.")
@click.option(
    "--interval",
    type=Real(0.01, DAY_S),
    default=2.0,
    show_default=True,
    help="Time between two readings with --watch [s].",
)
@as_json
def status(project: str | None, watch: bool, interval: float, as_json: bool) -> None:
    """Show how far each project is, or PROJECT alone."""
    rows = _progress(project)
    show(rows, as_json, NO_PROJECT, spare=spare_of(rows))
    if not watch:
        return
    with contextlib.suppress(KeyboardInterrupt):
        is_stopped = until_ctrl_c()
        while not is_stopped.wait(interval):
            rows = _progress(project)
            if not as_json:
                click.clear()
            show(rows, as_json, NO_PROJECT, spare=spare_of(rows))


def _progress(project: str | None) -> Rows:
    """How far each project is, in blocks, events, bytes and core hours, with the number of its running jobs."""
    from shim.database import Rows

    amounts = {row["project"]: row for row in look("amounts", project=project)}
    shown = ("running", "events_done", "events", "bytes_done", "bytes", "core_hours_done", "core_hours_left")
    progress = look("progress", project=project)
    rows = (
        {**row, **{name: amounts[row["project"]][name] for name in shown}}
        for row in progress
        if row["project"] in amounts
    )
    return Rows(rows, (*progress.columns, *shown))


@osgprod.command()
@click.argument("project", required=False, type=PROJECT)
@as_json
def health(project: str | None, as_json: bool) -> None:
    """Show whether each project, or PROJECT alone, is healthy, and what to do. The exit code is 1 when one is bad."""
    rows = look("health", project=project)
    show(rows, as_json, NO_PROJECT, sentences=("found", "advice"))
    if any(row["level"] == "bad" for row in rows):
        raise SystemExit(1)


@osgprod.command()
@project_argument
@hours_option(6)
@as_json
def estimate(project: str, hours: int, as_json: bool) -> None:
    """Estimate when a project will be done."""
    show(look("estimate", project=project, hours=hours), as_json)


@osgprod.command()
@project_argument
@hours_option(24)
@as_json
def rate(project: str, hours: int | None, as_json: bool) -> None:
    """Show the rate of a project in intervals, from the first one in which an attempt ended.

    An interval is 10 minutes for each 24 hours of --hours, rounded up; with --hours 1 or 2 it is one minute.
    """
    counts = ("done", "failed", "node_faults", "lost", "superseded")
    rows = look("rate", project=project, hours=hours)
    ended = itertools.dropwhile(lambda row: not any(row[name] for name in counts), rows)
    show(list(ended), as_json, "no attempt ended in that time", columns=rows.columns)


@osgprod.command()
@project_argument
@click.option("--live", is_flag=True, help="Running attempts, instead of those that ended.")
@click.option(
    "--by", type=click.Choice(["exit", "site"]), help="Counts by exit code or by site, instead of a list."
)
@click.option("--outcome", help="done, failed, node-fault, lost or superseded.")
@whole(EXIT_CODES_OF_JOBS, "--exit-code", help="Only those with this exit code.")
@click.option("--worker", help="Only those on this worker.")
@click.option("--site", help="Only those at this site.")
@hours_option(24)
@limit_option()
@as_json
def attempts(
    project: str,
    live: bool,
    by: str | None,
    outcome: str | None,
    exit_code: int | None,
    worker: str | None,
    site: str | None,
    hours: int | None,
    limit: int,
    as_json: bool,
) -> None:
    """List attempts that ended, the latest first."""
    if live:
        unused("--live", "by", "outcome", "exit_code", "worker", "hours")
        rows = look("live_attempts", project=project, site=site, limit=limit)
    elif by == "site":  # and one row for all others
        unused("--by site", "outcome", "exit_code", "worker")
        rows = look("attempts_by_site", project=project, site=site, hours=hours, limit=limit)
    elif by:
        unused("--by exit", "outcome", "exit_code", "worker", "limit")
        rows = look("attempts_by_exit", project=project, site=site, hours=hours)
    else:
        filters = {"outcome": outcome, "exit_code": exit_code, "worker": worker, "site": site}
        rows = look("list_attempts", project=project, limit=limit, hours=hours, **filters)
    shown: Sequence[Row] = rows
    if by == "site" and not (as_json or wants("csv")):
        shown = [{**row, "site": row["site"] or "not named"} for row in rows]
    spare = (
        *SAID_BY_PATH,
        "log_url",
        "schedd",
        "door",
        "nstart",
        "site",
        "ran_s",
        "started_at",
        "reported_at",
        "block2",
        "block1",
        "bytes_fetched",
        "cpu_s",
        "age_s",
        "worker",
    )
    show(shown, as_json, "no such attempt", limit=None if by else limit, spare=() if by else spare)


@osgprod.command()
@project_argument
@click.option(
    "--by",
    type=click.Choice(["all", "site", "workscript"]),
    default="all",
    help="One row, or one for each.",
)
@hours_option(168)
@as_json
def resources(project: str, by: str, hours: int | None, as_json: bool) -> None:
    """Show CPU efficiency, memory, disk and fetching rate of accepted attempts."""
    rows = look("resources", project=project, by=by, hours=hours)
    show(
        rows,
        as_json,
        "no job has measured what it used in that time; osgprod_exec.sh of 0.10.0 or later does",
    )


@osgprod.command()
@project_argument
@limit_option()
@as_json
def quarantined(project: str, limit: int, as_json: bool) -> None:
    """List the quarantined blocks, with all that is known of each."""
    rows = look("quarantined", project=project, limit=limit)
    spare = (*SAID_BY_PATH, "log_url", "events", "offset_bytes", "size_bytes", "exit_codes", "site", "reported_at",
             "worker")  # fmt: skip
    show(rows, as_json, "no block is in quarantine", limit=limit, spare=spare)


@osgprod.group(cls=ListByDefault, invoke_without_command=True)
@click.pass_context
@limit_option()
@as_json
def workers(ctx: click.Context, limit: int, as_json: bool) -> None:
    """List the bans in force: of workers, addresses, sites and merges. With PROJECT, list its workers."""
    if ctx.invoked_subcommand is None:
        rows = look("blocked_workers", limit=limit)
        show(rows, as_json, "no worker is banned", sentences=("reason",), limit=limit)


@workers.command("list")
@project_argument
@click.option(
    "--order",
    type=click.Choice(["failing", "slow", "busy"]),
    default="failing",
    show_default=True,
    help="failing: those with a failure, most failures first; slow: those with a success, most time per block first;"
    " busy: all, most attempts first.",
)
@hours_option(6)
@limit_option(20)
@as_json
def workers_list(project: str, order: str, hours: int | None, limit: int, as_json: bool) -> None:
    """List workers with their failures and their time per block."""
    empty = {
        "failing": "no worker failed in that time; --order busy lists all",
        "slow": "no worker succeeded in that time",
    }
    rows = look("attempts_by_worker", project=project, order=order, limit=limit, hours=hours)
    none = empty.get(order, "no attempt ended in that time")
    spare = ("superseded", "s_per_block", "site", "last_at")
    show(rows, as_json, none, limit=limit, spare=spare)


site_option = click.option("--site", help="All workers of this site, instead of one worker.")


def _meant(worker: str | None, site: str | None) -> str:
    """The name under which a worker or a site is banned."""
    if (worker is None) == (site is None) or "" in (worker, site):
        raise click.UsageError("name a worker, or a site with --site")
    return f"site:{site}" if site is not None else str(worker)


@workers.command("ban")
@project_argument
@click.argument("worker", required=False)
@site_option
@whole((0, 315_360_000), "--seconds", default=3600, help="How long from now on [s]; 0 = unban.")
@click.option("--reason", help="Is shown in the list of banned workers.")
@dry
def workers_ban(
    project: str, worker: str | None, site: str | None, seconds: int, reason: str | None, dry_run: bool
) -> None:
    """Ban WORKER (a host, an address, host@address or all), or a site, for a while.

    With merges: before it (merges:wn17) it gets slices, but no merges.
    """
    name = _meant(worker, site)
    if seconds == 0:
        _unban(project, worker, site, dry_run, reason)
        return
    rows = change("ban_worker", dry_run, project=project, worker=name, seconds=seconds, reason=reason)
    click.echo(f"{name} {'would be' if dry_run else 'is'} banned until {cell(rows[0]['ban_worker'])}")
    _warn_of_unknown(project, worker, site)


def _unban(project: str, worker: str | None, site: str | None, dry_run: bool, reason: str | None) -> None:
    """Unban, and name the other bans that still keep the worker from work, like that of its site."""
    name = _meant(worker, site)
    rows = change("ban_worker", dry_run, project=project, worker=name, seconds=0, reason=reason)
    was_banned = rows[0]["ban_worker"] is not None
    if was_banned:
        click.echo(f"{name} {'would be' if dry_run else 'is'} no longer banned")
    elif _warn_of_unknown(project, worker, site):
        click.echo(f"{name} was not banned")
    else:
        click.echo(
            f"{name} was not banned; its failures until now {'would ' * dry_run}count against it no longer"
        )
    if worker is not None and not dry_run:
        for row in ask("find", text=worker.removeprefix("merges:")):
            if row["project"] == project and row["banned_until"]:
                until = cell(row["banned_until"])
                click.echo(
                    f"osgprod: {row['name']} is banned until {until} by the ban of {row['banned_by']}",
                    err=True,
                )


def _warn_of_unknown(project: str, worker: str | None, site: str | None) -> bool:
    """Say so, and return True, where no job of the project was on that worker or at that site."""
    name = _meant(worker, site).removeprefix("merges:")
    kind, listing = (
        ("site", "attempts {} --by site --hours 168")
        if name.startswith("site:")
        else ("worker", "workers list {} --order busy --hours 168")
    )
    found = ask("find", text=name.removeprefix("site:"))
    is_unknown = name != "all" and not any(row["kind"] == kind and row["project"] == project for row in found)
    if is_unknown:
        click.echo(
            f"osgprod: no job of project {project} was on {_meant(worker, site)} within seven days;"
            f" osgprod {listing.format(project)} lists the names",
            err=True,
        )
    return is_unknown


@workers.command("unban")
@project_argument
@click.argument("worker", required=False)
@site_option
@dry
def workers_unban(project: str, worker: str | None, site: str | None, dry_run: bool) -> None:
    """End the ban of WORKER, named as osgprod workers lists it (like merges:all), or of a site.

    Its failures until now no longer count against it.
    """
    _unban(project, worker, site, dry_run, "unbanned")


@workers.command("stop")
@project_argument
@click.argument("worker", required=False)
@site_option
@dry
def workers_stop(project: str, worker: str | None, site: str | None, dry_run: bool) -> None:
    """Tell the running jobs of WORKER (a host, an address, host@address or all), or of a site, to end.

    Each ends at its next heartbeat; its slice is requeued at once. Ban the worker or the site first. Repeat the
    command until it stops none: a job that asks the server at that moment goes on.
    """
    name = _meant(worker, site)
    rows = change("stop_jobs", dry_run, project=project, worker=name)
    stopped = rows[0]["stop_jobs"]
    verb = "would be" if dry_run else noun(stopped, "is", "are")
    click.echo(f"{counted(stopped, 'attempt')} {verb} stopped, each at its next heartbeat")
    if not stopped and name != "all":
        _warn_of_unknown(project, worker, site)


@osgprod.command()
@project_argument
@click.option("--deep", is_flag=True, help="Compare with all attempts and reports as well; slower.")
@as_json
def verify(project: str, deep: bool, as_json: bool) -> None:
    """Recount a project from its tables. Each row is a contradiction; if there is one, the exit code is 1."""
    with working("recounting"):
        faults = ask("verify", project=project, deep=deep)
    show(faults, as_json, f"{project}: no contradiction found")
    if faults:
        raise SystemExit(1)


@osgprod.command()
@click.argument("project", required=False, type=PROJECT)
@whole(NUMBERS, "--cluster", help="Slices of the jobs of this cluster, which are gone from the queue.")
@whole(NUMBERS, "--process", help="Only the slice of this job of the cluster.")
@click.option("--schedd", help="Only jobs of this access point: others may have the same numbers.")
@dry
@as_json
def reclaim(
    project: str | None,
    cluster: int | None,
    process: int | None,
    schedd: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Requeue slices whose lease has expired, as the shim does by itself, or the slices of removed jobs.

    Without PROJECT it looks at all projects.
    """
    rows = change("reclaim_lost", dry_run, project=project, cluster=cluster, process=process, schedd=schedd)
    show(rows, as_json, "no such slice is leased" if cluster is not None else "no lease has expired")


@osgprod.command("log")
@click.argument("project", required=False, type=PROJECT)
@hours_option(720)
@limit_option()
@as_json
def operations(project: str | None, hours: int | None, limit: int, as_json: bool) -> None:
    """Show what operators changed, in all projects or in PROJECT, the latest first: when, who, what, how many."""
    rows = look("list_operations", project=project, hours=hours, limit=limit)
    shown = [
        {**row, "details": ", ".join(f"{name}={value}" for name, value in row["details"].items())}
        for row in rows
    ]
    show(
        rows if as_json else shown,
        as_json,
        "nothing was changed in that time",
        sentences=("details",),
        limit=limit,
        columns=rows.columns,
    )


@osgprod.command()
@click.argument("text")
@limit_option()
@as_json
def find(text: str, limit: int, as_json: bool) -> None:
    """Find what TEXT names, with the command that shows more. The exit code is 1 when nothing is found.

    A job (4711.0), a cluster (4711), a run (90001), a file (hd_rawdata_090001_003), a worker (wn17), a site, a project.
    """
    rows = look("find", text=text, limit=limit)
    show(rows, as_json, f"nothing is known of {text}", limit=limit, sentences=("found", "command"))
    if not rows:
        raise SystemExit(1)
