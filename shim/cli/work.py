"""``osgprod rawdata`` and ``osgprod slices``: the files, and the work that is made of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import click

from shim.cli.arguments import EXIT_CODES_OF_JOBS, NUMBERS, Network, Time, TokenFile
from shim.cli.base import (
    SAID_BY_PATH,
    as_json,
    ask,
    change,
    confirm,
    cores_option,
    dry,
    limit_option,
    look,
    osgprod,
    path_help,
    path_option,
    project_argument,
    runs_help,
    runs_option,
    unused,
    whole,
)
from shim.cli.terminal import Bar, show, working
from shim.errors import OperatorError
from shim.words import counted, noun


@osgprod.group()
def rawdata() -> None:
    """Raw data files and their block indexes."""


def _pattern(ctx: click.Context, param: click.Parameter, value: str | None) -> re.Pattern[str] | None:
    if value is None:
        return None
    from shim.evio import scan
    from shim.evio.errors import EvioError

    try:
        return scan.name_pattern(value)
    except EvioError as error:
        raise click.BadParameter(str(error)) from error


def pattern_option(help_text: str) -> Callable[[Any], Any]:
    """The option --pattern, made into a regular expression with the groups run and seqno."""
    return click.option("--pattern", callback=_pattern, help=help_text)


@rawdata.command("load")
@click.argument("sources", nargs=-1)
@click.option(
    "--list",
    "lists",
    type=click.File(errors="surrogateescape"),  # names of files are any bytes
    multiple=True,
    help="File with a source a line; - = standard input.",
)
@pattern_option("Regular expression for names, like 'run(?P<run>\\d+)_(?P<seqno>\\d+)\\.evio'.")
@click.option("--since", type=Time(), help="Of folders only files changed since then (UTC).")
@click.option("--new", "only_new", is_flag=True, help="Leave out files that are registered.")
@click.option(
    "--deep", is_flag=True, help="Walk all banks, and refuse files whose headers count the events wrongly."
)
@click.option("--token-file", "token", type=TokenFile(), help="File with the bearer token for https.")
@click.option("--prefix", help="URL prefix of these files, in the place of the project's; empty = none.")
@dry
@as_json
def rawdata_load(
    sources: tuple[str, ...],
    lists: tuple[TextIO, ...],
    pattern: re.Pattern[str] | None,
    since: datetime | None,
    only_new: bool,
    deep: bool,
    token: str | None,
    prefix: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Register raw data files. Run it again to compare the files with the registered ones.

    SOURCES are folders, whose trees are walked, files, URLs of files (root://, https://, osdf://, pelican://), or of
    folders (root://).
    Of a URL the path is registered: a project's xrootd_prefix and the path give the URL again.

    Files without a begin-of-run record are registered, counted and named. The exit code is 1 if a file is bad or
    differs from its registered index, or if no file is found without --since and --new.
    """
    from shim import admin
    from shim.evio import scan
    from shim.evio.index import FILE_NAME
    from shim.evio.remote import SCHEMES, is_url

    listed = (line.strip() for file in lists for line in file)
    every = [*sources, *(line for line in listed if line and not line.startswith("#"))]
    if not every:
        raise click.UsageError("name a folder, a file or a URL")
    for source in every:
        if not is_url(source) and not Path(source).exists():
            known = ", ".join(f"{scheme}://" for scheme in sorted(SCHEMES))
            raise click.UsageError(
                f"{source}: no such scheme; use {known}" if "://" in source else f"{source} does not exist"
            )
    names = pattern or FILE_NAME
    counts = admin.load_rawdata_files(
        every,
        dry_run,
        Bar,
        pattern=names,
        since=since.timestamp() if since else None,
        only_new=only_new,
        is_deep=deep,
        token=token,
        prefix=prefix,
    )
    show([counts], as_json)
    if not any(counts.values()) and since is None and not only_new:
        folders = [source for source in every if not is_url(source)]
        others = ", ".join(str(path) for folder in folders for path in scan.passed_over(folder, 3, names)[:3])
        hint = (
            f"describe names with --pattern, like 'run(?P<run>\\d+)_(?P<seqno>\\d+)\\.evio'; skipped: {others}"
            if others
            else "name the folder with the files, or describe their names with --pattern"
        )
        form = "hd_rawdata_RRRRRR_SSS.evio" if pattern is None else pattern.pattern
        raise OperatorError(f"no file {form} is below {', '.join(every)}", hint)
    if counts["differs"] + counts["bad"]:
        raise SystemExit(1)


@rawdata.command("check")
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@pattern_option("Regular expression for names, as of rawdata load.")
@as_json
def rawdata_check(folder: str, pattern: re.Pattern[str] | None, as_json: bool) -> None:
    """Compare FOLDER with the registered files. Each row is a difference; if there is one, the exit code is 1."""
    from shim import admin
    from shim.evio.index import FILE_NAME

    faults = admin.check_rawdata_files(folder, Bar, pattern or FILE_NAME)
    empty = "all files are as registered, and every registered file is there"
    show(faults, as_json, empty, columns=("path", "what"))
    if faults:
        raise SystemExit(1)


@rawdata.command("check-online")
@project_argument
@whole(
    (1, 100_000),
    "--next",
    "count",
    default=1000,
    help="Number of files, in the order in which jobs get them.",
)
@click.option("--token-file", "token", type=TokenFile(), help="File with the bearer token for https.")
@dry
@as_json
def rawdata_check_online(project: str, count: int, token: str | None, dry_run: bool, as_json: bool) -> None:
    """Ask storage which of the files that come next are on tape only. Nothing is staged.

    With the setting skip_nearline=true a project assigns no slices of the files that this command last found on tape
    only. Each row is a file that is on tape only or gone; if there is one, the exit code is 1.
    """
    from shim import admin

    with working("asking storage"):
        rows = admin.check_online(project, count, token, dry_run)
    empty = "all of these files are online, or storage can't tell"
    show(rows, as_json, empty, columns=("path", "url", "locality"))
    if rows:
        raise SystemExit(1)


@rawdata.command("list")
@runs_option
@path_option
@whole(
    (1, 100_000), "--next", "count", help="Number of files of a project, in the order in which jobs get them."
)
@click.option("--project", help="With --next; default: the only project.")
@click.option("--urls", is_flag=True, help="With --next: a URL a line, for a program that stages the files.")
@limit_option()
@as_json
def rawdata_list(
    runs: list[int] | None,
    path: str | None,
    count: int | None,
    project: str | None,
    urls: bool,
    limit: int,
    as_json: bool,
) -> None:
    """List the registered files, or with --next those that a project assigns next."""
    if count is not None:
        unused("--next", "runs", "path", "limit")
        coming = ask("list_next_files", project=project, limit=count)
        if urls:
            for row in coming:
                click.echo(row["url"])
        else:
            show(
                coming,
                as_json,
                "no file has unallocated blocks or requeued slices",
                spare=(*SAID_BY_PATH, "path"),
            )
        return
    if project or urls:
        raise click.UsageError("--project and --urls go with --next N")
    rows = look("list_rawdata", runs=runs, path=path, limit=limit)
    empty = "no such file is registered: osgprod rawdata load registers files"
    spare = (*SAID_BY_PATH, "first_block", "has_trailer", "evio_version", "byte_order", "prefix", "registered_at",
             "locality_at", "checked_at", "projects")  # fmt: skip
    show(rows, as_json, empty, limit=limit, spare=spare)


@rawdata.command("forget")
@click.argument("path")
@dry
@as_json
def rawdata_forget(path: str, dry_run: bool, as_json: bool) -> None:
    """Forget files registered by mistake. PATH is one file, or an SQL LIKE pattern such as /old/%.

    If one of these files is loaded into a project, none is forgotten.
    """
    show(change("forget_rawdata", dry_run, path=path), as_json)


@osgprod.command()
@project_argument
@runs_option
@path_option
@click.option(
    "--state",
    help="pending, in_progress, allocated, complete, open (in_progress or allocated), or suspended. Default: all.",
)
@limit_option()
@as_json
def files(
    project: str, runs: list[int] | None, path: str | None, state: str | None, limit: int, as_json: bool
) -> None:
    """List the files of a project, and how far each is."""
    rows = look("list_files", project=project, runs=runs, path=path, state=state, limit=limit)
    if runs is None and path is None and state is None:
        empty = f"project {project} has no file: osgprod slices load {project} makes files its work"
    else:
        empty = f"no file of project {project} is {state or 'there'} with these runs and this path"
        if runs is None and path is None:
            empty = f"no file of project {project} is {state}"
    spare = (*SAID_BY_PATH, "loaded_at", "has_bor", "size_bytes", "retest_at", "suspended_at", "blocks_ready",
             "blocks_leased", "blocks_unallocated", "blocks_quarantined")  # fmt: skip
    show(rows, as_json, empty, limit=limit, spare=spare)


@osgprod.group()
def slices() -> None:
    """The work of a project."""


@slices.command("load")
@project_argument
@runs_help("Default: all, if they are of one run period.")
@click.option("--reset", "start_over", is_flag=True, help="Reset these files, and process them again.")
@cores_option(", for what --dry-run foretells")
@click.option("--all", "every", is_flag=True, help="The files of all run periods.")
@click.option(
    "--yes", "is_certain", is_flag=True, help="With --reset: forget work that is done without a question."
)
@dry
@as_json
def slices_load(
    project: str,
    runs: list[int] | None,
    start_over: bool,
    cores: int,
    every: bool,
    is_certain: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make registered files the work of a project: those of some runs, or all.

    Where files of several run periods are registered, --runs or --all says which are meant; without them it asks.
    --dry-run foretells slices (one job each), events, bytes and core hours of these runs.
    """
    if runs is None and not every and not dry_run:
        periods = ask("run_periods")
        listed = ", ".join(
            f"{p['first_run']}-{p['last_run']} ({counted(p['files'], 'file')})" for p in periods
        )
        confirm(
            f"this loads the files of {counted(len(periods), 'run period')}: {listed}",
            len(periods) < 2,
            f"--runs says which, like --runs 71350-71400; or --all. osgprod slices unload {project} takes files back",
        )
    if start_over and not is_certain and not dry_run:
        done, leased = _blocks_to_forget(project, runs)
        confirm(
            f"blocks of project {project} would be processed again: {done} that are done, {leased} that are leased",
            not done + leased,
            f"to process quarantined or failed slices again: osgprod slices recycle {project}; or --yes",
        )
    from shim import admin

    with working("loading files"):
        counts = admin.load_slices(runs, project, start_over, dry_run, cores)
    show([counts], as_json)
    if counts["files_without_bor"]:
        click.echo(
            f"files_without_bor: project {project} demands a begin-of-run record (demand_bor), and leaves these out;"
            " osgprod rawdata load names them",
            err=True,
        )
    if counts["files_double"]:
        click.echo(
            "files_double: files with the same run and number are loaded from another path; these are left out",
            err=True,
        )


def _blocks_to_forget(project: str, runs: list[int] | None) -> tuple[int, int]:
    """How many blocks of these runs are done, and how many are leased."""
    if runs is None:
        rows = ask("progress", project=project)
    else:
        rows = ask("list_files", project=project, runs=runs, limit=100_000)
    return sum(int(row["blocks_done"]) for row in rows), sum(int(row["blocks_leased"]) for row in rows)


@slices.command("unload")
@project_argument
@runs_help("This or --path is required.")
@path_help("This or --runs is required.")
@dry
@as_json
def slices_unload(
    project: str, runs: list[int] | None, path: str | None, dry_run: bool, as_json: bool
) -> None:
    """Take files out of a project's work again: the way back from load. Name --runs or --path.

    Files of which a block is done or leased stay (files_kept). All of them stay registered.
    """
    with working("unloading files"):
        rows = ask("unload_slices", project=project, runs=runs, path=path, dry_run=dry_run)
    show(rows, as_json)


@slices.command("resume")
@project_argument
@runs_option
@path_option
@dry
@as_json
def slices_resume(
    project: str, runs: list[int] | None, path: str | None, dry_run: bool, as_json: bool
) -> None:
    """Assign slices of suspended files again, without waiting for a success. Default: of all of them.

    osgprod files PROJECT --state suspended lists these files and why each is suspended.
    """
    rows = change("resume_files", dry_run, project=project, runs=runs, path=path)
    show(rows, as_json, f"no such file of project {project} is suspended")


@slices.command("list")
@project_argument
@click.option("--state", help="leased, done, ready or quarantined. Default: all.")
@runs_option
@path_option
@limit_option()
@as_json
def slices_list(
    project: str, state: str | None, runs: list[int] | None, path: str | None, limit: int, as_json: bool
) -> None:
    """List the slices of a project."""
    rows = look("list_slices", project=project, state=state, runs=runs, path=path, limit=limit)
    spare = (
        *SAID_BY_PATH,
        "output_adler32",
        "output_url",
        "output_bytes",
        "nstart",
        "not_before",
        "faults",
        "since",
        "lease_left_s",
        "failures",
    )
    show(rows, as_json, "no such slice", limit=limit, spare=spare)


@slices.command("size")
@project_argument
@cores_option()
@click.option("--site", help="Its site, as jobs name it.")
@whole(NUMBERS, "--time-left", "time_left_s", help="Until the job must end [s].")
@as_json
def slices_size(project: str, cores: int, site: str | None, time_left_s: int | None, as_json: bool) -> None:
    """Show how large a slice a job would get now, and why."""
    show(look("slice_size", project=project, cpus=cores, site=site, time_left_s=time_left_s), as_json)


@slices.command("recycle")
@project_argument
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(["quarantined", "failed", "done"]),
    help="quarantined, failed (ready after failures or node faults) or done; may be repeated."
    " Default: quarantined and failed.",
)
@runs_option
@path_option
@whole(EXIT_CODES_OF_JOBS, "--exit-code", help="Only slices whose last report had this exit code.")
@click.option("--client", type=Network(), help="Only slices last leased to this address or network.")
@click.option(
    "--since", type=Time(), help="Only slices last reported since then (UTC), like '2026-05-01 12:00'."
)
@whole(NUMBERS, "--cluster", help="Only slices last leased to jobs of this cluster.")
@whole(NUMBERS, "--process", help="Only those of this job of the cluster.")
@click.option("--all", "every", is_flag=True, help="With --state done and no choice: yes, all of them.")
@dry
@as_json
def slices_recycle(
    project: str,
    states: tuple[str, ...],
    runs: list[int] | None,
    path: str | None,
    exit_code: int | None,
    client: str | None,
    since: datetime | None,
    cluster: int | None,
    process: int | None,
    every: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Requeue slices, as if they had never been tried."""
    is_chosen = any(x is not None for x in (runs, path, exit_code, client, since, cluster))
    if "done" in states and not is_chosen and not dry_run:
        blocks = ask("progress", project=project)[0]["blocks_done"]
        confirm(
            f"all blocks of project {project} that are done would be processed again: {blocks}",
            every or not blocks,
            "choose some with --runs, --path, --exit-code, --client, --since or --cluster; or --all",
        )
    choice: dict[str, object] = {
        "states": list(states) or None,
        "runs": runs,
        "path": path,
        "exit_code": exit_code,
    }
    choice |= {"client": client, "since": since, "cluster": cluster, "process": process}
    with working("recycling"):
        rows = ask("recycle", project=project, **choice, dry_run=dry_run)
    empty = "no such slice"
    if not states and not is_chosen:
        empty = f"no slice of project {project} is quarantined, or waits after failures or node faults"
    show(rows, as_json, empty)
    if rows:
        blocks = sum(row["block2"] - row["block1"] for row in rows)
        verb = "would be" if dry_run else noun(len(rows), "is", "are")
        click.echo(
            f"osgprod: {counted(len(rows), 'slice')} with {counted(blocks, 'block')} {verb} requeued",
            err=True,
        )
