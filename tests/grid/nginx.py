"""A real nginx: a folder of raw data over HTTP/2 with TLS, and a server behind it that may break."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Self

import httpx

from tests.grid.xrootd import make_certificate
from tests.support import PATIENCE_S, free_port, wait_until

CONFIG = """\
{user}
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ }}
http {{
  log_format protocol '$server_protocol $status $request_uri';
  access_log {folder}/access.log protocol;
  client_body_temp_path {folder}/tmp;
  proxy_temp_path {folder}/tmp;
  fastcgi_temp_path {folder}/tmp;
  uwsgi_temp_path {folder}/tmp;
  scgi_temp_path {folder}/tmp;
  server {{
    listen 127.0.0.1:{port} ssl http2;
    ssl_certificate {folder}/cert.pem;
    ssl_certificate_key {folder}/key.pem;
    root {folder}/data;
    location /behind/ {{
      proxy_pass http://127.0.0.1:{behind}/;
      proxy_http_version 1.1;
      proxy_buffering off;
    }}
  }}
}}
"""


class Nginx:
    """Serves ``folder``/data; requests below /behind/ go to port ``behind`` of 127.0.0.1."""

    def __init__(self, behind: int) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="osgprod-nginx-", dir="/tmp"))
        self._behind, self.port = behind, free_port()
        self.url = f"https://localhost:{self.port}"
        self.data, self.certificate = self._folder / "data", self._folder / "cert.pem"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        for name in ("data", "tmp"):
            (self._folder / name).mkdir()
        self._folder.chmod(0o755)
        make_certificate(self._folder)
        values = {"folder": self._folder, "port": self.port, "behind": self._behind}
        user = "user root;" if os.geteuid() == 0 else ""
        (self._folder / "nginx.conf").write_text(CONFIG.format(**values, user=user))
        program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        assert program
        self._process = subprocess.Popen(
            [program, "-c", str(self._folder / "nginx.conf"), "-e", str(self._folder / "error.log")]
        )
        wait_until(self._answers, "nginx answers", self._process, self.errors, 0.05)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def requests(self) -> list[str]:
        """Returns protocol, status and path of each request so far."""
        lines = (self._folder / "access.log").read_text().splitlines()
        return [line for line in lines if not line.endswith(" /")]

    def errors(self) -> str:
        return (self._folder / "error.log").read_text()[-3000:]

    def _answers(self) -> bool:
        try:
            httpx.get(self.url, verify=False, timeout=PATIENCE_S)
        except httpx.TransportError:
            return False
        return True
