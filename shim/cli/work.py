"""``osgprod rawdata`` and ``osgprod slices``: the files, and the work that is made of them."""

from __future__ import annotations

import click

from shim import admin
from shim.cli.base import (
    SAID_BY_PATH,
    as_json,
    ask,
    change,
    dry,
    limit_option,
    osgprod,
    path_option,
    project_argument,
    runs_option,
)
from shim.cli.terminal import Bar, show, working
from shim.errors import OperatorError
from shim.evio import scan


@osgprod.group()
def rawdata() -> None:
    """Raw data files and their block indexes."""


@rawdata.command("load")
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@dry
@as_json
def rawdata_load(folder: str, dry_run: bool, as_json: bool) -> None:
    """Register all files below FOLDER. Run it again to compare the files with the registered ones.

    Files without a begin-of-run record are registered, counted and named. The exit code is 1 if there is no file, or
    one that differs or is bad.
    """
    counts = admin.load_rawdata_files(folder, dry_run, Bar)
    show([counts], as_json)
    if not any(counts.values()):
        others = ", ".join(map(str, scan.passed_over(folder, 3)))
        hint = (
            f"names have to say run and number; passed over: {others}"
            if others
            else "is it the right folder?"
        )
        raise OperatorError(f"no file hd_rawdata_RRRRRR_SSS.evio is below {folder}", hint)
    if counts["differs"] + counts["bad"]:
        raise SystemExit(1)


@rawdata.command("check")
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@as_json
def rawdata_check(folder: str, as_json: bool) -> None:
    """Compare FOLDER with the registered files. Each row is a difference; if there is one, the exit code is 1."""
    faults = admin.check_rawdata_files(folder, Bar)
    show(faults, as_json, "all files are as registered, and every registered file is there")
    if faults:
        raise SystemExit(1)


@rawdata.command("list")
@runs_option
@path_option
@limit_option()
@as_json
def rawdata_list(runs: list[int] | None, path: str | None, limit: int, as_json: bool) -> None:
    """List the registered files."""
    rows = ask("list_rawdata", runs=runs, path=path, limit=limit)
    empty = "no such file is registered: osgprod rawdata load registers files"
    show(rows, as_json, empty, limit=limit, spare=(*SAID_BY_PATH, "first_block", "has_trailer"))


@rawdata.command("forget")
@click.argument("path")
@dry
@as_json
def rawdata_forget(path: str, dry_run: bool, as_json: bool) -> None:
    """Forget files registered by mistake. PATH is one file, or an SQL LIKE pattern such as /old/%.

    Files that are loaded into a project stay.
    """
    show(change("forget_rawdata", dry_run, path=path), as_json)


@osgprod.command()
@project_argument
@runs_option
@path_option
@click.option("--state", help="fresh, begun, cut, finished, or open (begun or cut). Default: all.")
@limit_option()
@as_json
def files(
    project: str, runs: list[int] | None, path: str | None, state: str | None, limit: int, as_json: bool
) -> None:
    """List the files of a project, and how far each is."""
    rows = ask("list_files", project=project, runs=runs, path=path, state=state, limit=limit)
    empty = "no such file is loaded: osgprod slices load makes files work"
    show(rows, as_json, empty, limit=limit, spare=SAID_BY_PATH)


@osgprod.group()
def slices() -> None:
    """The work of a project."""


@slices.command("load")
@project_argument
@runs_option
@click.option(
    "--reset",
    "--start-over",
    "start_over",
    is_flag=True,
    help="Forget what was done of these files, and process them again.",
)
@dry
@as_json
def slices_load(project: str, runs: list[int] | None, start_over: bool, dry_run: bool, as_json: bool) -> None:
    """Make registered files the work of a project."""
    with working("loading files"):
        counts = admin.load_slices(runs, project, start_over, dry_run)
    show([counts], as_json)
    if counts["files_without_bor"]:
        click.echo(
            f"files_without_bor: project {project} demands a begin-of-run record (demand_bor), and leaves these out;"
            " osgprod rawdata load names them",
            err=True,
        )
    if counts["files_double"]:
        click.echo(
            "files_double: the project has their run and number from another path, and leaves these out",
            err=True,
        )


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
    rows = ask("list_slices", project=project, state=state, runs=runs, path=path, limit=limit)
    show(rows, as_json, "no such slice", limit=limit, spare=SAID_BY_PATH)


@slices.command("recycle")
@project_argument
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(["quarantined", "failed", "done"]),
    help="Slices in this state; may be repeated. Default: quarantined and failed.",
)
@runs_option
@path_option
@click.option("--exit-code", type=int, help="Only slices whose last report had this exit code.")
@click.option("--client", help="Only slices last leased to this address or network.")
@click.option("--since", help="Only slices last reported since then (UTC), like '2026-05-01 12:00'.")
@dry
@as_json
def slices_recycle(
    project: str,
    states: tuple[str, ...],
    runs: list[int] | None,
    path: str | None,
    exit_code: int | None,
    client: str | None,
    since: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Requeue slices, as if they had never been tried."""
    choice = {"states": list(states) or None, "runs": runs, "path": path, "exit_code": exit_code}
    with working("recycling"):
        rows = ask("recycle", project=project, **choice, client=client, since=since, dry_run=dry_run)
    show(rows, as_json, "no such slice")
