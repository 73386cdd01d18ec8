"""``osgprod serve``: the shim in the foreground, on an embedded PostgreSQL when no other is named."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import hashlib
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import psycopg
import uvicorn

from shim import config
from shim.app import create_app
from shim.cli.workers import Config, Workers
from shim.config import Settings
from shim.database import PoolerError, call, connect, pooling
from shim.errors import REFUSED, WRONG, OperatorError
from shim.local import embedded
from shim.version import which_is_older
from shim.web import logs
from shim.web.bounds import BoundedProtocol
from shim.web.metrics import OF_SERVE
from shim.words import counted

# A process that does not answer for so long is replaced. uvicorn's default, 5 s, is less than a start takes on a busy
# machine.
WORKER_SILENCE_S = 60
# A reload gives a new process so long to serve, each further try twice as long. The old one serves until then.
WORKER_START_S, MOST_START_S, RELOAD_AGAIN_S = 60.0, 600.0, 10.0
# The proxy in front closes an idle connection, not we: closed here just when the proxy uses it again, its client
# gets 502. nginx keeps one for 60 s, HAProxy for 5 s (deploy/).
KEEP_ALIVE_S = 75
ENDS = (signal.SIGINT, signal.SIGTERM)


def serve(
    host: str,
    port: int,
    uds: str | None,
    workers: int,
    say: Callable[[str], None],
    application: str = "shim.app:create_app",
) -> None:
    """Serve until SIGINT or SIGTERM; then everything that it started is stopped as well.

    It also ends when the database of our own does.

    Parameters
    ----------
    host, port : str and int
        Where to listen; port 0: a free one. A socket that systemd hands over goes before both.
    uds : str or None
        Path of a unix socket to listen on, instead of host and port.
    workers : int
        Processes; each has its own pool.
    say : callable
        Called with one line for each thing worth knowing.
    application : str
        What makes the ASGI application, as MODULE:FUNCTION.

    Raises
    ------
    OperatorError
        The port is taken, a setting can't be, or the database of our own does not start, or has ended.
    psycopg.Error
        The database of our own refuses something.
    """
    # uvicorn raises the signal again when it is done: this makes an orderly end of it.
    signal.signal(signal.SIGTERM, _end)
    create_app()  # a setting that can't be is named here once, and not again and again by each worker
    settings = Settings.read()
    own: embedded.Server | None = None
    lost: list[Path] = []  # the folder of our own database, once that has ended
    with contextlib.ExitStack() as stack, contextlib.suppress(KeyboardInterrupt):
        server = Config(
            application,
            factory=True,
            host=host,
            port=port,
            uds=uds,
            http=BoundedProtocol,
            workers=workers,
            access_log=False,  # the shim writes its own line a request, without secrets
            log_config=logs.CONFIG,
            proxy_headers=False,  # whom to trust is OSGPROD_TRUSTED_PROXIES' to say
            server_header=False,
            timeout_worker_healthcheck=WORKER_SILENCE_S,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        listener = _inherited(settings)
        if listener is None:
            listener = stack.enter_context(_listen_at(uds) if uds else _listen(host, port))
            if uds:
                stack.callback(_remove_socket, uds, Path(uds).stat().st_ino)
        root = settings.document_root
        if not settings.names_a_server:
            folder = data_folder(settings)
            own = embedded.Server(folder, {})
            stack.callback(own.stop)
            own.start()
            dsn = own.dsn
            seed(dsn, folder, say)
            say(f"PostgreSQL: psql '{dsn}'")
            root = settings.document_root if settings.has_document_root else folder / "www"
            config.export(
                OSGPROD_DSN=f"{dsn} options='-c role=osgprod_worker'", OSGPROD_DOCUMENT_ROOT=str(root)
            )
            say(f"osgprod in another terminal: export OSGPROD_DSN='{dsn}' OSGPROD_DOCUMENT_ROOT='{root}'")
        _look_for_database(say)
        name = listener.getsockname()
        where = f"http://{host}:{name[1]}{settings.root_path}" if isinstance(name, tuple) else name
        if workers == 1:
            signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)  # until _Server takes them
        say(f"serving {where}, Ctrl-C ends it")
        if not root.is_dir():
            say(f"no work scripts until there is a folder {root}, or OSGPROD_DOCUMENT_ROOT names another")
        if own is not None:
            own.watch(functools.partial(_end_without_database, own.folder, lost))
        _run(server, listener, settings)
    if lost:
        raise OperatorError(
            "its PostgreSQL has ended",
            f"start osgprod serve again, nothing is lost; {lost[0] / 'server.log'} may say why",
        )


def _end_without_database(folder: Path, lost: list[Path]) -> None:
    """End as Ctrl-C does: without its database, this server would answer 503 for ever."""
    lost.append(folder)
    os.kill(os.getpid(), signal.SIGINT)


def _look_for_database(say: Callable[[str], None]) -> None:
    """Name the problem of the database. The shim starts all the same: the database may come up later.

    Raises
    ------
    PoolerError
        It would never be well through this pooler.
    """
    try:
        if asyncio.run(pooling(Settings.read().dsn.text)) == "transaction":
            raise PoolerError
        with connect() as connection:
            (row,) = call(connection, "alive")
            if older := which_is_older(row.get("version")):
                say(older)
    except psycopg.Error as error:
        say(f"no work is assigned: the database has a problem (osgprod doctor): {str(error).splitlines()[0]}")


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)  # systemd takes 128 + number for a failure


def _run(server: uvicorn.Config, listener: socket.socket, settings: Settings) -> None:
    if server.workers > 1:
        with tempfile.TemporaryDirectory(prefix=OF_SERVE) as folder:
            if settings.metrics_folder is None:
                config.export(PROMETHEUS_MULTIPROC_DIR=folder)  # the processes add up here what they count
            Workers(server, [listener], WORKER_START_S, MOST_START_S, RELOAD_AGAIN_S).run()
    else:
        _Server(server).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Takes signals once uvicorn handles them: what a handler raises while a destructor runs, Python drops."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)
        await super().startup(sockets)


def _inherited(settings: Settings) -> socket.socket | None:
    """The socket that systemd holds for us, sd_listen_fds(3), if it does; it outlives a restart."""
    return socket.socket(fileno=3) if settings.inherits_socket else None


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OperatorError(f"{host} port {port}: {error.strerror}", _how_to_listen(error, port)) from error
    listener.listen(2048)
    listener.set_inheritable(True)
    return listener


def _how_to_listen(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return "take another port: make serve PORT=8081, osgprod serve --port 8081"
    if error.errno == errno.EACCES:
        return f"ports below 1024 are root's: take another port ({port + 8000}), and put Apache or nginx before it"
    return "--host takes an address of this machine: 127.0.0.1, or 0.0.0.0 for all of them"


def _listen_at(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if _is_left_over(path):
            Path(path).unlink()
        listener.bind(path)
        Path(path).chmod(0o666)  # the permissions of its folder decide which users may connect
    except OSError as error:
        listener.close()
        raise OperatorError(
            f"--uds {path}: {error.strerror or error}",
            "name a new file in a folder that is there and yours, or end the process that listens there",
            REFUSED if error.errno == errno.EADDRINUSE else WRONG,
        ) from error
    listener.listen(2048)
    listener.set_inheritable(True)
    return listener


def _is_left_over(path: str) -> bool:
    """Is this a socket on which nobody listens, as a shim leaves it that was killed?"""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(path)
        except ConnectionRefusedError:
            return Path(path).is_socket()  # so is a plain file
        except OSError:  # there is none, or it can't be asked: bind says so
            return False
    return False


def _remove_socket(path: str, inode: int) -> None:
    """Remove the socket at the end, unless another one has taken its place."""
    with contextlib.suppress(OSError):
        if Path(path).stat().st_ino == inode:
            Path(path).unlink()


def data_folder(settings: Settings) -> Path:
    """Return the folder of the data of our own database.

    Parameters
    ----------
    settings : Settings
        data_folder counts; default: below the checkout, or where the server's user can't enter that, a folder of its
        own below the user's data.
    """
    if settings.data_folder:
        try:
            settings.data_folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            rule = f"a folder that is there or can be made ({error.strerror})"
            raise config.SettingError("OSGPROD_DATA_FOLDER", str(settings.data_folder), rule) from None
        return settings.data_folder
    from shim.local import demo

    uid = embedded.server_uid()
    inside = demo.CHECKOUT / ".osgprod" / f"uid-{uid}"
    if embedded.can_enter(inside):
        return inside
    home = Path("/var/lib") if os.geteuid() == 0 else Path.home() / ".local" / "share"
    number = hashlib.sha256(str(demo.CHECKOUT).encode()).hexdigest()[:12]
    return home / f"osgprod-{number}"


def seed(dsn: str, folder: Path, say: Callable[[str], None]) -> None:
    """Make the demo project with its files and work script, unless a project exists.

    Parameters
    ----------
    dsn : str
        libpq's connection string of a database of our own.
    folder : Path
        For the files and the document root.
    say : callable
        Called with one line for each thing worth knowing.
    """
    from shim.local import demo
    from shim.migrate import migrate

    if done := migrate(dsn, say=lambda line: None):
        say(f"tables and functions are made or brought up to date ({counted(len(done), 'step')})")
    templates = folder / "www" / demo.PROJECT
    templates.mkdir(parents=True, exist_ok=True)
    shutil.copy(demo.CHECKOUT / "worker" / "osgprod_work.bash", templates)
    with connect(dsn) as connection:
        if call(connection, "progress"):
            return
        say(f"making the project {demo.PROJECT} with three small EVIO files; its magic is {demo.MAGIC!r}")
        (folder / "rawdata").mkdir(exist_ok=True)
        demo.write_files(folder / "rawdata")
        demo.load(connection, demo.PROJECT, demo.MAGIC, folder / "rawdata")
