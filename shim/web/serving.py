"""``osgprod serve``: the shim in the foreground, on a PostgreSQL of its own when no other is named."""

from __future__ import annotations

import contextlib
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

from shim.app import create_app
from shim.database import call, connect, migrate, names_a_server
from shim.errors import OperatorError
from shim.local import demo, embedded
from shim.web import logs
from shim.web.bounds import BoundedProtocol
from shim.workscript import document_root


def serve(
    host: str,
    port: int,
    uds: str | None,
    workers: int,
    say: Callable[[str], None],
    application: str = "shim.app:create_app",
) -> None:
    """Serves until SIGINT or SIGTERM; then everything that it started is stopped as well.

    Parameters: host, port   to listen on; port 0 = a free one;  uds  unix socket instead of both; what systemd
                             hands over goes before
                workers      processes; each has a pool of its own
                say          is called with one line for each thing worth knowing
                application  what makes the ASGI application, as MODULE:FUNCTION
    Errors:     EmbeddedError, DatabaseError, psycopg.Error, OperatorError (the port is taken, a setting makes no sense)
    """
    # uvicorn raises the signal again when it is done: this makes an orderly end of it.
    signal.signal(signal.SIGTERM, _end)
    create_app()  # a setting that makes no sense is told here, not by each worker again and again
    with contextlib.ExitStack() as stack, contextlib.suppress(KeyboardInterrupt):
        config = uvicorn.Config(
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
        )
        listener = _inherited() or stack.enter_context(_listen_at(uds) if uds else _listen(host, port))
        if not names_a_server():
            dsn = stack.enter_context(embedded.server(data_folder()))
            seed(dsn, data_folder(), say)
            say(f"PostgreSQL: psql '{dsn}'")
            os.environ["OSGPROD_DSN"] = f"{dsn} options='-c role=osgprod_worker'"
            os.environ.setdefault("OSGPROD_DOCUMENT_ROOT", str(data_folder() / "www"))
            say(
                f"osgprod in another terminal: export OSGPROD_DSN='{dsn}'"
                f" OSGPROD_DOCUMENT_ROOT='{document_root()}'"
            )
        _look_for_database(say)
        root = os.environ.get("OSGPROD_ROOT_PATH", "/osgprod")
        name = listener.getsockname()
        where = f"http://{host}:{name[1]}{root}" if isinstance(name, tuple) else name
        say(f"serving {where}, Ctrl-C ends it")
        if not document_root().is_dir():
            say(
                f"no work scripts until there is a folder {document_root()}, or OSGPROD_DOCUMENT_ROOT names another"
            )
        _run(config, listener)


def _look_for_database(say: Callable[[str], None]) -> None:
    """Tells what is wrong with the database; the shim waits for it, since it may come up later than we."""
    try:
        with connect() as connection:
            call(connection, "alive")
    except psycopg.Error as error:
        say(f"no work until the database is well, osgprod doctor tells more: {str(error).splitlines()[0]}")


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _run(config: uvicorn.Config, listener: socket.socket) -> None:
    if config.workers > 1:
        from uvicorn.supervisors import Multiprocess

        with tempfile.TemporaryDirectory(prefix="osgprod-metrics-") as folder:
            # Where the processes add up what they count.
            os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", folder)
            Multiprocess(config, sockets=[listener]).run()
    else:
        uvicorn.Server(config).run(sockets=[listener])


def _inherited() -> socket.socket | None:
    """The socket that systemd holds for us, sd_listen_fds(3), if it does; it outlives a restart."""
    is_ours = os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS") == "1"
    return socket.socket(fileno=3) if is_ours else None


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OperatorError(
            f"{host} port {port}: {error.strerror}",
            "take another port: make serve PORT=8081, osgprod serve --port 8081",
        ) from error
    listener.listen(2048)
    listener.set_inheritable(True)
    return listener


def _listen_at(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        Path(path).chmod(0o666)  # who may enter its folder may ask
    except OSError as error:
        listener.close()
        raise OperatorError(
            f"--uds {path}: {error.strerror or error}",
            "name a new file in a folder that is there and yours; remove one that a former shim left",
            exit_code=2,
        ) from error
    listener.listen(2048)
    listener.set_inheritable(True)
    return listener


def data_folder() -> Path:
    """Returns where data of our own persist: OSGPROD_DATA_FOLDER, else below the checkout, or where that can't be, a
    folder of its own below the user's data."""
    if os.environ.get("OSGPROD_DATA_FOLDER"):
        return Path(os.environ["OSGPROD_DATA_FOLDER"]).absolute()
    uid = embedded.server_uid()
    inside = demo.CHECKOUT / ".osgprod" / f"uid-{uid}"
    if embedded.can_enter(inside):
        return inside
    home = Path("/var/lib") if os.geteuid() == 0 else Path.home() / ".local" / "share"
    number = hashlib.sha256(str(demo.CHECKOUT).encode()).hexdigest()[:12]
    return home / f"osgprod-{number}"


def seed(dsn: str, folder: Path, say: Callable[[str], None]) -> None:
    """Makes the demo project with its files and work script, when there is no project yet.

    Parameters: dsn     of a server of our own;  folder  for the files and the document root
    """
    migrate(dsn, say=say)
    templates = folder / "www" / demo.PROJECT
    templates.mkdir(parents=True, exist_ok=True)
    shutil.copy(demo.CHECKOUT / "worker" / "osgprod_work.bash", templates)
    with connect(dsn) as connection:
        if call(connection, "progress"):
            return
        say("making the project demo with three small EVIO files")
        (folder / "rawdata").mkdir(exist_ok=True)
        demo.write_files(folder / "rawdata")
        demo.load(connection, demo.PROJECT, demo.MAGIC, folder / "rawdata")
