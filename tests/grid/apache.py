"""A real Apache, with the site files that ship."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import ssl
import subprocess
import tempfile
from pathlib import Path
from typing import Self

import httpx

from tests.grid.xrootd import make_certificate
from tests.support import CHECKOUT, PATIENCE_S, free_port, wait_until

MODULES = ("mpm_event", "authz_core", "ssl", "socache_shmcb", "proxy", "proxy_http", "headers", "wsgi")
# Debian's own configuration; everything else is in the site file. Apache serves this document root, but not ours.
CONFIG = """\
ServerRoot {folder}
ServerName localhost
PidFile {folder}/pid
ErrorLog {folder}/error.log
Listen 127.0.0.1:{port}
{modules}
{user}
StartServers 2
ThreadsPerChild 25
MaxRequestWorkers 100
WSGISocketPrefix {folder}/wsgi
DocumentRoot {document_root}
<Directory {document_root}>
  Require all granted
</Directory>
{defines}
Include {site}
"""


class Apache:
    """Apache with one of deploy/'s site files on https://localhost:port.

    Parameters
    ----------
    site : str
        File name in deploy/.
    document_root : Path
        Where the work scripts are.
    defines : dict[str, str]
        Settings of the site file.
    environment : dict[str, str]
        Of the server.
    """

    def __init__(
        self, site: str, document_root: Path, defines: dict[str, str], environment: dict[str, str]
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="osgprod-apache-", dir="/tmp"))
        self.folder.chmod(0o755)
        self.port = free_port()
        self.url = f"https://localhost:{self.port}"
        make_certificate(self.folder)
        self._context = ssl.create_default_context(cafile=str(self.folder / "cert.pem"))
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        shutil.copy(CHECKOUT / "deploy" / site, self.folder / "site.conf")
        defines = {
            "OSGPROD_SERVER": "localhost",
            "OSGPROD_LISTEN": f"127.0.0.1:{self.port}",
            "OSGPROD_CERTIFICATE": f"{self.folder}/cert.pem",
            "OSGPROD_KEY": f"{self.folder}/key.pem",
            "OSGPROD_LOG": f"{self.folder}/access.log",
            **defines,
        }
        folder = "/usr/lib/apache2/modules"
        text = CONFIG.format(
            folder=self.folder,
            port=self.port,
            modules="\n".join(f"LoadModule {name}_module {folder}/mod_{name}.so" for name in MODULES),
            user="User nobody\nGroup nogroup" if os.geteuid() == 0 else "",
            document_root=document_root,
            defines="\n".join(f"Define {name} {value}" for name, value in defines.items()),
            site=self.folder / "site.conf",
        )
        (self.folder / "apache.conf").write_text(text)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            ["/usr/sbin/apache2", "-f", str(self.folder / "apache.conf"), "-DFOREGROUND"],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", **self._environment},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_until(self._answers, "Apache answers", self._process, self.errors, 0.1)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self.get("/osgprod/healthz").status_code == 200
        return False

    def errors(self) -> str:
        """The last lines of the error log."""
        return self._log()[-3000:]

    def _log(self) -> str:
        path = self.folder / "error.log"
        return path.read_text() if path.exists() else ""

    def graceful(self) -> None:
        """What ``apachectl graceful`` does."""
        assert self._process is not None
        before = self._log().count("resuming normal operations")
        self._process.send_signal(signal.SIGUSR1)
        wait_until(
            lambda: self._log().count("resuming normal operations") > before,
            "Apache resumes",
            self._process,
            self.errors,
            0.05,
        )

    def client(self) -> httpx.Client:
        """A client that makes a new connection for each request, as jobs do."""
        return httpx.Client(
            verify=self._context, timeout=PATIENCE_S, limits=httpx.Limits(max_keepalive_connections=0)
        )

    def get(self, path: str, **arguments: object) -> httpx.Response:
        with self.client() as client:
            return client.get(self.url + path, **arguments)  # type: ignore[arg-type]
