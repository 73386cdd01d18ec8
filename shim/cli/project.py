"""``osgprod project``: productions and their settings."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shim.cli import settings
from shim.cli.arguments import DAY_S, Real, Whole
from shim.cli.base import (
    NO_PROJECT,
    as_json,
    ask,
    change,
    dry,
    look,
    magic_option,
    osgprod,
    project_argument,
    read_magic,
    spare_of,
    whole,
)
from shim.cli.terminal import show, wants
from shim.errors import WRONG, OperatorError
from shim.words import counted

if TYPE_CHECKING:
    import psycopg


@osgprod.group()
def project() -> None:
    """Productions and their settings."""


@project.command("add")
@click.argument("project")
@click.argument("subnet_pattern")
@click.argument("workscript")
@click.argument("xrootd_prefix")
@click.argument("maxblockspercore", type=Whole(1, 1_000_000))
@magic_option
@dry
def project_add(
    project: str,
    subnet_pattern: str,
    workscript: str,
    xrootd_prefix: str,
    maxblockspercore: int,
    magic_file: str | None,
    dry_run: bool,
) -> None:
    """Make a project.

    \b
    PROJECT           its name: letters, digits and _ . + -
    SUBNET_PATTERN    addresses of its jobs: networks like "10.0.0.0/8, 192.0.2.0/24", or an SQL LIKE pattern
    WORKSCRIPT        file name of its work script in DOCUMENT_ROOT/PROJECT
    XROOTD_PREFIX     prefix of a file's path in its URL; empty for a file system; several are tried in order
    MAXBLOCKSPERCORE  blocks of a slice for each core of the job [1 .. 1000000]
    """
    from shim import admin

    magic = read_magic(magic_file)
    admin.add_project(project, subnet_pattern, workscript, xrootd_prefix, maxblockspercore, magic, dry_run)
    click.echo(f"project {project} {'would be' if dry_run else 'is'} made")
    if magic is None:
        click.echo(f"it has no magic yet: osgprod project set-magic {project} --magic-file FILE")


@project.command("set-magic")
@project_argument
@magic_option
@whole((0, 31_536_000), "--overlap", default=0, help="How long the old magic stays valid [s].")
@dry
def project_set_magic(project: str, magic_file: str | None, overlap: int, dry_run: bool) -> None:
    """Give a project a new magic, the secret of its jobs. By default a terminal is asked."""
    magic = read_magic(magic_file)
    if magic is None and sys.stdin is not None and sys.stdin.isatty():
        magic = read_magic("-")
    if magic is None:
        raise OperatorError(
            "no magic was given", "--magic-file FILE, --magic-file - for a prompt, or OSGPROD_MAGIC", WRONG
        )
    if change("set_magic", dry_run, project=project, magic=magic, overlap_s=overlap)[0]["set_magic"]:
        click.echo(f"project {project} {'would have' if dry_run else 'has'} a new magic")
    else:
        click.echo(
            f"project {project} has this magic already; nothing is changed, nor the end of the former one"
        )


@project.command("set", epilog=settings.help_text())
@project_argument
@click.argument("assignments", nargs=-1, required=True, metavar="NAME=VALUE...")
@dry
@as_json
def project_set(project: str, assignments: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Change settings, like lease_s=3600, and show the changes. An empty value means none."""
    import psycopg

    from shim.database import connect

    values: dict[str, Any] = {}
    for setting in assignments:
        name, equals, value = setting.partition("=")
        if not equals:
            raise click.BadParameter(f"{setting!r} is not NAME=VALUE")
        name = name.strip().replace("-", "_")
        if name in values:
            raise click.BadParameter(f"{name} is given twice")
        values[name] = value or None
    with connect() as connection, connection.transaction(force_rollback=dry_run):
        before = _settings(connection, project, {})
        try:
            after = _settings(connection, project, values)
        except psycopg.Error as error:
            near = settings.meant(name for name in values if name not in before)
            if near is None:
                raise
            hint = f"is {near} meant? osgprod project set --help lists the settings"
            raise OperatorError(error.diag.message_primary or "", hint, WRONG) from error
    rows = [
        {"setting": name, "before": before[name], "now": value}
        for name, value in after.items()
        if value != before[name]
    ]
    columns = ("setting", "before", "now")
    show(rows, as_json, f"project {project} has these values already", columns=columns)


def _settings(
    connection: psycopg.Connection[dict[str, Any]], project: str, values: Mapping[str, Any]
) -> dict[str, Any]:
    from shim.database import call

    rows = call(connection, "set_project", project=project, settings=json.dumps(values))
    return {row["setting"]: row["value"] for row in rows}


def _set(project: str, values: Mapping[str, Any], dry_run: bool = False) -> list[dict[str, Any]]:
    return change("set_project", dry_run, project=project, settings=json.dumps(values))


@project.command("list")
@as_json
def project_list(as_json: bool) -> None:
    """List the projects, and how far each is."""
    rows = look("progress")
    show(rows, as_json, NO_PROJECT, spare=spare_of(rows))


@project.command("show")
@project_argument
@as_json
def project_show(project: str, as_json: bool) -> None:
    """Show all settings of a project (osgprod project set --help explains them), and the versions that took part."""
    show(_set(project, {}), as_json)
    versions = ask("list_versions", project=project)
    if versions and not (as_json or wants("csv")):
        click.echo("\nversions that took part:")
        show(versions, False)


def _state_command(name: str, state: str, help_text: str) -> None:
    @project.command(name, help=help_text)
    @project_argument
    @dry
    def command(project: str, dry_run: bool) -> None:
        _set(project, {"state": state}, dry_run)
        click.echo(f"project {project} {'would be' if dry_run else 'is'} {state}")


_state_command("pause", "paused", "Assign nothing, not even to restarted jobs. Reports are still accepted.")
_state_command("resume", "active", "Assign work again.")
_state_command("drain", "draining", "Assign no new slices; leased ones may be finished.")


@project.command("stop")
@project_argument
@click.option("--wait", is_flag=True, help="Count down until no job runs any more, or Ctrl-C.")
@click.option(
    "--interval",
    type=Real(0.01, DAY_S),
    default=10.0,
    show_default=True,
    help="Time between two counts [s].",
)
@dry
def project_stop(project: str, wait: bool, interval: float, dry_run: bool) -> None:
    """Pause the project, and tell each running job at its next heartbeat to end. Neither slices nor workers are blamed.

    Jobs that send no heartbeats run to their end. osgprod project resume assigns work again.
    """
    left = change("stop_project", dry_run, project=project)[0]["stop_project"]
    runs = counted(left, "job still runs", "jobs still run")
    click.echo(f"project {project} {'would be' if dry_run else 'is'} stopped; {runs}")
    with contextlib.suppress(KeyboardInterrupt):
        while wait and left and not dry_run:
            time.sleep(interval)
            left = ask("amounts", project=project)[0]["running"]
            click.echo(counted(left, "job still runs", "jobs still run"))


@project.command("export")
@project_argument
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@as_json
def project_export(project: str, folder: Path, as_json: bool) -> None:
    """Write the record of a project's work to DIR, a new folder: CSV files, and a manifest with the settings.

    It has files, slices, attempts, reports, merges, outputs and versions, but no bans, refusals or ends of logs.
    """
    from shim.export import export_project

    rows = export_project(project, folder)
    show([{"file": f"{name}.csv", "rows": count} for name, count in rows.items()], as_json)


@project.command("remove")
@project_argument
@click.option("--force", is_flag=True, help="Also when work was done: export it first.")
@dry
@as_json
def project_remove(project: str, force: bool, dry_run: bool, as_json: bool) -> None:
    """Remove a project with all that is recorded of it. Registered files and osgprod log stay."""
    from shim import admin

    show([admin.remove_project(project, force, dry_run)], as_json)
    click.echo(f"osgprod: project {project} {'would be' if dry_run else 'is'} removed", err=True)
