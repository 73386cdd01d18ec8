"""``osgprod project``: productions and their settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from shim import admin
from shim.cli.base import (
    as_json,
    ask,
    change,
    dry,
    magic_option,
    osgprod,
    project_argument,
    read_magic,
)
from shim.cli.terminal import Bar, show
from shim.errors import OperatorError


@osgprod.group()
def project() -> None:
    """Productions and their settings."""


@project.command("add")
@click.argument("project")
@click.argument("subnet_pattern")
@click.argument("workscript")
@click.argument("xrootd_prefix")
@click.argument("maxblockspercore", type=int)
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
    """Make a project: who may ask, its script, URL prefix and blocks a core."""
    magic = read_magic(magic_file)
    admin.add_project(project, subnet_pattern, workscript, xrootd_prefix, maxblockspercore, magic, dry_run)
    click.echo(f"project {project} {'would be' if dry_run else 'is'} there")
    if magic is None:
        click.echo(f"it has no magic yet: osgprod project set-magic {project} --magic-file FILE gives it one")


@project.command("set-magic")
@project_argument
@magic_option
@click.option("--overlap", default=0, show_default=True, help="Seconds that the old one stays valid.")
@dry
def project_set_magic(project: str, magic_file: str | None, overlap: int, dry_run: bool) -> None:
    """Give a project a new secret."""
    magic = read_magic(magic_file)
    if magic is None:
        raise OperatorError(
            "no magic was given", "--magic-file FILE, --magic-file - for a prompt, or OSGPROD_MAGIC"
        )
    change("set_magic", dry_run, project=project, magic=magic, overlap_s=overlap)
    click.echo(f"project {project} {'would have' if dry_run else 'has'} a new magic")


@project.command("set")
@project_argument
@click.argument("settings", nargs=-1, required=True, metavar="NAME=VALUE...")
@dry
@as_json
def project_set(project: str, settings: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Change settings, like lease_s=3600; an empty value means none."""
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise click.BadParameter(f"{setting!r} is not NAME=VALUE")
        values[name.replace("-", "_")] = value or None
    show(_set(project, values, dry_run), as_json)


def _set(project: str, values: Mapping[str, Any], dry_run: bool = False) -> list[dict[str, Any]]:
    return change("set_project", dry_run, project=project, settings=json.dumps(values))


@project.command("list")
@as_json
def project_list(as_json: bool) -> None:
    """List the projects and how far they are."""
    show(ask("progress"), as_json, "no project yet: osgprod project add makes one")


@project.command("show")
@project_argument
@as_json
def project_show(project: str, as_json: bool) -> None:
    """Show all settings of a project."""
    show(_set(project, {}), as_json)


def _state_command(name: str, state: str, help_text: str) -> None:
    @project.command(name, help=help_text)
    @project_argument
    @dry
    def command(project: str, dry_run: bool) -> None:
        _set(project, {"state": state}, dry_run)
        click.echo(f"project {project} {'would be' if dry_run else 'is'} {state}")


_state_command("pause", "paused", "Lend nothing, not even to restarted jobs; reports are taken.")
_state_command("resume", "active", "Lend again.")
_state_command("drain", "draining", "Let live slices go on, lend no new ones.")


@project.command("archive")
@project_argument
@dry
@as_json
def project_archive(project: str, dry_run: bool, as_json: bool) -> None:
    """Move the slices and attempts of a production that has ended out of the hot tables; it may be killed and go on."""
    counts = admin.archive_project(project, dry_run, Bar)
    show([counts], as_json)
    if counts["waiting"]:
        click.echo(f"{counts['waiting']} attempts ended too lately: run this again in ten minutes", err=True)
