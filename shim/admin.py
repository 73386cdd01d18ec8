"""The operator's calls, in Python under the original's names and as the command ``osgprod``.

Each is one call of one function of schema osgprod, and a way to show its rows. Whoever prefers psql can do
the same with ``SELECT * FROM osgprod.f(p_x => ...)``.

Exit codes of the command: 0 all is well, 1 refused or something was found wrong, 2 the command line makes no
sense, 3 the database can't be reached.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
import psycopg

from shim import database, scan
from shim.database import DatabaseError, call, connect
from shim.embedded import EmbeddedError
from shim.evio import EvioError

Row = Mapping[str, Any]


def add_project(
    projectname: str,
    subnet_pattern: str,
    workscript: str,
    xrootd_prefix: str,
    maxblockspercore: int,
    magic: str | None = None,
) -> int:
    """Makes a project and returns its number.

    Parameters: projectname       letters, digits and _ . + -; its folder below the document root as well
                subnet_pattern    who may ask: CIDR list, or an SQL LIKE pattern on the address
                workscript        file name of its work script in that folder
                xrootd_prefix     what stands before a file's path in a URL
                maxblockspercore  blocks of a slice for each core of the job [1 .. 1000000]
                magic             the secret of its jobs; None = nobody may work until it is set
    Errors:     psycopg.Error  the function's own code, message and hint; a name that is taken is refused
    """
    with connect() as connection:
        rows = call(
            connection,
            "add_project",
            project=projectname,
            subnet_pattern=subnet_pattern,
            workscript=workscript,
            xrootd_prefix=xrootd_prefix,
            maxblockspercore=maxblockspercore,
            magic=magic,
        )
    return int(rows[0]["add_project"])


def load_rawdata_files(my_rawdata_dir: str | Path, dry_run: bool = False) -> dict[str, int]:
    """Registers all raw data files below a folder, or compares them with what is registered.

    Parameters: my_rawdata_dir  walked for hd_rawdata_RRRRRR_SSS.evio
                dry_run         read and index the files, tell the database nothing
    Returns:    how many files were new, same, differs (from what is registered: nothing is changed) and bad
                (can't be sliced); each that differs or is bad is named on the standard error output
    Errors:     EvioError  the folder can't be read;  psycopg.Error  the database refuses
    """
    counts = {"new": 0, "same": 0, "differs": 0, "bad": 0}
    with contextlib.ExitStack() as stack:
        connection = None if dry_run else stack.enter_context(connect())
        paths = scan.find(my_rawdata_dir)
        bar = click.progressbar(length=len(paths), label="indexing files", file=sys.stderr, show_pos=True)
        with bar:
            for index in scan.indexes(paths):
                status, what = scan.register(connection, index)
                counts[status] += 1
                if status in ("differs", "bad"):
                    click.echo(("" if bar.hidden else "\n") + what, err=True)
                bar.update(1)
    return counts


def load_slices(
    runs: Iterable[int] | None = None, projectname: str | None = None, start_over: bool = False
) -> dict[str, int]:
    """Makes registered files the work of a project; says how many files and blocks, and how many were before.

    Parameters: runs         run numbers; None = all registered files
                projectname  None = the only project that there is
                start_over   forget what was done of files loaded already, and hand them out anew
    Errors:     psycopg.Error  unknown project, nothing registered
    """
    chosen = None if runs is None else list(runs)
    with connect() as connection:
        rows = call(connection, "load_slices", project=projectname, runs=chosen, start_over=start_over)
    return dict(rows[0])


# --- the command ---------------------------------------------------------------------------------------------


class Commands(click.Group):
    """Turns errors into one line and a hint."""

    def invoke(self, ctx: click.Context) -> object:
        """Runs a command; its errors end the process with the exit code that the module's text names."""
        try:
            return super().invoke(ctx)
        except (DatabaseError, EmbeddedError) as error:
            _fail(str(error), error.hint)
        except EvioError as error:
            _fail(
                str(error),
                "only files hd_rawdata_RRRRRR_SSS.evio below a readable folder are taken",
            )
        except psycopg.OperationalError as error:
            if error.sqlstate is None:
                _fail(_first_line(error), "is the server up? OSGPROD_DSN or PGHOST ... say where", 3)
            _fail(_first_line(error), "see the server's log", 3)
        except psycopg.errors.UndefinedFunction as error:
            _fail(_first_line(error), "osgprod migrate brings the database up to date")
        except psycopg.errors.InvalidSchemaName as error:
            _fail(_first_line(error), "osgprod migrate brings the database up to date")
        except psycopg.errors.InsufficientPrivilege as error:
            _fail(_first_line(error), "this takes a login that is a member of osgprod_operator")
        except psycopg.Error as error:
            _fail(_first_line(error), error.diag.message_hint or "docs/sql.md has the parameters")


def _first_line(error: psycopg.Error) -> str:
    return error.diag.message_primary or (str(error).splitlines() or ["no message"])[0]


def _fail(message: str, hint: str, code: int = 1) -> NoReturn:
    click.echo(f"osgprod: {message}\nhint: {hint}", err=True)
    raise SystemExit(code)


as_json = click.option("--json", "as_json", is_flag=True, help="One JSON array instead of a table.")
dry = click.option("--dry-run", is_flag=True, help="Only tell what would be done.")
project_argument = click.argument("project")


def _show(rows: Sequence[Row], as_json: bool = False, empty: str = "none") -> None:
    """Prints rows as a table that fits the terminal, or as JSON."""
    if as_json:
        click.echo(json.dumps(rows, default=str, indent=1))
    elif not rows:
        click.echo(empty)
    else:
        for line in table(rows, shutil.get_terminal_size((100, 24)).columns):
            click.echo(line)


def table(rows: Sequence[Row], columns: int) -> Iterator[str]:
    """Gives the lines of a table; a column of numbers is flush right, what doesn't fit ends in '…'."""
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    cells = [[_cell(row[name]) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    while sum(widths) + 2 * len(widths) > columns + 2 and max(widths) > 8:
        widths[widths.index(max(widths))] -= 1
    right = [isinstance(rows[0][name], int | float) for name in names]
    for line in (names, *cells):
        fitted = [
            text if len(text) <= width else text[: width - 1] + "…"
            for text, width in zip(line, widths, strict=True)
        ]
        yield "  ".join(
            text.rjust(width) if flush else text.ljust(width)
            for text, width, flush in zip(fitted, widths, right, strict=True)
        ).rstrip()


def _cell(value: object) -> str:
    if value is None:
        return ""
    if hasattr(value, "isoformat"):
        return str(value.isoformat(sep=" ", timespec="seconds"))
    return str(value)


def _runs(text: str | None) -> list[int] | None:
    """Reads a run list like 1001,1005-1010."""
    if text is None:
        return None
    runs: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            runs += range(int(first), int(last or first) + 1)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no run list like 1001,1005-1010") from None
    return runs


def _read_magic(source: str | None) -> str | None:
    """The magic from a file, '-' = a prompt or the standard input; None = OSGPROD_MAGIC. Never an argument."""
    if source is None:
        return os.environ.get("OSGPROD_MAGIC")
    if source != "-":
        return Path(source).read_text().rstrip("\n")
    if sys.stdin.isatty():
        return str(click.prompt("magic", hide_input=True, confirmation_prompt=True))
    return sys.stdin.readline().rstrip("\n")


magic_option = click.option(
    "--magic-file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="Where the magic stands; - = prompt or standard input. Without it OSGPROD_MAGIC holds.",
)
runs_option = click.option("--runs", help="Runs like 1001,1005-1010; without it all.")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="osgprod")
def main() -> None:
    """Lends out slices of raw data files to grid jobs.

    The database is where OSGPROD_DSN or libpq's variables (PGHOST ...) say.
    """


@main.command()
def migrate() -> None:
    """Bring the database up to date: tables, functions, grants."""
    if not database.migrate(say=click.echo):
        click.echo("up to date, nothing to do")


@main.command()
@click.option("--port", default=8080, show_default=True, help="0 = a free one.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--uds", help="Unix socket to listen on instead of host and port.")
@click.option("--workers", default=1, show_default=True, help="Shim processes.")
def serve(port: int, host: str, uds: str | None, workers: int) -> None:
    """Run the shim in the foreground; without a database named, on one of its own."""
    from shim import serving  # the web server is of no use to the other commands

    serving.serve(host, port, uds, workers, say=click.echo)


@main.command()
def demo() -> None:
    """Run the whole story with real parts, from new EVIO files to every event processed once."""
    from shim import demo as story

    raise SystemExit(story.main())


@main.group()
def project() -> None:
    """Productions and their settings."""


@project.command("add")
@project_argument
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
    magic = _read_magic(magic_file)
    if not dry_run:
        add_project(project, subnet_pattern, workscript, xrootd_prefix, maxblockspercore, magic)
    click.echo(f"project {project} {'would be' if dry_run else 'is'} there")
    if magic is None:
        click.echo("it has no magic yet: osgprod project set-magic gives it one")


@project.command("set-magic")
@project_argument
@magic_option
@click.option("--overlap", default=0, show_default=True, help="Seconds that the old one stays valid.")
def project_set_magic(project: str, magic_file: str | None, overlap: int) -> None:
    """Give a project a new secret."""
    with connect() as connection:
        call(
            connection,
            "set_magic",
            project=project,
            magic=_read_magic(magic_file),
            overlap_s=overlap,
        )
    click.echo(f"project {project} has a new magic")


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
    _show(_set(project, values, dry_run), as_json)


def _set(project: str, values: Mapping[str, Any], dry_run: bool = False) -> list[dict[str, Any]]:
    with connect() as connection, connection.transaction(force_rollback=dry_run):
        return call(connection, "set_project", project=project, settings=json.dumps(values))


@project.command("list")
@as_json
def project_list(as_json: bool) -> None:
    """List the projects and how far they are."""
    _show(_progress(None), as_json, "no project yet: osgprod project add makes one")


@project.command("show")
@project_argument
@as_json
def project_show(project: str, as_json: bool) -> None:
    """Show all settings of a project."""
    _show(_set(project, {}), as_json)


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


@main.group()
def rawdata() -> None:
    """Raw data files and their block indexes."""


@rawdata.command("load")
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@dry
@as_json
def rawdata_load(folder: str, dry_run: bool, as_json: bool) -> None:
    """Register all files below FOLDER; again = compare them with what is registered."""
    counts = load_rawdata_files(folder, dry_run)
    _show([counts], as_json)
    if counts["differs"] + counts["bad"]:
        raise SystemExit(1)


@main.group()
def slices() -> None:
    """The work of a project."""


@slices.command("load")
@project_argument
@runs_option
@click.option("--start-over", is_flag=True, help="Forget what was done of these files.")
@dry
@as_json
def slices_load(project: str, runs: str | None, start_over: bool, dry_run: bool, as_json: bool) -> None:
    """Make registered files the work of a project."""
    with connect() as connection, connection.transaction(force_rollback=dry_run):
        rows = call(connection, "load_slices", project=project, runs=_runs(runs), start_over=start_over)
    _show(rows, as_json)


@slices.command("recycle")
@project_argument
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(["quarantined", "failed", "done"]),
    help="Which; may be repeated. Without it quarantined and failed ones.",
)
@runs_option
@click.option("--path", help="Path of a file, or a LIKE pattern.")
@click.option("--exit-code", type=int, help="Only those whose last report had it.")
@dry
@as_json
def slices_recycle(
    project: str,
    states: tuple[str, ...],
    runs: str | None,
    path: str | None,
    exit_code: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Put slices back to ready, as if they had never been tried."""
    arguments: dict[str, Any] = {"states": list(states)} if states else {}
    with connect() as connection:
        rows = call(
            connection,
            "recycle",
            project=project,
            runs=_runs(runs),
            path=path,
            exit_code=exit_code,
            dry_run=dry_run,
            **arguments,
        )
    _show(rows, as_json, "no such slice")


@main.command()
@project_argument
@as_json
def quarantined(project: str, as_json: bool) -> None:
    """List the blocks that can't be done, with all that is known of each."""
    with connect() as connection:
        _show(call(connection, "quarantined", project=project), as_json)


@main.group(invoke_without_command=True)
@click.pass_context
@as_json
def workers(ctx: click.Context, as_json: bool) -> None:
    """List the workers that are refused work at present."""
    if ctx.invoked_subcommand is None:
        with connect() as connection:
            _show(call(connection, "blocked_workers"), as_json, "no worker is refused work")


@workers.command("ban")
@project_argument
@click.argument("worker")
@click.option("--seconds", default=3600, show_default=True)
@click.option("--reason", default="by the operator", show_default=True)
@dry
def workers_ban(project: str, worker: str, seconds: int, reason: str, dry_run: bool) -> None:
    """Refuse work to a host or address for a while."""
    _ban(project, worker, seconds, reason, dry_run)


@workers.command("pardon")
@project_argument
@click.argument("worker")
@dry
def workers_pardon(project: str, worker: str, dry_run: bool) -> None:
    """Let a worker work again; its failures until now no longer count."""
    _ban(project, worker, 0, "pardoned", dry_run)


def _ban(project: str, worker: str, seconds: int, reason: str, dry_run: bool) -> None:
    with connect() as connection, connection.transaction(force_rollback=dry_run):
        rows = call(connection, "ban_worker", project=project, worker=worker, seconds=seconds, reason=reason)
    click.echo(f"{worker} is refused until {_cell(rows[0]['ban_worker'])}{' (dry run)' if dry_run else ''}")


def _progress(project: str | None) -> list[dict[str, Any]]:
    with connect() as connection:
        return call(connection, "progress", project=project)


@main.command()
@click.argument("project", required=False)
@click.option("--watch", is_flag=True, help="Again every 2 seconds, until Ctrl-C.")
@as_json
def status(project: str | None, watch: bool, as_json: bool) -> None:
    """Tell how far each project is."""
    _show(_progress(project), as_json, "no project yet: osgprod project add makes one")
    with contextlib.suppress(KeyboardInterrupt):
        while watch:
            time.sleep(2)
            click.clear()
            _show(_progress(project), as_json)


@main.command()
@project_argument
@as_json
def verify(project: str, as_json: bool) -> None:
    """Recount a project from its tables; rows are faults, and then the exit code is 1."""
    with connect() as connection:
        faults = call(connection, "verify", project=project)
    _show(faults, as_json, f"{project}: every block is covered once")
    if faults:
        raise SystemExit(1)


@main.command()
@click.argument("project", required=False)
@as_json
def reclaim(project: str | None, as_json: bool) -> None:
    """Take back slices whose lease ran out; the shim does so by itself."""
    with connect() as connection:
        _show(call(connection, "reclaim_lost", project=project), as_json, "no lease has run out")


if __name__ == "__main__":
    main()
