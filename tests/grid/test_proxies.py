"""nginx and HAProxy in front of the shim, with the files that ship."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.grid.parts import SEARCH, need
from tests.grid.test_apache import SocketUnit, project, service, www  # noqa: F401  # fixtures
from tests.grid.test_apache import environment as bare_environment  # noqa: F401  # a fixture
from tests.grid.test_apache import world as world  # a fixture
from tests.grid.xrootd import make_certificate
from tests.support import CHECKOUT, PATIENCE_S, TOKEN, World, free_port, wait_until

# Commands, and the settings around the shipped file.
NGINX = "{user}\ndaemon off;\npid {folder}/pid;\nerror_log {folder}/error.log;\nevents {{ }}\nhttp {{\n{shipped}\n}}\n"
HAPROXY = "global\n  log stdout format raw local0\ndefaults\n  log global\n{shipped}\n"
PAUSE_S, PAUSES, CLIENTS = 5.0, 3, 8  # uvicorn's own keep-alive time is 5 s


class Proxy:
    """A proxy with its shipped file on https://localhost:port."""

    def __init__(self, name: str, unix: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="osgprod-proxy-", dir="/tmp"))
        self.folder.chmod(0o755)
        make_certificate(self.folder)
        both = (self.folder / "cert.pem").read_text() + (self.folder / "key.pem").read_text()
        (self.folder / "both.pem").write_text(both)
        self.log, port = self.folder / "access.log", free_port()
        self.url = f"https://localhost:{port}/osgprod"
        file = {"nginx": "nginx.conf", "haproxy": "haproxy.cfg"}[name]
        shipped = (CHECKOUT / "deploy" / file).read_text()
        for before, after in (
            ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
            ("bind :443", f"bind 127.0.0.1:{port}"),
            ("/etc/ssl/certs/osgprod.pem", f"{self.folder}/cert.pem"),
            ("/etc/ssl/private/osgprod.key", f"{self.folder}/key.pem"),
            ("/etc/ssl/private/osgprod.pem", f"{self.folder}/both.pem"),
            ("/var/log/nginx/osgprod.log", str(self.log)),
            ("/run/osgprod/shim.sock", str(unix)),
        ):
            shipped = shipped.replace(before, after)
        user = "user root;" if os.geteuid() == 0 else ""
        text = {"nginx": NGINX, "haproxy": HAPROXY}[name]
        config = self.folder / file
        config.write_text(text.format(user=user, folder=self.folder, shipped=shipped))
        program = shutil.which(name, path=SEARCH)
        assert program
        arguments = {
            "nginx": ["-c", str(config), "-e", str(self.folder / "error.log")],
            "haproxy": ["-db", "-f", str(config)],
        }[name]
        with (self.log if name == "haproxy" else self.folder / "out").open("wb") as out:
            self._process = subprocess.Popen([program, *arguments], stdout=out, stderr=subprocess.STDOUT)
        self._context = ssl.create_default_context(cafile=str(self.folder / "cert.pem"))
        wait_until(self._answers, f"{name} answers", self._process, self.log.read_text, 0.05)

    def client(self) -> httpx.Client:
        return httpx.Client(verify=self._context, timeout=PATIENCE_S)

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return client.get(f"{self.url}/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def environment(bare_environment: dict[str, str]) -> dict[str, str]:  # noqa: F811
    return {**bare_environment, "OSGPROD_DASHBOARD_TOKEN": TOKEN}


@pytest.fixture(scope="module", params=["nginx", "haproxy"])
def proxy(request: pytest.FixtureRequest, service: SocketUnit) -> Iterator[Proxy]:  # noqa: F811
    need(request.param)
    proxy = Proxy(request.param, service.path)
    yield proxy
    proxy.close()


def test_job_gets_work_and_reports_and_the_log_has_no_secret(
    proxy: Proxy,
    project: str,  # noqa: F811
    world: World,
) -> None:
    job = {"project": project, "cluster": 1, "process": 1, "magic": "m"}
    with proxy.client() as client:
        answer = client.get(f"{proxy.url}/workscript.bash", params=job)
        assert (answer.status_code, answer.headers["Osgprod-Status"]) == (200, "assigned")
        data = {**job, "exitcode": 0, "token": answer.headers["Osgprod-Token"]}
        assert client.post(f"{proxy.url}/workscript.exit", data=data).headers["Osgprod-Status"] == "done"
        assert (
            client.get(f"{proxy.url}/workscript.bash", params={**job, "magic": "secret"}).status_code == 403
        )
        assert client.get(proxy.url.removesuffix("/osgprod") + "/etc/passwd").status_code == 404
        world.set(project, subnet_pattern="10.9.8.0/24")
        forged = client.get(
            f"{proxy.url}/workscript.bash",
            params={**job, "process": 2},
            headers={"X-Forwarded-For": "10.9.8.7"},
        )
        assert forged.status_code == 403
    world.set(project, subnet_pattern="127.0.0.0/8")
    wait_until(
        lambda: "workscript.bash" in proxy.log.read_text(),
        "the request is in the log",
        seen=proxy.log.read_text,
    )
    assert "secret" not in proxy.log.read_text()


def test_cookie_of_the_dashboard_is_for_https_only(proxy: Proxy) -> None:
    with proxy.client() as client:
        headers = {"X-Forwarded-Proto": "http"}
        answer = client.post(f"{proxy.url}/login", data={"token": TOKEN}, headers=headers)
    assert "; secure" in answer.headers["set-cookie"].lower()


def test_proxy_that_keeps_connections_never_answers_502(proxy: Proxy) -> None:
    """Requests at the very interval after which uvicorn would close an idle connection."""

    def ask(n: int) -> list[int]:
        statuses = []
        with proxy.client() as client:
            for _ in range(PAUSES + 1):
                statuses.append(client.get(f"{proxy.url}/healthz").status_code)
                time.sleep(PAUSE_S + (n - CLIENTS // 2) * 0.002)
        return statuses

    with ThreadPoolExecutor(CLIENTS) as clients:
        assert {status for statuses in clients.map(ask, range(CLIENTS)) for status in statuses} == {200}
