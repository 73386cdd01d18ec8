"""A real Apache with TLS in front: as a proxy of the shim, and with the shim inside by mod_wsgi."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shim.database import call, connect
from shim.local.embedded import temporary_server
from shim.migrate import migrate
from tests.grid.apache import Apache
from tests.grid.parts import need
from tests.support import CHECKOUT, PATIENCE_S, WORKER_ROLE, World, wait_until

CLIENTS, ROUNDS, ENOUGH = 6, 3, 300
MIN_CONNECTIONS = (
    3  # that one process of Apache's StartServers may have when idle: two of the pool, and the timer's
)
UNLIMITED = {"OSGPROD_CLIENT_RATE": "0"}  # all that a test asks comes from one address


class SocketUnit:
    """osgprod.service's command with the socket that systemd would hold for it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="osgprod-run-", dir="/tmp"))
        self._folder.chmod(0o755)
        self.path, self._log = self._folder / "shim.sock", self._folder / "log"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self.path.chmod(0o666)
        self._listener.listen(2048)
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        for line in (CHECKOUT / "deploy" / "osgprod.service").read_text().splitlines():
            if line.startswith("ExecStart="):
                command = line.partition("=")[2].split()
        assert command[0] == "/opt/osgprod/.venv/bin/osgprod"
        script = 'exec 3<&"$1"; shift; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"'
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *("/bin/bash", "-c", script, "-", str(self._listener.fileno())),
                    *(str(Path(sys.executable).with_name("osgprod")), *command[1:]),
                ],
                env={**os.environ, "OSGPROD_TRUSTED_PROXIES": "unix", **self._environment},
                cwd="/",
                pass_fds=[self._listener.fileno()],
                stdout=log,
                stderr=log,
            )
        self._wait_for_workers(set(), int(command[command.index("--workers") + 1]))

    def reload(self) -> None:
        assert self._process is not None
        former = self._workers()
        self._process.send_signal(signal.SIGHUP)
        self._wait_for_workers(former, len(former))

    def _wait_for_workers(self, former: set[str], number: int) -> None:
        """Waits until so many processes serve, and none of the earlier ones."""

        def they_serve() -> bool:
            workers = self._workers()
            return len(workers) == number and not workers & former

        what = f"{number} processes serve, none of {former}"
        wait_until(they_serve, what, self._process, lambda: self._log.read_text()[-3000:], 0.05)

    def _workers(self) -> set[str]:
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # one that ends just now
            return {pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()}
        return set()

    def restart(self) -> None:
        self.stop()
        self.start()

    def stop(self) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait(PATIENCE_S)

    def close(self) -> None:
        self.stop()
        self._listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)


@pytest.fixture(scope="module")
def www() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="osgprod-www-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """One database for all tests; each test has its own project."""
    need("apache")
    with temporary_server() as dsn:
        migrate(dsn, say=lambda line: None)
        with connect(dsn) as db:
            yield World(db, dsn)


@pytest.fixture
def project(world: World, www: Path) -> Iterator[str]:
    """A project with the shipped work script and one file of much work."""
    number = len(list(www.iterdir())) + 1
    name = f"p{number}"
    world.with_project(name)
    world.add_file(20_000, run=number, project=name)
    (www / name).mkdir()
    shutil.copy(CHECKOUT / "worker" / "osgprod_work.bash", www / name)
    yield name
    assert call(world.db, "verify", project=name) == []


@pytest.fixture(scope="module")
def environment(world: World, www: Path) -> dict[str, str]:
    dsn = world.dsn + WORKER_ROLE
    return {
        "OSGPROD_DSN": dsn,
        "OSGPROD_DOCUMENT_ROOT": str(www),
        "OSGPROD_ROOT_PATH": "/osgprod",
        **UNLIMITED,
    }


@pytest.fixture(scope="module")
def service(environment: dict[str, str]) -> Iterator[SocketUnit]:
    service = SocketUnit(environment)
    service.start()
    yield service
    service.close()


@pytest.fixture(scope="module")
def proxy(service: SocketUnit, www: Path) -> Iterator[Apache]:
    with Apache("apache-proxy.conf", www, {"OSGPROD_SOCKET": str(service.path)}, {}) as apache:
        yield apache


@pytest.fixture(scope="module")
def installed() -> Iterator[Path]:
    """An installation whose virtual environment is of the Python that mod_wsgi was built for."""
    need("apache")
    folder = Path(tempfile.mkdtemp(prefix="osgprod-opt-", dir="/tmp"))
    folder.chmod(0o755)
    for name in ("shim", "sql"):
        shutil.copytree(CHECKOUT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.txt", "Makefile", "README.md", "LICENSE"):
        if (CHECKOUT / name).exists():
            shutil.copy(CHECKOUT / name, folder)
    done = subprocess.run(
        ["make", "-s", "-C", str(folder), "setup", "PYTHON=/usr/bin/python3"],
        env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def wsgi(installed: Path, environment: dict[str, str], www: Path) -> Iterator[Apache]:
    with Apache("apache-wsgi.conf", www, {"OSGPROD_CHECKOUT": str(installed)}, environment) as apache:
        yield apache


@pytest.fixture(scope="module", params=["proxy", "wsgi"])
def apache(request: pytest.FixtureRequest) -> Apache:
    apache: Apache = request.getfixturevalue(request.param)
    return apache


def ask(apache: Apache, project: str, process: int, **more: Any) -> Any:
    parameters = {"project": project, "cluster": 1, "process": process, "magic": "m"}
    return apache.get("/osgprod/workscript.bash", params={**parameters, **more.pop("params", {})}, **more)


def test_slice_is_assigned_and_reported_over_tls(apache: Apache, world: World, project: str) -> None:
    answer = ask(apache, project, 1)
    assert (answer.status_code, answer.headers["Osgprod-Status"]) == (200, "assigned")
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.text.startswith("#!/usr/bin/env bash\n")
    with apache.client() as client:
        data = {
            **{"project": project, "cluster": 1, "process": 1, "magic": "m", "exitcode": 0},
            "token": answer.headers["Osgprod-Token"],
        }
        report = client.post(f"{apache.url}/osgprod/workscript.exit", data=data)
    assert (report.status_code, report.text) == (200, "thank you, the slice is done\n")
    assert world.progress(project)["blocks_done"] == 1


def test_statuses_and_headers_pass_unchanged(apache: Apache, world: World, project: str) -> None:
    assert ask(apache, project, 1, params={"magic": "wrong"}).status_code == 403
    assert ask(apache, project, 1, params={"project": "q"}).status_code == 404
    assert ask(apache, project, 1, params={"cpus": "0"}).status_code == 400
    with apache.client() as client:
        head = client.head(f"{apache.url}/osgprod/workscript.bash")
    allowed = set(head.headers["allow"].split(", "))
    assert (head.status_code, allowed) == (405, {"GET", "POST"})
    world.set(project, state="draining")
    nowork = ask(apache, project, 1)
    assert (nowork.status_code, nowork.headers["Osgprod-Status"]) == (200, "no-work")


@pytest.mark.parametrize(
    "target", ["/osgprod/\udcff\udcfe", "/osgprod/workscript.bash?a=\udcff", "/osgprod/?\udc80"]
)
def test_odd_bytes_get_a_client_error(apache: Apache, target: str) -> None:
    request = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", apache.port), PATIENCE_S) as plain:
        with apache._context.wrap_socket(plain, server_hostname="localhost") as secure:
            secure.sendall(request.encode(errors="surrogateescape"))
            status = secure.makefile("rb").readline().split()[1]
    assert status in (b"200", b"400", b"401", b"403", b"404"), status


def test_templates_are_not_served(apache: Apache, project: str) -> None:
    """Though Apache's own configuration serves the folder that they lie in."""
    script = f"{project}/osgprod_work.bash"
    for path in ("/", f"/{project}/", f"/{script}", f"/osgprod/../{script}", f"/osgprod/{script}"):
        assert apache.get(path).status_code in (403, 404), path


def test_forged_address_changes_nothing(apache: Apache, world: World, project: str) -> None:
    world.set(project, subnet_pattern="10.9.8.0/24")
    assert ask(apache, project, 1).status_code == 403
    for forged in ("10.9.8.7", "10.9.8.7, 10.9.8.7", "unix, 10.9.8.7"):
        assert ask(apache, project, 1, headers={"X-Forwarded-For": forged}).status_code == 403
    world.set(project, subnet_pattern="127.0.0.0/8")
    answer = ask(apache, project, 1, headers={"X-Forwarded-For": "10.9.8.7"})
    assert answer.headers["Osgprod-Status"] == "assigned"
    row = world.db.execute(
        "SELECT client FROM osgprod_data.attempts JOIN osgprod_data.projects USING (project_id) WHERE name = %s",
        [project],
    ).fetchone()
    assert str(row["client"]).startswith("127.0.0.1")


def test_magic_in_a_query_is_not_logged(apache: Apache, project: str) -> None:
    ask(apache, project, 1, params={"magic": "very-secret"})
    log = apache.folder / "access.log"
    wait_until(lambda: "workscript.bash" in log.read_text(), "the request is in the log", seen=log.read_text)
    assert "very-secret" not in (apache.folder / "access.log").read_text()
    assert "very-secret" not in apache.errors()


class Load:
    """Clients that ask and report as fast as they can, each request on a new connection."""

    def __init__(self, apache: Apache, project: str) -> None:
        self._apache, self._project = apache, project
        self._is_over = threading.Event()
        self.answers: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._work, args=(n,)) for n in range(CLIENTS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        wait_until(lambda: self.answers, "something is answered", seen=self._apache.errors)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            wait_until(
                lambda: sum(self.answers.values()) >= ENOUGH, "enough is answered", seen=lambda: self.answers
            )
        finally:
            self._is_over.set()
            for thread in self._threads:
                thread.join()

    def _work(self, number: int) -> None:
        process = number
        with self._apache.client() as client:
            while not self._is_over.is_set():
                process += CLIENTS
                job = {"project": self._project, "cluster": 1, "process": process, "magic": "m"}
                for route, more in (("bash", {}), ("exit", {"exitcode": 0})):
                    try:
                        answer = client.post(
                            f"{self._apache.url}/osgprod/workscript.{route}", data={**job, **more}
                        )
                        result = f"{answer.status_code} {answer.headers.get('Osgprod-Status')}"
                    except Exception as error:
                        result = repr(error)
                    self.answers[result] += 1


def under_load(apache: Apache, world: World, project: str, *restarts: Callable[[], None]) -> None:
    with Load(apache, project) as load:
        for _ in range(ROUNDS):
            for restart in restarts:
                restart()
                time.sleep(0.5)
    print(f"{sum(load.answers.values())} requests: {dict(load.answers)}")
    assert set(load.answers) == {"200 assigned", "200 done"}, f"{load.answers} {apache.errors()}"
    assert load.answers["200 assigned"] == load.answers["200 done"] >= ENOUGH / 2
    assert world.progress(project)["blocks_done"] == load.answers["200 done"]


def test_graceful_restart_of_apache_loses_no_request(apache: Apache, world: World, project: str) -> None:
    under_load(apache, world, project, apache.graceful)


def test_graceful_restarts_of_mod_wsgi_leave_no_connection_behind(wsgi: Apache, world: World) -> None:
    def connections() -> int:
        row = world.db.execute(
            "SELECT count(*) AS n FROM pg_stat_activity WHERE application_name LIKE 'osgprod %%'", []
        ).fetchone()
        return int(row["n"])

    most = connections()
    for _ in range(10):
        wsgi.graceful()
        assert wsgi.get("/osgprod/healthz").status_code == 200
    # The former processes end in their own time; then as many processes as before are left.
    wait_until(
        lambda: connections() <= max(most, 2 * MIN_CONNECTIONS),
        f"there are no more connections than the {most} before",
        seen=connections,
        pause_s=0.2,
    )


def test_reload_and_restart_of_the_shim_lose_no_request(
    proxy: Apache, service: SocketUnit, world: World, project: str
) -> None:
    under_load(proxy, world, project, service.reload, service.restart)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze here")
def test_systemd_takes_the_units(folder: Path) -> None:
    for name in ("osgprod.service", "osgprod.socket"):
        text = (CHECKOUT / "deploy" / name).read_text()
        (folder / name).write_text(text.replace("/opt/osgprod/.venv/bin/osgprod", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(folder / "osgprod.socket"), str(folder / "osgprod.service")],
        capture_output=True,
        text=True,
    )
    complaints = [line for line in done.stderr.splitlines() if "osgprod" in line]
    assert complaints == [], complaints
    assert "Restart=always" in (CHECKOUT / "deploy" / "osgprod.service").read_text()
