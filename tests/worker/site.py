"""A site that misbehaves on demand: an HTTP server for raw data, uploads and scripts."""

from __future__ import annotations

import re
import socket
import ssl
import threading
import time
import zlib
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from tests.support import PATIENCE_S


@dataclass
class Seen:
    """One request as it came, and how many bytes of a body were sent or taken."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""
    sent: int = 0


@dataclass
class Site:
    """Serves and stores ``files`` on a loopback port.

    Each request takes the next of ``faults``, None or the end of the list = it behaves:
    close         cuts the connection in the middle of the body
    short         sends half of the range, as if it were all
    ignore-range  sends the whole file
    wrong-range   sends as many bytes from another place
    zeros         sends zeros, as if they were the range
    shifted       sends bytes from 4 bytes later on, as if they were the range
    redirect URL  answers with a redirect to the same path there
    slow          sends, or takes, a body a kilobyte at a time with pauses
    held          the same, and stops after half of it until ``lets_go`` is set
    silent        stores an upload whole, and gives no answer until the client has gone
    truncate      stores half of an upload and says that all is well
    corrupt       stores an upload with a byte changed
    abort         cuts the connection in the middle of an upload, and keeps the received bytes
    a number      answers with this status
    """

    files: dict[str, bytes] = field(default_factory=dict)
    faults: list[str | int | None] = field(default_factory=list)
    has_checksums: bool = True
    digest: str = "adler32={:08x}"  # form of a checksum in an answer
    blind: int = 0  # how often a file that has just come is not seen yet
    can_rename: bool = True
    can_remove: bool = True
    pages: dict[str, bytes] = field(
        default_factory=dict
    )  # by path: the page that is sent in place of a file, with 200
    is_osgprod: bool = True  # marks its answers to POST as the server does
    headers: dict[str, str] = field(default_factory=dict)
    demands: str = ""  # an Authorization without which it answers 401
    port: int = 0
    certificate: Path | None = None  # a folder with cert.pem and key.pem: https

    def __post_init__(self) -> None:
        self.seen: list[Seen] = []
        self.unseen: dict[str, int] = {}
        self._server: ThreadingHTTPServer | None = None
        self._lock = threading.Lock()
        self.lets_go = threading.Event()

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}" if self.certificate else f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"site": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        if self.certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate / "cert.pem", self.certificate / "key.pem")
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self.lets_go.set()
        self._server.shutdown()
        self._server.server_close()

    def next_fault(self) -> str | int | None:
        with self._lock:
            return self.faults.pop(0) if self.faults else None

    def sent(self) -> int:
        return sum(seen.sent for seen in self.seen)


class _Handler(BaseHTTPRequestHandler):
    site: Site
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        if self.site.demands and self.headers["Authorization"] != self.site.demands:
            self._note()
            self.close_connection = True
            self._answer(401)
            return False
        return True

    def _note(self) -> Seen:
        names = {name.lower(): value for name, value in self.headers.items()}
        seen = Seen(self.command, self.path, names)
        self.site.seen.append(seen)
        return seen

    def _wait(self) -> None:
        assert self.site.lets_go.wait(PATIENCE_S), "nobody lets it go on"

    def _cut(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, status: int, body: bytes = b"", seen: Seen | None = None, **headers: object) -> None:
        fault = headers.pop("fault", None)
        self.send_response(status)
        for name, value in {**self.site.headers, **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Content-Length", str(headers.pop("length", len(body))))
        self.end_headers()
        if fault == "close":
            body = body[: len(body) // 2]
        step = 1000 if fault in ("slow", "held") else 1 << 16
        try:
            for start in range(0, len(body), step):
                if fault == "held" and start > len(body) // 2:
                    self._wait()
                part = body[start : start + step]
                self.wfile.write(part)
                if seen:
                    seen.sent += len(part)
                if fault in ("slow", "held"):
                    time.sleep(0.05)
        except OSError:
            self.close_connection = True
        if fault == "close":
            self._cut()

    def do_GET(self) -> None:
        seen, fault, whole = self._note(), self.site.next_fault(), self.site.files.get(self.path)
        if self.path in self.site.pages:
            return self._answer(200, self.site.pages[self.path])
        if isinstance(fault, int):
            return self._answer(fault, b"# osgprod error: the site says no\n")
        if fault and fault.startswith("redirect "):
            return self._answer(302, b"moved\n", Location=fault.split()[1] + self.path)
        if whole is None:
            return self._answer(404)
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", seen.headers.get("range", ""))
        if not match or fault == "ignore-range":
            return self._answer(200, whole, seen, fault=fault)
        start, end = int(match[1]), int(match[2]) + 1
        if fault == "wrong-range":
            start, end = start + 32, end + 32
        if fault == "short":
            end = start + (end - start) // 2
        part = whole[start:end]
        where = f"bytes {start}-{start + len(part) - 1}/{len(whole)}"
        if fault == "zeros":
            part = bytes(len(part))
        if fault == "shifted":
            part = part[4:] + part[:4]
        return self._answer(206, part, seen, fault=fault, Content_Range=where)

    def do_POST(self) -> None:
        seen = self._note()
        seen.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault, body = self.site.next_fault(), self.site.files.get(self.path, b"")
        ours: dict[str, object] = {"Osgprod_Request": "1-1"} if self.site.is_osgprod else {}
        if isinstance(fault, int):
            ours["Osgprod_Status"] = "error"
            return self._answer(fault, b"# osgprod error: the site says no\n# hint: ask the site\n", **ours)
        if self.path.endswith("workscript.exit"):
            ours["Osgprod_Status"] = "done"
        return self._answer(200, body, fault=fault, **ours)

    def do_HEAD(self) -> None:
        self._note()
        stored = self.site.files.get(self.path)
        if self.path in self.site.pages:
            return self._answer(200, length=len(self.site.pages[self.path]))
        if stored is None or self.site.unseen.get(self.path, 0) > 0:
            self.site.unseen[self.path] = self.site.unseen.get(self.path, 0) - 1
            return self._answer(404)
        digest = {"Digest": self.site.digest.format(zlib.adler32(stored))} if self.site.has_checksums else {}
        return self._answer(200, length=len(stored), **digest)

    def do_PUT(self) -> None:
        seen, fault = self._note(), self.site.next_fault()
        if isinstance(fault, int):
            self.close_connection = True
            return self._answer(fault)
        left, body = int(self.headers["Content-Length"]), b""
        while left > 0:
            part = self.rfile.read(min(left, 1000))
            body, left = body + part, left - len(part)
            if not part or (fault == "abort" and left < 500):
                self.site.files[self.path] = body
                return self._cut()
            if fault == "held" and left < len(body):
                self._wait()
            if fault in ("slow", "held"):
                time.sleep(0.05)
        seen.body = body
        if fault == "truncate":
            body = body[: len(body) // 2]
        if fault == "corrupt":
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.site.files[self.path] = body
        self.site.unseen[self.path] = self.site.blind
        if fault == "silent":
            self.close_connection = True
            self.connection.recv(1)
            return None
        return self._answer(201)

    def do_MOVE(self) -> None:
        self._note()
        body = self.site.files.get(self.path)
        if not self.site.can_rename or body is None:
            return self._answer(405)
        target = self.headers["Destination"].removeprefix(self.site.url)
        if target in self.site.files and self.headers["Overwrite"] == "F":
            return self._answer(412)
        self.site.files[target] = body
        self.site.unseen[target] = self.site.blind
        del self.site.files[self.path]
        return self._answer(201)

    def do_DELETE(self) -> None:
        self._note()
        if not self.site.can_remove:
            return self._answer(403)
        return self._answer(200 if self.site.files.pop(self.path, None) is not None else 404)
