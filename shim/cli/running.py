"""Commands that are not about one production: migrate, serve, demo, watch, doctor, completion, import-original."""

from __future__ import annotations

import contextlib
import json

import click

from shim.cli.arguments import NUMBERS
from shim.cli.base import as_json, ask, dry, magic_option, mention, osgprod, read_magic, until_ctrl_c, whole
from shim.cli.terminal import Bar, show, wants, working


@osgprod.command()
@click.option("--dry-run", is_flag=True, help="Only show what would be applied.")
def migrate(dry_run: bool) -> None:
    """Bring the database up to date: tables, functions, grants."""
    from shim import migrate as migration

    if dry_run:
        with migration.rights_named():
            lines = migration.pending()
        for line in lines or ["up to date, nothing to do"]:
            click.echo(line)
    elif not migration.migrate(say=click.echo):
        click.echo("up to date, nothing to do")


@osgprod.command()
@whole((0, 65535), "--port", default=8080, help="TCP port; 0: a free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--uds", help="Unix socket to listen on instead of host and port.")
@whole((1, 1024), "--workers", default=1, help="Shim processes.")
def serve(port: int, host: str, uds: str | None, workers: int) -> None:
    """Run the shim in the foreground.

    If neither OSGPROD_DSN nor libpq's variables name a database, it starts an embedded PostgreSQL with a demo project.
    """
    # A variable that is not set gives an empty text: the port would be open to more than was meant.
    if uds == "":
        raise click.BadParameter("it names no file", param_hint="--uds ''")
    if host == "":
        raise click.BadParameter("it names no address; 0.0.0.0 is all of them", param_hint="--host ''")
    from shim.cli import serving  # the web server is of no use to the other commands

    serving.serve(host, port, uds, workers, say=mention)


@osgprod.command()
def demo() -> None:
    """Run a whole production with real parts, in less than a minute: from EVIO files to every event processed once."""
    from shim.local import demo as story

    raise SystemExit(story.main())


@osgprod.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@whole((1, NUMBERS[1]), "--count", help="End after so many notifications. Default: never.")
def watch(as_json: bool, count: int | None) -> None:
    """Print notifications as they come, until Ctrl-C.

    docs/sql.md lists the events, like block-quarantined or project-paused.
    """
    from shim.cli.watch import listen

    with contextlib.suppress(KeyboardInterrupt):
        is_stopped = until_ctrl_c()
        ask("alive")  # any login may listen: missing rights, or functions, would show in nothing but silence
        for notice in listen(lambda line: click.echo(line, err=True), is_stopped, count):
            click.echo(json.dumps(notice.details) if as_json else notice.line)


@osgprod.command("doctor")
@as_json
def doctor_command(as_json: bool) -> None:
    """Look for problems, and say what to do about each. The exit code is 1 when there is one."""
    from shim.cli import doctor

    with working("looking"):
        rows = doctor.examine()
    is_table = not (as_json or wants("csv"))
    show([_line(row) for row in rows] if is_table else rows, as_json, sentences=("found", "what to do"))
    if not all(row["is_well"] for row in rows):
        raise SystemExit(1)


def _line(row: dict[str, object]) -> dict[str, object]:
    """A row for people: advice only where it is needed, and last, since it is long."""
    return {
        " ": "ok" if row["is_well"] else "NO",
        "what": row["what"],
        "found": row["found"],
        "what to do": None if row["is_well"] else row["advice"],
    }


@osgprod.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell: eval "$(osgprod completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None  # the choices above are click's own
    click.echo(kind(osgprod, {}, "osgprod", "_OSGPROD_COMPLETE").source())


@osgprod.command("import-original")
@click.argument("project")
@click.option(
    "--from", "source", envvar="OSGPROD_ORIGINAL_DSN", required=True,
    help="DSN of the original's database, without a password (use PGPASSFILE). Default: OSGPROD_ORIGINAL_DSN.",
)  # fmt: skip
@magic_option
@dry
@as_json
def import_original(project: str, source: str, magic_file: str | None, dry_run: bool, as_json: bool) -> None:
    """Take PROJECT over from a database of the original osgprod: files, slices, jobs.

    Run it again to continue where it was broken off. The exit code is 1 when a file is not taken over.
    """
    from shim.local.original import COLUMNS, NOT_TAKEN, take_over

    rows = take_over(source, project, read_magic(magic_file), dry_run, Bar)
    show(rows, as_json, "the original has no slices for this project", columns=COLUMNS)
    if any(row["status"] in NOT_TAKEN for row in rows):
        raise SystemExit(1)
