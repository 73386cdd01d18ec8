"""What all subcommands share: how errors end, the options, how the magic is read."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from shim.cli.arguments import Runs, Whole
from shim.cli.terminal import cell
from shim.config import Settings, unknown_variables
from shim.errors import REFUSED, UNREACHABLE, WRONG, OperatorError
from shim.evio.errors import EvioError

if TYPE_CHECKING:
    import psycopg

    from shim.database import Rows

_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)

# What libpq and the resolver say of an option that can't be. A DSN has been looked at before: it is one of libpq's own
# variables.
_ODD_OPTION = re.compile(
    r'invalid ("?\w+"? )+value|invalid port number|could not match \d+|Servname not supported|definition of service'
    "|weak sslmode|invalid SSL protocol version range"
)
# What a server says that will take a connection later, or when others have ended theirs.
_LATER = re.compile("the database system is|too many clients|remaining connection slots|too many connections")
# By SQLSTATE: the server takes no writes; it ended this transaction to let another one go on; somebody has a lock.
_HINTS = {
    "25006": "name a server that takes writes in OSGPROD_DSN or PGHOST ...; osgprod doctor says why this one does not",
    **dict.fromkeys(("40001", "40P01", "55P03"), "run the command again"),
}
_NAME_A_FILE = "name a file or folder that you can read or write"
_NO_NAME = "''"  # as of a variable that is not set
_LONGEST = 1024  # characters of a line on the error output, but for its …
_WHOLE = 1000  # characters of a first sentence: more than any has
_Command = TypeVar("_Command", bound=Callable[..., Any])


class Group(click.Group):
    """A group of commands whose help has the whole first sentence of each."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a line for each command, or more where its first sentence is longer."""
        rows = [(name, self.commands[name].get_short_help_str(_WHOLE)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class Commands(Group):
    """A group of commands whose errors end in one line, a hint, and the right exit code."""

    group_class = Group

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: object
    ) -> click.Context:
        """Read the arguments, and print the help where they ask for it."""
        with _plain_end():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; an expected error ends the process."""
        with _plain_end():
            return self._invoke(ctx)

    def _invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except OperatorError as error:
            _fail(str(error), error.hint, error.exit_code)
        except EvioError as error:
            _fail(
                str(error),
                "name files, folders or URLs that this machine can read",
            )
        except OSError as error:
            if error.filename is None or error.errno in _UNWRITABLE:  # of the output: see run()
                raise
            _fail(f"{error.filename or _NO_NAME}: {error.strerror}", _NAME_A_FILE)
        except UnicodeEncodeError:
            _fail(
                "an argument or a variable is not UTF-8 text",
                "the database stores UTF-8: encode it as UTF-8",
                WRONG,
            )
        except Exception as error:
            if "psycopg" in sys.modules:  # else the error is not one of the database
                _fail_for_database(error)
                if isinstance(error, KeyError) and (older := _which_is_older()):
                    _fail(f"the database has no column {error}", older)
            raise


def _which_is_older() -> str:
    """Is it the database or this program, in one line? Empty: neither, or it can't be asked."""
    import psycopg

    from shim.version import which_is_older

    with contextlib.suppress(psycopg.Error):
        return which_is_older(ask("alive")[0].get("version"))
    return ""


@contextlib.contextmanager
def _plain_end() -> Iterator[None]:
    """End as signals end others: at Ctrl-C, and when the output is read no more. A usage error is one short line."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise  # its message is the help, which has many lines
    except click.FileError as error:
        _fail(f"{error.filename or _NO_NAME}: {error.message}", _NAME_A_FILE)
    except click.ClickException as error:
        vars(error)["message"] = _line(error.message)
        raise
    except BrokenPipeError:
        _discard_output()
        raise SystemExit(128 + signal.SIGPIPE) from None
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except click.Abort as error:  # of a question
        if isinstance(error.__context__, KeyboardInterrupt):
            raise SystemExit(128 + signal.SIGINT) from None
        _fail("the input ended before the answer", "run the command again, and answer")


def until_ctrl_c() -> threading.Event:
    """Return an event for commands that repeat something until Ctrl-C, to wait for between two times.

    Ctrl-C sets it, and raises KeyboardInterrupt. Where that gets lost, like in a destructor, or in a library that runs
    asyncio, the event ends the command.
    """
    is_stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        is_stopped.set()
        raise KeyboardInterrupt

    # A shell ignores it for a command in the background.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, stop)
    return is_stopped


def _discard_output() -> None:
    """Discard what waits to be written: at the end of the process it would be tried again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _fail_for_database(error: Exception) -> None:
    """End the process if this is an error of psycopg."""
    import psycopg

    if not isinstance(error, psycopg.Error):
        return
    message, hint, code = _first_line(error), error.diag.message_hint, REFUSED
    hint = hint or _HINTS.get(error.sqlstate or "")
    if isinstance(error, psycopg.OperationalError):
        if error.sqlstate is None and _ODD_OPTION.search(message):
            hint, code = "correct OSGPROD_DSN, or PGPORT, PGSSLMODE ... of libpq", WRONG
        elif error.sqlstate is None:
            hint, code = _how_to_reach(error), UNREACHABLE
        elif error.sqlstate.startswith(("08", "57P")):
            code = UNREACHABLE
    elif isinstance(error, psycopg.errors.UndefinedFunction | psycopg.errors.InvalidSchemaName):
        hint = _which_is_older() or "osgprod migrate brings the database up to date"
    elif isinstance(error, psycopg.errors.InsufficientPrivilege):
        hint = "this takes a login that is a member of osgprod_operator"
    elif _is_wrong_argument(error):
        hint, code = hint or "add --help to the command: it says what each option takes", WRONG
    _fail(message, hint or "see the server's log", code)


def _is_wrong_argument(error: psycopg.Error) -> bool:
    """Is a value wrong that the caller gave: group OG1xx, SQL's class 22 (data exception), or a malformed DSN?"""
    return error.sqlstate is None or error.sqlstate.startswith(("OG1", "22"))


class ListByDefault(Group):
    """A group whose command list needs no name: ``osgprod jobs PROJECT`` is ``osgprod jobs list PROJECT``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``list`` before arguments that are neither a command nor an option of the group itself."""
        options = {"--help", "-h", *(name for option in self.params for name in option.opts)}
        if args and args[0] not in self.commands and args[0] not in options:
            args = ["list", *args]
        return super().parse_args(ctx, args)


def _how_to_reach(error: psycopg.Error) -> str:
    if "no password supplied" in str(error):  # so says libpq
        return "put the password into ~/.pgpass, or leave host= out of OSGPROD_DSN where peer authentication needs none"
    if _LATER.search(str(error)):
        return "run the command again in a while"
    if "permission denied to set role" in str(error):
        return "make the login a member of that role (GRANT), or leave role= out of OSGPROD_DSN or PGOPTIONS"
    if "FATAL" in str(error):  # there is a server, which said so
        return "correct login and database in OSGPROD_DSN or PGUSER, PGDATABASE ..., or allow the login in pg_hba.conf"
    return "start the server, or correct its address in OSGPROD_DSN or PGHOST ..."


def _first_line(error: psycopg.Error) -> str:
    return error.diag.message_primary or (str(error).splitlines() or ["no message"])[0]


def _fail(message: str, hint: str, code: int = REFUSED) -> NoReturn:
    for line in (f"osgprod: {message}", f"hint: {hint}"):
        click.echo(_line(line), err=True)
    raise SystemExit(code)


def mention(line: str, err: bool = False) -> None:
    """Print a line of a command that goes on for days: that its log is on a full disk must not end it."""
    try:
        click.echo(line, err=err)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise


def _line(text: str) -> str:
    """One line for a terminal. It may repeat what somebody typed: no character moves the cursor or turns the text."""
    text = cell(re.sub(r"\s", " ", text))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]}…{text[-_LONGEST // 2 :]}"


def ask(function: str, **arguments: object) -> Rows:
    """Call one function of schema osgprod on a new connection, and return its rows.

    Parameters
    ----------
    function : str
        Its name without the schema.
    **arguments : object
        Its arguments without the p_; None: the function's own default.
    """
    from shim.database import call, connect

    with connect() as connection:
        return call(connection, function, **given(**arguments))


def look(function: str, **arguments: object) -> Rows:
    """Call one function that only reads, on the replica of OSGPROD_READ_DSN if it is fit, else as ask() does.

    A line on the standard error output says when the data are older than some seconds, or the replica is not fit.

    Parameters
    ----------
    function, **arguments : str, object
        See ask().
    """
    from shim import replica

    said = click.get_current_context().meta.setdefault("osgprod.said", set())

    def say(line: str) -> None:
        if line not in said:  # a command may look more than once
            said.add(line)
            click.echo(f"osgprod: {line}", err=True)

    rows = replica.look(function, given(**arguments), say)
    return ask(function, **arguments) if rows is None else rows


def change(function: str, dry_run: bool, **arguments: object) -> Rows:
    """Call a function that changes something, as ask() does; with dry_run the change is rolled back.

    Parameters
    ----------
    function, **arguments : str, object
        See ask().
    dry_run : bool
        Roll back.
    """
    from shim.database import call, connect

    with connect() as connection, connection.transaction(force_rollback=dry_run):
        return call(connection, function, **given(**arguments))


def given(**arguments: object) -> Mapping[str, Any]:
    """Return the arguments that have a value, so that the function's own defaults apply for the others.

    Parameters
    ----------
    **arguments : object
        See ask().
    """
    return {name: value for name, value in arguments.items() if value is not None}


class _Project(click.ParamType[str]):
    """The name of a project; the shell completes it."""

    name = "project"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        import psycopg

        with contextlib.suppress(psycopg.Error):  # a shell that completes must not say anything else
            names = [row["project"] for row in ask("progress")]
            return [CompletionItem(name) for name in names if name.startswith(incomplete)]
        return []


PROJECT = _Project()


def _remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.meta[f"osgprod.{param.name}"] = value or ctx.meta.get(f"osgprod.{param.name}", False)


def as_json(command: _Command) -> _Command:
    """Add the options that say how rows are shown: --json, --csv, --local; show() looks for the last two.

    Parameters
    ----------
    command : callable
        A command with the parameter as_json.
    """
    for option in (
        click.option(
            "--local", is_flag=True, expose_value=False, callback=_remember,
            help="Show times of a table in this machine's time zone, not in UTC.",
        ),
        click.option(
            "--csv", is_flag=True, expose_value=False, callback=_remember, help="Print CSV instead of a table."
        ),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON array instead of a table."),
    ):  # fmt: skip
        command = option(command)
    return command


dry = click.option("--dry-run", is_flag=True, help="Only show what would be done.")
project_argument = click.argument("project", type=PROJECT)


def runs_help(more: str) -> Callable[[Any], Any]:
    """The option --runs, with what it means when it is left out."""
    return click.option("--runs", type=Runs(), help=f"Runs like 1001,1005-1010. {more}")


runs_option = runs_help("Default: all.")


def _path(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A bare file name means the file of that name in any folder; .evio may be left out."""
    if not value or "/" in value or "%" in value:
        return value
    name = re.sub(r"([\\_])", r"\\\1", value)
    return f"%/{name}" if "." in value else f"%/{name}.%"


def path_help(more: str) -> Callable[[Any], Any]:
    """The option --path, with what it means when it is left out."""
    return click.option(
        "--path", callback=_path, help=f"Path or name of a file, or an SQL LIKE pattern. {more}"
    )


path_option = path_help("Default: all.")
magic_option = click.option(
    "--magic-file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="File with the magic; -: ask for it, or read standard input. Default: the variable OSGPROD_MAGIC.",
)
# Columns that a table with a path can do without: its name has run and number, and the key is of use to functions only.
SAID_BY_PATH = ("file_id", "run", "seqno")
NO_PROJECT = "no project yet: osgprod project add makes one"
_SPARE = ("core_hours_left", "core_hours_done", "bytes", "events", "bytes_done", "events_done", "is_complete",
         "files_finished", "files", "running", "blocks_ready", "blocks_unallocated", "blocks_leased")  # fmt: skip


def spare_of(projects: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    """Return what a narrow terminal has no room for of the progress of projects, in the order in which it is left out.

    Parameters
    ----------
    projects : sequence
        What will be shown.
    """

    def unless_nonzero(name: str) -> Sequence[str]:
        return () if any(row[name] for row in projects) else (name,)

    return (*unless_nonzero("merges_left"), *_SPARE, *unless_nonzero("blocks_quarantined"))


def whole(bounds: tuple[int, int], *names: str, **more: Any) -> Callable[[_Command], _Command]:  # noqa: ANN401  # as click's
    """Return an option for a whole number; the error that refuses another one names the option and the bounds.

    Parameters
    ----------
    bounds : tuple of int
        The smallest and the largest number.
    *names : str
        Of the option, like --limit, and of its parameter if that is another.
    **more : object
        What click.option() takes, too.
    """
    return click.option(*names, type=Whole(*bounds), show_default="default" in more, **more)


def cores_option(more: str = "") -> Callable[[_Command], _Command]:
    """Return the option --cores, with what the number is for."""
    return whole((1, 4096), "--cores", default=1, help=f"Cores of a job{more}.")


def unused(why: str, *names: str) -> None:
    """Refuse options that were given on the command line and would change nothing.

    Parameters
    ----------
    why : str
        What they don't go with, like --live.
    *names : str
        The parameters of the running command.
    """
    for option in click.get_current_context().command.params:
        if option.name in names and is_given(option.name):
            raise click.UsageError(f"{option.opts[0]} does not go with {why}")


def is_given(name: str) -> bool:
    """Tell whether an option of the running command was given on the command line, by its parameter's name."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def limit_option(rows: int = 100) -> Callable[[_Command], _Command]:
    """Return the option --limit.

    Parameters
    ----------
    rows : int
        The default.
    """
    return whole((1, 100_000), "--limit", default=rows, help="Rows at most.")


def hours_option(hours: int) -> Callable[[_Command], _Command]:
    """Return the option --hours.

    Parameters
    ----------
    hours : int
        The default [h], which is that of the function that is called.
    """
    return whole((1, 8760), "--hours", default=hours, help="How far back [h].")


def confirm(question: str, is_certain: bool, hint: str) -> None:
    """Ask the operator before something that is a slip more often than meant.

    Parameters
    ----------
    question : str
        What would happen, without a question mark.
    is_certain : bool
        The operator has said so with an option: nothing is asked.
    hint : str
        What to type, where nobody can be asked.

    Raises
    ------
    OperatorError
        The answer is no, or the standard input is not a terminal.
    """
    if is_certain:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise OperatorError(question, hint)
    if not click.confirm(f"{question}: go on?"):
        raise OperatorError("nothing was changed", hint)


def read_magic(source: str | None) -> str | None:
    """Return the magic, or None when none is given.

    Parameters
    ----------
    source : str or None
        A file; '-': a prompt, or the standard input where that is not a terminal; None: the variable OSGPROD_MAGIC.

    Raises
    ------
    OperatorError
        Not UTF-8, or the standard input is closed.
    """
    if source is None:
        magic = Settings.read().magic
        return None if magic is None else magic.text
    if source == "-" and sys.stdin is None:
        raise OperatorError("the standard input is closed", "--magic-file FILE")
    if source == "-" and sys.stdin.isatty():
        return str(click.prompt("magic", hide_input=True, confirmation_prompt=True))
    try:
        text = (sys.stdin.buffer.readline() if source == "-" else Path(source).read_bytes()).decode()
    except UnicodeDecodeError:
        raise OperatorError(
            f"the magic in {source} is not UTF-8 text", "name the file with the magic; use letters and digits"
        ) from None
    if "\0" in text:  # which is no text for PostgreSQL
        raise OperatorError(
            f"the magic in {source} has a NUL byte", "openssl rand -hex 24 makes a good magic", WRONG
        )
    return text.rstrip("\r\n")


EXIT_CODES = """\b
Exit codes:
  0  success
  1  refused, or a problem was found
  2  wrong usage: an argument or an environment variable is wrong
  3  the database can't be reached"""


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES)
@click.version_option(package_name="osgprod")
def osgprod() -> None:
    """Dispatch slices of raw data files to grid jobs.

    The database is where OSGPROD_DSN or libpq's variables (PGHOST ...) say. Lists are read from a replica where
    OSGPROD_READ_DSN names one; its data are a few seconds old. A line says so when they are older than 20 s, and
    when the primary was asked instead.
    """
    for line in unknown_variables():
        click.echo(f"osgprod: {line}", err=True)


def run() -> None:
    """Run the command line. An output that can't be written is an error, also for --help."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name != "utf-8":
            stream.reconfigure(errors="replace")  # a character that the terminal doesn't have becomes '?'
    if sys.stdout is None:
        # The next file or connection would get descriptor 1, and with it our messages.
        _fail("the standard output is closed", "redirect it: > /dev/null discards it")
    try:
        osgprod()
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        _discard_output()
        _fail(
            f"{error.filename or 'the output'} can't be written: {error.strerror}",
            "make room on the disk",
        )
