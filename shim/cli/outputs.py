"""``osgprod outputs`` and ``osgprod merges``: what a production delivered, and how it gets merged."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO
from urllib.parse import urlsplit

import click

from shim.cli.arguments import Real, TokenFile, Whole
from shim.cli.base import (
    as_json,
    ask,
    confirm,
    dry,
    is_given,
    limit_option,
    look,
    osgprod,
    project_argument,
    runs_option,
)
from shim.cli.terminal import Bar, show, working
from shim.words import counted

NO_OUTPUT = "no such output: jobs report what they delivered (docs/outputs.md)"
AGAIN_S = 30.0
ASK_ABOVE = 50  # bad files; more are a fault of the storage more often than of the files
SHOWN = ("run", "seqno", "block1", "block2", "kind", "url", "bytes", "adler32", "events", "software", "state")


@osgprod.group()
def outputs() -> None:
    """What the jobs delivered."""


@outputs.command("list")
@project_argument
@runs_option
@click.option("--merged", "what", flag_value="merged", help="Only merged files.")
@click.option("--slices", "what", flag_value="slices", help="Only outputs of slices.")
@click.option("--history", is_flag=True, help="Also outputs that were replaced or lost.")
@click.option("--csv", "form", flag_value="csv", help="All of them as CSV.")
@click.option("--json", "form", flag_value="json", help="All of them as one JSON array.")
@click.option("--urls", "form", flag_value="urls", help="The URLs of all of them, one a line.")
@limit_option()
def outputs_list(
    project: str, runs: list[int] | None, what: str | None, history: bool, form: str | None, limit: int
) -> None:
    """List the delivered files: URL, size, checksum, events, and the software that made them.

    With --csv, --json or --urls all rows are written, unless --limit is given.
    """
    from shim import outputs as delivered
    from shim.database import connect

    writers = {"csv": delivered.write_csv, "json": delivered.write_json, "urls": delivered.write_urls}
    most = limit if form is None or is_given("limit") else None
    with (
        connect() as connection,
        delivered.listed(connection, project, runs=runs, what=what, history=history, limit=most) as rows,
    ):
        if form:
            writers[form](rows, sys.stdout)
            return
        first = [{name: row[name] for name in SHOWN} for row in rows]
    show(first, False, NO_OUTPUT, limit=limit, spare=("adler32", "software", "state"))


@outputs.command("check")
@project_argument
@runs_option
@click.option("--merged", "what", flag_value="merged", help="Only merged files.")
@click.option("--slices", "what", flag_value="slices", help="All outputs of slices, merged or not.")
@click.option(
    "--requeue", is_flag=True, help="Process again the slices and merges whose files are gone or differ."
)
@click.option(
    "--threads",
    type=Whole(1, 256),
    default=16,
    show_default=True,
    help="Requests to storage at a time.",
)
@click.option(
    "--token-file",
    "token",
    type=TokenFile(),
    help="File with the bearer token for https and davs. The hosts of output_home and merge_output_url get it.",
)
@click.option(
    "--token-host",
    "token_hosts",
    metavar="HOST",
    multiple=True,
    help="Also give it the token; may be repeated.",
)
@click.option(
    "--again-after",
    type=Real(0, 3600),
    default=AGAIN_S,
    show_default=True,
    help="How long to wait before looking again at what seems to be gone [s].",
)
@click.option(
    "--all",
    "every",
    is_flag=True,
    help=f"With --requeue: do so without a question, also with over {ASK_ABOVE} files.",
)
@click.option(
    "--orphans",
    metavar="FOLDER",
    help="Instead list the files below this path or URL (root://) that no report names.",
)
@click.option(
    "--older-than",
    type=Real(0, 87600),
    default=24.0,
    show_default=True,
    help="With --orphans: leave out newer files [h].",
)
@dry
@as_json
def outputs_check(
    project: str,
    runs: list[int] | None,
    what: str | None,
    requeue: bool,
    threads: int,
    token: str | None,
    token_hosts: tuple[str, ...],
    again_after: float,
    every: bool,
    dry_run: bool,
    orphans: str | None,
    older_than: float,
    as_json: bool,
) -> None:
    """Compare the delivered files with storage: is each there, with its size and checksum?

    Merged files are compared, and the outputs of slices that are in none yet. What seems to be gone is looked
    at again at the end, and only then requeued. The exit code is 1 when something is gone or differs.
    --requeue --dry-run counts what --requeue would requeue.

    Jobs report the URLs, so the token goes to the hosts of the project's output_home and merge_output_url and of
    --token-host, over TLS. Other hosts are asked without it, and named at the end.

    --orphans looks the other way: a failover or a restore may have lost reports whose outputs are in storage. Their
    blocks are processed again, so these files may be removed, which this command does not do.
    """
    from shim import outputs as delivered
    from shim.storage import Storage

    if orphans is not None:
        found: list[dict[str, Any]] = []
        counts = delivered.orphans(project, orphans, older_than, lambda url: found.append({"url": url}))
        show(found, as_json, f"no orphan among {counted(counts['files'], 'file')}", columns=("url",))
        return

    without_url: list[int] = []

    def say(row: dict[str, Any]) -> None:
        if row["url"] is None:
            without_url.append(row["run"])
        else:
            click.echo(f"{row['url']}: {row['fault']}", err=True)

    def sure(bad: int, files: int) -> None:
        confirm(
            f"the slices and merges of {bad} of {counted(files, 'file')} would be requeued",
            every or bad <= ASK_ABOVE,
            "--dry-run counts them; --all requeues them",
        )

    hosts = [*token_hosts, *_hosts_of(project)] if token else []
    with Storage(token, hosts) as storage:
        counts = delivered.check(
            project,
            runs,
            storage,
            requeue or dry_run,
            say,
            Bar,
            threads,
            what,
            dry_run,
            sure,
            every,
            again_s=again_after,
        )
        others = sorted(storage.asked_without_token)
    show([counts], as_json)
    if without_url:
        click.echo(f"osgprod: {counted(len(without_url), 'file')}: URL not known", err=True)
        click.echo(f"hint: osgprod project set {project} output_home=URL names the folder", err=True)
    if others:
        listed = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        click.echo(f"osgprod: asked without the token: {listed}", err=True)
        click.echo("hint: --token-host HOST sends it there too, over https and davs", err=True)
    if counts["bad"]:
        raise SystemExit(1)


def _hosts_of(project: str) -> Iterable[str]:
    """The hosts that the operator named in a project's settings: the token is meant for them."""
    settings = {row["setting"]: row["value"] for row in ask("set_project", project=project, settings="{}")}
    for name in ("output_home", "merge_output_url"):
        try:
            host = urlsplit(settings[name] or "").hostname
        except ValueError:  # stored before set_project checked these settings
            host = None
        if host:
            yield host


@outputs.command("manifest")
@project_argument
@runs_option
@click.option(
    "-o", "--output", type=click.File("w", lazy=True), default="-", help="File; default: standard output."
)
def outputs_manifest(project: str, runs: list[int] | None, output: TextIO) -> None:
    """Write the delivered files as JSON, with sizes, checksums, events, blocks and versions."""
    from shim import outputs as delivered

    counts = delivered.manifest(project, runs, output)
    if output is not sys.stdout:
        click.echo(f"{counted(counts['outputs'], 'output')} of {counted(counts['files'], 'file')}", err=True)


@osgprod.group()
def merges() -> None:
    """Merges of the outputs of slices into files that are delivered."""


@merges.command("list")
@project_argument
@runs_option
@click.option("--state", help="waiting, ready, leased, done, failed, superseded, or open. Default: all.")
@limit_option()
@as_json
def merges_list(project: str, runs: list[int] | None, state: str | None, limit: int, as_json: bool) -> None:
    """List the merges of a project."""
    rows = look("list_merges", project=project, runs=runs, state=state, limit=limit)
    empty = "no such merge: a file is merged when its slices are done, and the project's merge_by says so"
    spare = ("merge_id", "cluster", "process", "nstart", "made_at", "inputs", "events", "worker", "done_at")
    show(rows, as_json, empty, limit=limit, spare=spare)


@merges.command("retry")
@project_argument
@runs_option
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(["failed", "done"]),
    help="Merges in this state; may be repeated. Default: failed.",
)
@dry
@as_json
def merges_retry(
    project: str, runs: list[int] | None, states: tuple[str, ...], dry_run: bool, as_json: bool
) -> None:
    """Requeue merges, as if they had never been tried. The files of done ones then no longer count."""
    with working("requeuing"):
        rows = ask("retry_merges", project=project, runs=runs, states=list(states) or None, dry_run=dry_run)
    show(rows, as_json, "no such merge")
