"""``osgprod jobs``: the jobs of a project, how many it needs, and a queue that is kept filled.

The columns of a list are those that its function returns: of ``osgprod jobs`` sql/functions/reading/list_jobs.sql.
"""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from shim.cli.arguments import DAY_S, NUMBERS, Real, job_of
from shim.cli.base import (
    PROJECT,
    SAID_BY_PATH,
    ListByDefault,
    as_json,
    ask,
    cores_option,
    dry,
    hours_option,
    limit_option,
    look,
    mention,
    osgprod,
    project_argument,
    until_ctrl_c,
    unused,
    whole,
)
from shim.cli.terminal import cell, show, wants
from shim.errors import WRONG, OperatorError
from shim.words import counted

if TYPE_CHECKING:
    import psycopg

CONDOR_TIMEOUT_S = 300
IDLE, RUNNING, HELD = 1, 2, 5  # JobStatus of HTCondor
ATTRIBUTE = "OsgprodProject"  # of the jobs that keep submits: it counts these alone


slices_option = whole((1, 100_000), "--slices", default=1, help="Slices that a job processes.")


@osgprod.group(cls=ListByDefault)
def jobs() -> None:
    """List jobs (osgprod jobs PROJECT), say how many are needed, keep a queue filled."""


@jobs.command("list")
@project_argument
@click.argument("job", required=False)
@whole(NUMBERS, "--cluster", help="All jobs of this cluster, whenever they ran.")
@hours_option(24)
@limit_option()
@as_json
def jobs_list(
    project: str, job: str | None, cluster: int | None, hours: int | None, limit: int, as_json: bool
) -> None:
    """List jobs by their last start. With JOB, like 1234.5, show everything that is known of it."""
    shown: list[dict[str, Any]] = []
    if job is None:
        if cluster is not None:
            unused("--cluster", "hours")
        rows = look("list_jobs", project=project, cluster=cluster, limit=limit, hours=hours)
    else:
        unused("JOB", "cluster", "hours", "limit")
        numbers = job_of(job)
        if numbers is None:
            raise OperatorError(
                f"'{job}' is not a job like 4711.0", "--cluster 4711 lists all jobs of a cluster", WRONG
            )
        rows = look("job_history", project=project, cluster=numbers[0], process=numbers[1])
        tails = look("log_tail", project=project, cluster=numbers[0], process=numbers[1])
        text_of = {row["nstart"]: row["tail"] for row in tails}
        if as_json:
            shown = [
                {**row, "log_tail": text_of.get(row["nstart"]) if row["by_worker"] else None} for row in rows
            ]
    none = "no job started in that time" if cluster is None else f"no job of cluster {cluster} has started"
    spare = (*SAID_BY_PATH, "schedd", "submitted_at", "site", "started_at", "starts", "reported_at",
             "block2", "block1")  # fmt: skip
    show(shown or rows, as_json, none, limit=limit if job is None else None, spare=spare)
    if job is not None and not as_json and not wants("csv"):
        for nstart, text in sorted(text_of.items()):
            click.echo(f"\nEnd of the log of start {nstart}:")
            for line in text.split("\n"):
                click.echo(cell(line))


@jobs.command("needed")
@project_argument
@cores_option()
@slices_option
@click.option(
    "--for", "tool", type=click.Choice(["condor_submit"]), help="Print only an argument for it: count=N."
)
@as_json
def needed(project: str, cores: int, slices: int, tool: str | None, as_json: bool) -> None:
    """Say for how many more jobs there is work, and what memory and disk to request.

    With --for the exit code is 1 when no more job is needed. memory_mb and disk_mb cover 99 % of the accepted
    attempts of the last week with as many cores, plus 10 %. They are empty until 20 attempts have been measured.
    """
    rows = ask("jobs_needed", project=project, cores=cores, slices=slices)
    if tool is None:
        show(rows, as_json)
        return
    if rows[0]["jobs"] == 0:
        raise OperatorError(f"no job is needed: {rows[0]['reason']}", "submit nothing now")
    click.echo(f"count={rows[0]['jobs']}")


@jobs.command("keep", context_settings={"ignore_unknown_options": True})
@click.argument("project", type=PROJECT)
@whole((1, 1_000_000), "--idle", default=200, help="Idle jobs in the queue, at most.")
@whole((1, 1_000_000), "--max", "most", default=20_000, help="Jobs in the queue, at most.")
@cores_option()
@slices_option
@click.option(
    "--interval",
    type=Real(0.1, DAY_S),
    default=60.0,
    show_default=True,
    help="Time between two looks at the queue [s].",
)
@dry
@click.argument("arguments", nargs=-1, required=True, type=click.UNPROCESSED)
def keep(
    project: str,
    idle: int,
    most: int,
    cores: int,
    slices: int,
    interval: float,
    dry_run: bool,
    arguments: tuple[str, ...],
) -> None:
    """Keep HTCondor's queue filled while the project has work, and end when it is complete, with all its merges.

    ARGUMENTS, after --, are those of condor_submit: the submit file and its settings. count is added.

    It counts the jobs that it has submitted itself, now or earlier. HTCondor takes some seconds until all jobs of a
    submission are in the queue: with an interval below 10 s it may submit too many jobs. These find no work, and end.
    Held jobs count as jobs in the queue, not as idle ones. When it is stopped, the jobs stay.

    While all that is left are merges that failed, or that wait for quarantined blocks, it says so and goes on.

    When HTCondor or the database doesn't answer, it says so and tries again at the next look. Only at the first look
    this ends it.
    """
    import psycopg

    for program in ("condor_submit", "condor_q"):
        if shutil.which(program) is None:
            raise OperatorError(f"there is no {program} here", "run this on the access point")
    said, is_first, is_stopped = "", True, until_ctrl_c()
    while not is_stopped.is_set():
        try:
            line = _keep_once(project, cores, slices, idle, most, dry_run, arguments)
        except (OperatorError, psycopg.Error) as error:
            # The first look shows whether the command is right. Later a queue that runs dry overnight is worse.
            if is_first or not _may_pass(error):
                raise
            line = f"{(str(error).splitlines() or [type(error).__name__])[0]}; trying again"
        if line is None:
            return
        if line != said:
            mention(line)
            said = line
        is_first = False
        is_stopped.wait(interval)
    raise KeyboardInterrupt


def _keep_once(
    project: str, cores: int, slices: int, idle: int, most: int, dry_run: bool, arguments: Sequence[str]
) -> str | None:
    """Submit the jobs that the queue lacks, and return a line about them; None: nothing is left to do."""
    row = ask("jobs_needed", project=project, cores=cores, slices=slices)[0]
    if row["is_complete"]:
        click.echo(f"project {project} is complete")
        return None
    queue = _queue(project)
    count = jobs_to_submit(row["jobs"], queue, idle, most)
    if dry_run:
        click.echo(f"{counted(count, 'job')} would be submitted")
        return None
    if count:
        mention(_submit(project, count, arguments))
    return (
        f"{counted(row['slices_left'], 'slice')} left, {counted(queue[IDLE], 'job')} idle,"
        f" {queue[RUNNING]} running, {queue[HELD]} held" + (f"; {row['reason']}" if row["reason"] else "")
    )


def _may_pass(error: OperatorError | psycopg.Error) -> bool:
    """May this error be over at the next look? Not one of class OG, except for the group "try later"."""
    code = "" if isinstance(error, OperatorError) else error.sqlstate or ""
    return not code.startswith("OG") or code.startswith("OG5")


def jobs_to_submit(needed: int, queue: Counter[int], idle: int, most: int) -> int:
    """How many jobs to submit now: no more than have work, when those that are idle have begun.

    Parameters
    ----------
    needed
        More jobs that have work.
    queue
        Jobs in the queue by status.
    idle, most
        Idle jobs, and jobs, that the queue should have at most.
    """
    return max(min(needed - queue[IDLE], idle - queue[IDLE], most - queue.total()), 0)


def _queue(project: str) -> Counter[int]:
    lines = _condor("condor_q", "-constraint", f'{ATTRIBUTE} == "{project}"', "-af", "JobStatus").split()
    return Counter(int(word) for word in lines if word.isdecimal())


def _submit(project: str, count: int, arguments: Sequence[str]) -> str:
    mark = ("-append", f'My.{ATTRIBUTE} = "{project}"')
    answer = _condor("condor_submit", *mark, *arguments, f"count={count}").strip().splitlines()
    return answer[-1] if answer else f"{counted(count, 'job')} submitted"


def _condor(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CONDOR_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise OperatorError(
            f"{command[0]} does not answer", "see on the access point whether condor_q answers"
        ) from error
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise OperatorError(
            f"{command[0]} failed: {reason}", f"run {command[0]} with these arguments yourself"
        )
    return done.stdout
