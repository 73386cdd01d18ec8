"""``make serve``: a shim and an embedded PostgreSQL in the foreground. Nothing of them remains afterwards."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

from shim.cli.serving import _listen_at, _remove_socket
from shim.errors import OperatorError
from shim.local import embedded
from shim.local.demo import Stall
from tests import prepared
from tests.support import CHECKOUT, PATIENCE_S, free_port, run_each, run_osgprod, server_folder, wait_until

EXAMPLE = "workscript.bash?project=demo&cluster=0&process=0&magic=my+magic;"


def ask(url: str) -> httpx.Response:
    return httpx.get(url, verify=False, timeout=PATIENCE_S)


class Serve:
    """One ``osgprod serve`` without a database named, and what it said until it served."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        # Its data is of the PostgreSQL that OSGPROD_PG_BINDIR names.
        environment = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("PG", "OSGPROD")) or k == "OSGPROD_PG_BINDIR"
        }
        self._log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "shim", "serve", "--port", "0", *arguments],
            cwd=CHECKOUT,
            env={**environment, "OSGPROD_DATA_FOLDER": str(folder / "data")},
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.said: list[str] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line.rstrip())
            if line.startswith("serving "):
                break
        self.url = self.said[-1].split()[1].rstrip(",") if self.said else ""

    def log(self) -> str:
        """All that it has said."""
        return "\n".join([*self.said, Path(self._log.name).read_text()])

    @property
    def dsn(self) -> str:
        return next(line for line in self.said if line.startswith("PostgreSQL: ")).split("'")[1]

    def end(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        try:
            return self.process.wait(PATIENCE_S)
        finally:
            self.close()

    def close(self) -> None:
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._log.close()


def programs_of(folder: Path) -> list[str]:
    """Processes that still work on the data of this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(folder) in command and "pytest" not in command:
                found.append(command)
    return found


def at_work_below(folder: Path) -> list[str]:
    """Processes whose current folder is there, or was."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            found += [entry.name] if str((entry / "cwd").readlink()).startswith(str(folder)) else []
    return found


def wait_until_gone(folder: Path) -> None:
    wait_until(lambda: not programs_of(folder), "its processes have ended", seen=lambda: programs_of(folder))


@contextlib.contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[Serve]:
    server = Serve(folder, *arguments)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.end(signal.SIGINT)
        server.close()


@pytest.fixture
def begun() -> Iterator[Path]:
    """A folder whose server has its data: migrated, without the demo."""
    folder = server_folder("serve")
    folder.chmod(0o755)
    prepared.put_data(folder / "data")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_serves_at_once_seeds_the_demo_and_keeps_its_data(folder: Path) -> None:
    with serving(folder) as server:
        made = "making the project demo with three small EVIO files; its magic is 'my magic'"
        assert made in server.said
        assert ask(f"{server.url}/healthz").status_code == 200, server.log()
        assert "# nstarts: 1\n" in ask(f"{server.url}/{EXAMPLE}").text
        with psycopg.connect(server.dsn) as connection:
            rows = connection.execute("SELECT project, files, blocks FROM osgprod.progress()").fetchall()
        assert rows == [("demo", 3, 220)]
        # What it prints for another terminal is all that this needs.
        (export,) = (line.partition("export ")[2] for line in server.said if "another terminal" in line)
        environment = {name: None for name in os.environ if name.startswith(("PG", "OSGPROD"))}
        exported = dict(word.split("=", 1) for word in shlex.split(export))
        done = run_osgprod("doctor", "--json", env={**environment, **exported})
        assert {row["what"]: row["is_well"] for row in json.loads(done.stdout)}["work script of demo"]
        # Even SIGKILL leaves no server behind, and the folder of its socket not for long.
        sockets = Path(server.dsn.split()[0].removeprefix("host="))
        server.end(signal.SIGKILL)
    wait_until_gone(folder)
    with serving(folder) as server:
        assert not sockets.exists()
        assert "making the project demo with three small EVIO files" not in server.said
        assert "# nstarts: 2\n" in ask(f"{server.url}/{EXAMPLE}").text
        assert server.end(signal.SIGTERM) == 0, "systemctl stop is not a failure"
    assert programs_of(folder) == []


def test_second_server_on_the_same_data_is_one_line(begun: Path) -> None:
    folder = begun
    with serving(folder):
        second = Serve(folder)
        assert second.end(signal.SIGTERM) == 1
        text = (folder / "log").read_text()
        assert "are in use by process" in text and "hint: stop the other osgprod serve first" in text
        assert "Traceback" not in text


REFUSED_PLACES = [
    (["--uds", "/nonexistent/x"], {}, 2, "--uds /nonexistent/x: No such file or directory"),
    (["--uds", f"/tmp/{'x' * 200}"], {}, 2, f"--uds /tmp/{'x' * 200}: AF_UNIX path too long"),
    ([], {"OSGPROD_POOL_SIZE": "0"}, 2,
     "OSGPROD_POOL_SIZE is '0', but must be a whole number from 1 to 9999999999"),
    (["--host", "192.0.2.1"], {}, 1, "192.0.2.1 port 0: Cannot assign requested address"),
]  # fmt: skip


def test_place_that_cannot_be_served_at_is_one_line_with_a_hint(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket(socket.AF_UNIX) as used:
        used.bind(str(folder / "used"))
        used.listen()
        port = str(taken.getsockname()[1])
        refused = [
            *REFUSED_PLACES,
            (["--port", port], {}, 1, f"127.0.0.1 port {port}: Address already in use"),
            (["--uds", f"{folder}/used"], {}, 1, f"--uds {folder}/used: Address already in use"),
        ]
        ended = run_each(
            [(["serve", "--port", "0", *arguments], environment) for arguments, environment, *_ in refused],
            folder, OSGPROD_DSN="host=/nonexistent",
        )  # fmt: skip
    for done, (*_, code, message) in zip(ended, refused, strict=True):
        lines = done.stderr.splitlines()
        assert (done.returncode, lines[0], len(lines)) == (code, f"osgprod: {message}", 2), done.stderr
        assert lines[1].startswith("hint: ")


def test_unix_socket_is_served_and_removed(begun: Path) -> None:
    folder = begun
    path = folder / "socket"
    with serving(folder, "--uds", str(path)) as server:
        assert server.said[-1].startswith(f"serving {path}")
        transport = httpx.HTTPTransport(verify=False, uds=str(path))
        with httpx.Client(transport=transport, timeout=PATIENCE_S) as client:
            assert client.get("http://shim/osgprod/healthz").status_code == 200
        assert server.end(signal.SIGINT) == 0
    assert not path.exists()


def test_socket_that_a_killed_shim_left_is_replaced_and_a_file_is_not(folder: Path) -> None:
    path = folder / "socket"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    inode = path.stat().st_ino
    with contextlib.closing(_listen_at(str(path))) as listener:
        with pytest.raises(OperatorError, match="Address already in use"):
            _listen_at(str(path))
        assert listener.getsockname() == str(path) and path.is_socket()
        _remove_socket(str(path), inode + 1)
        assert path.exists(), "another one has taken its place"
        _remove_socket(str(path), path.stat().st_ino)
        assert not path.exists()
    path.write_text("mine")
    with pytest.raises(OperatorError, match="Address already in use"):
        _listen_at(str(path))
    assert path.read_text() == "mine"


def test_serving_without_its_database_says_so_and_goes_on(folder: Path) -> None:
    environment = {**os.environ, "OSGPROD_DSN": f"host={folder} dbname=nowhere", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "shim", "serve", "--port", "0"]
    server = subprocess.Popen(command, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert server.stdout.readline().startswith(
            "no work is assigned: the database has a problem (osgprod doctor)"
        )
        assert server.stdout.readline().startswith("serving ")
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=PATIENCE_S)
    assert server.returncode == 0


# A signal that comes at the line "serving", in the middle of a destructor: Python drops what a handler raises there.
SIGNALLED = """
import os, signal
from shim.cli.serving import serve

class Signals:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        sum(range(1000))

def say(line):
    if line.startswith("serving "):
        Signals()
        print("signalled", flush=True)

serve("127.0.0.1", 0, None, 1, say)
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_serves_though_its_log_is_on_a_full_disk(workers: str) -> None:
    port = free_port()
    with Path("/dev/full").open("w") as full:
        server = subprocess.Popen(
            [sys.executable, "-m", "shim", "serve", "--port", str(port), "--workers", workers],
            cwd=CHECKOUT, env={**os.environ, "OSGPROD_DSN": "host=/nonexistent"}, stdout=full, stderr=full,
        )  # fmt: skip

    def answers() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return ask(f"http://127.0.0.1:{port}/osgprod/healthz").status_code == 503
        return False

    try:
        wait_until(answers, "it serves", server, pause_s=0.05)
    finally:
        server.terminate()
        server.wait(PATIENCE_S)


def test_signal_that_comes_right_after_the_start_ends_the_server() -> None:
    nowhere = "host=/nonexistent dbname=osgprod"  # a server without its database serves, too
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED],
        cwd=CHECKOUT,
        env={**os.environ, "OSGPROD_DSN": nowhere},
        stdout=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_S,
    )
    assert (done.returncode, done.stdout) == (0, "signalled\n")


@pytest.mark.parametrize("workers", ["2"])
def test_several_processes_serve_one_port_and_all_end(begun: Path, workers: str) -> None:
    folder = begun
    with serving(folder, "--workers", workers) as server:

        def answers() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return ask(f"{server.url}/healthz").status_code == 200
            return False

        wait_until(answers, "a process serves", server.process, server.log)
        assert {ask(f"{server.url}/{EXAMPLE}").status_code for _ in range(10)} == {200}
        assert server.end(signal.SIGINT) == 0
    assert programs_of(folder) == []


@pytest.mark.parametrize("workers", ["1", "2"])
def test_serve_whose_own_postgresql_ends_ends_with_a_line_that_says_what_to_do(
    begun: Path, workers: str
) -> None:
    with serving(begun, "--workers", workers) as server:
        pid = int((begun / "data" / "data" / "postmaster.pid").read_text().split("\n")[0])
        os.kill(pid, signal.SIGQUIT)
        assert server.process.wait(PATIENCE_S) == 1, server.log()
        assert (
            "osgprod: its PostgreSQL has ended\nhint: start osgprod serve again, nothing is lost"
            in server.log()
        )
    wait_until_gone(begun)


SLOW_APP = """
import os, pathlib, time

async def application(scope, receive, send):  # that of the shim takes longer to import
    pass

def create_app():
    while pathlib.Path("slow").exists():
        time.sleep(0.05)
    if pathlib.Path("broken").exists():
        os._exit(3)
    pathlib.Path(f"made-{os.getpid()}").touch()
    return application
"""


class Reloading:
    """``serve`` with two workers that start slowly, or not at all, while there is a file ``slow`` or ``broken``."""

    def __init__(self, folder: Path, start_s: float) -> None:
        (folder / "slow_app.py").write_text(SLOW_APP)
        program = (
            "from shim.cli import serving\n"
            f"serving.WORKER_START_S, serving.RELOAD_AGAIN_S = {start_s}, 0.1\n"
            "serving.serve('127.0.0.1', 0, None, 2, lambda line: None, 'slow_app:create_app')"
        )
        environment = {
            **os.environ,
            "OSGPROD_DSN": "host=/nonexistent",
            "PYTHONPATH": f"{CHECKOUT}:{folder}",
            "TMPDIR": str(folder),  # what a killed one leaves
        }
        self._log = folder / "log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program], cwd=folder, stderr=log, env=environment
            )

    def workers(self) -> set[str]:
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        found = set()
        for child in children:
            with contextlib.suppress(OSError):
                found |= {child} if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes() else set()
        return found

    def log(self) -> str:
        return self._log.read_text()

    def wait_for(self, what: str, is_there: Callable[[], bool]) -> None:
        wait_until(is_there, what, self.process, lambda: (self.workers(), self.log()))


@contextlib.contextmanager
def reloading(folder: Path, start_s: float) -> Iterator[Reloading]:
    server = Reloading(folder, start_s)
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait(PATIENCE_S)


def test_reload_is_tried_until_each_process_is_replaced(folder: Path) -> None:
    with reloading(folder, start_s=0.5) as server:
        server.wait_for("both serve", lambda: len(list(folder.glob("made-*"))) == 2)
        for what in ("slow", "broken"):
            former, said = server.workers(), len(server.log())
            (folder / what).touch()
            server.process.send_signal(signal.SIGHUP)
            server.wait_for(
                "the reload fails", lambda said=said: "the reload is tried again" in server.log()[said:]
            )
            assert former <= server.workers(), "the old processes go on"
            (folder / what).unlink()
            server.wait_for(
                "both are replaced",
                lambda former=former: len(server.workers()) == 2 and not server.workers() & former,
            )


def test_processes_end_with_the_first_one_even_if_that_is_killed(folder: Path) -> None:
    def run(workers: set[str]) -> list[str]:
        found = []
        for pid in workers:
            with contextlib.suppress(OSError):
                found += [pid] * bool(Path(f"/proc/{pid}/cmdline").read_bytes())  # a zombie has none
        return found

    with reloading(folder, start_s=10 * PATIENCE_S) as server:
        server.wait_for("both serve", lambda: len(list(folder.glob("made-*"))) == 2)
        workers = server.workers()
        server.process.kill()
        server.process.wait(PATIENCE_S)
        wait_until(lambda: not run(workers), "its processes have ended", seen=lambda: run(workers))


@pytest.mark.slow
def test_first_process_that_is_killed_leaves_no_folder_of_metrics(folder: Path) -> None:
    server = subprocess.Popen(
        [sys.executable, "-m", "shim", "serve", "--port", "0", "--workers", "2"],
        cwd=CHECKOUT, env={**os.environ, "OSGPROD_DSN": "host=/nonexistent", "TMPDIR": str(folder)},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    with contextlib.closing(server.stdout or io.StringIO()) as said:
        url = next(line for line in said if line.startswith("serving ")).split()[1].rstrip(",")
        assert ask(f"{url}/healthz").status_code == 503
        assert list(folder.glob("osgprod-metrics-*/*.db")), "its processes count"
        server.kill()
    server.wait(PATIENCE_S)
    wait_until(lambda: not list(folder.iterdir()), "nothing is left", seen=lambda: list(folder.iterdir()))


def test_a_server_that_waits_for_a_new_process_ends_at_once_when_it_is_told_to(folder: Path) -> None:
    with reloading(folder, start_s=10 * PATIENCE_S) as server:
        server.wait_for("both serve", lambda: len(list(folder.glob("made-*"))) == 2)
        (folder / "slow").touch()
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("a third process starts", lambda: len(server.workers()) == 3)
        server.process.terminate()
        assert server.process.wait(PATIENCE_S) == 0
    wait_until_gone(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has folders that the server's user can't enter")
def test_programs_below_a_folder_like_roots_own_are_copied(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = folder / "home"
    home.mkdir(mode=0o700)
    programs = embedded.find_programs()
    package = programs.parent.parent
    for source in (package, package.with_name(f"{package.name}.libs")):
        if source.exists():
            subprocess.run(["cp", "-a", str(source), str(home)], check=True)
    monkeypatch.setenv("OSGPROD_PG_BINDIR", str(home / programs.relative_to(package.parent)))
    (folder / "data").mkdir()
    prepared.put_data(folder / "data")
    for _ in range(2):
        with (
            embedded.server(folder / "data", **embedded.NOT_DURABLE) as dsn,
            psycopg.connect(dsn) as connection,
        ):
            assert connection.execute("SELECT 1").fetchone() == (1,)
    assert len(list((folder / "data").glob("programs*"))) == 1


@pytest.mark.slow
def test_demo_keeps_its_promise() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "shim.local.demo"], cwd=CHECKOUT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    last = ended.stdout.splitlines()[-1]
    assert last == (
        "demo: 3 files, 220 of 220 blocks done exactly once, 1320 of 1320 events, 3 merged files delivered"
    )
    assert "was killed with SIGKILL while it ran, and is started again" in ended.stdout
    whole = ended.stdout.index("220 of 220 blocks done\n")
    assert ended.stdout.find(" of 3 files merged; the server looks for merges", whole) > 0, (
        "no silence while it waits"
    )


def test_demo_gives_up_only_when_nothing_is_done_for_a_while() -> None:
    stall = Stall(150)
    assert not any(stall.is_over(n, 100.0 * n) for n in range(9)), "a busy machine is slow"
    assert not stall.is_over(8, 950) and stall.is_over(8, 951)


@pytest.mark.slow
def test_demo_that_is_stopped_kills_its_jobs_and_leaves_nothing(folder: Path) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "shim.local.demo"], cwd=CHECKOUT, env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert demo.stdout is not None
    assert any("is started again" in line for line in demo.stdout), "jobs are at work"
    demo.send_signal(signal.SIGINT)
    output = demo.stdout.read()
    assert (
        demo.wait(PATIENCE_S) == 128 + signal.SIGINT
        and "demo stopped" in output
        and "Traceback" not in output
    )
    demo.stdout.close()
    assert list(folder.iterdir()) == []
    # The kernel takes a moment to end the killed processes.
    wait_until(
        lambda: not at_work_below(folder), "its processes have ended", seen=lambda: at_work_below(folder)
    )


def test_data_folder_that_cannot_be_made_is_one_line_with_a_hint(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(embedded.EmbeddedError, match="file/data: Not a directory") as caught:
        embedded.Server(folder / "file" / "data", {}).start()
    assert "OSGPROD_DATA_FOLDER" in caught.value.hint
