"""A proxy between the jobs and the server that spoils what passes: it cuts, delays, repeats, and sends halves."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

PORTAL = b"<html><body>Please log in to use this network</body></html>\n"
# What stands between a job and the server may say any of these; none is the server's word.
STRANGERS = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%s" % (len(PORTAL), PORTAL),
    b"HTTP/1.1 404 Not Found\r\nServer: front\r\nContent-Length: 9\r\n\r\nnot here\n",
    b"HTTP/1.1 302 Found\r\nLocation: https://login.invalid/\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 409 Conflict\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"",
)


@dataclass(frozen=True)
class Fault:
    """What happens to one request.

    kind: cut       the first ``bytes`` bytes of the answer arrive, then the connection ends
          reset     the same, and the connection is reset
          lost      the request does not arrive
          unheard   the request arrives, its answer does not
          twice     the request arrives twice, at the same time; one of the answers arrives
          halves    the answer arrives in two parts with a pause between them, cut at ``bytes``
          late      the request arrives after a pause
          hints     an interim answer (103) comes before the answer
          again     the answer arrives twice
          stranger  somebody else answers: STRANGERS[bytes]; the request arrives all the same
    """

    kind: str
    bytes: int = 0


Plan = Callable[[bytes], "Fault | None"]


class ChaosProxy:
    """Listens on a loopback port, with TLS when it has a certificate, and asks ``plan`` what to do to each request.

    Parameters
    ----------
    port : int
        Of the server.
    plan : Plan
        Called with each request.
    certificate : Path | None
        File with a certificate and its key, None = plain http.
    """

    def __init__(self, port: int, plan: Plan, certificate: Path | None = None) -> None:
        self._server, self._plan, self._context = port, plan, None
        if certificate:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(certificate)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.url = f"http{'s' if certificate else ''}://127.0.0.1:{self._listener.getsockname()[1]}/osgprod"
        self.counts: Counter[str] = Counter()
        self.last_answer = b""  # as the server gave it
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError), plain:
            plain.settimeout(30)
            connection = plain
            if self._context:
                connection = self._context.wrap_socket(plain, server_side=True)
            with connection:
                request = read_message(connection)
                if request:
                    self._answer(connection, request)

    def _answer(self, connection: socket.socket, request: bytes) -> None:
        fault = self._plan(request) or Fault("none")
        with self._lock:
            self.counts["requests"] += 1
            self.counts[fault.kind] += 1
        if fault.kind == "lost":
            return
        if fault.kind == "late":
            time.sleep(0.05)
        if fault.kind == "twice":
            other = threading.Thread(target=self._ask, args=(request,))
            other.start()
            answer = self._ask(request)
            other.join()
        else:
            answer = self._ask(request)
        self.last_answer = answer
        if fault.kind == "unheard":
            return
        if fault.kind == "stranger":
            answer = STRANGERS[fault.bytes % len(STRANGERS)]
        if fault.kind == "hints":
            answer = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + answer
        if fault.kind == "again":
            answer += answer
        end = fault.bytes if fault.kind in ("cut", "reset", "halves") else len(answer)
        connection.sendall(answer[:end])
        if fault.kind == "halves":
            time.sleep(0.03)
            connection.sendall(answer[end:])
        if fault.kind == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _ask(self, request: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self._server), timeout=30) as server:
            server.sendall(request)
            return read_message(server)


def read_message(connection: socket.socket) -> bytes:
    """Reads one request or answer of HTTP/1.1 that has a Content-Length."""
    data = b""
    while True:
        head, end, body = data.partition(b"\r\n\r\n")
        if end:
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            if len(body) >= length:
                return data
        part = connection.recv(1 << 16)
        if not part:
            return b""
        data += part


def random_plan(seed: int, share: float) -> Plan:
    """A plan that spoils a share of the requests in different ways; the same seed gives the same plan."""
    dice, lock = random.Random(seed), threading.Lock()
    kinds = (
        "cut",
        "cut",
        "cut",
        "reset",
        "lost",
        "unheard",
        "twice",
        "halves",
        "late",
        "hints",
        "again",
        "stranger",
    )

    def plan(_: bytes) -> Fault | None:
        with lock:
            if dice.random() >= share:
                return None
            # Most places that matter are in the head.
            return Fault(dice.choice(kinds), dice.choice([dice.randrange(700), dice.randrange(20000)]))

    return plan


def make_authority(folder: Path) -> tuple[Path, Path]:
    """Makes an authority that only this test knows; returns a server's certificate with its key, and the folder with
    the authority's certificate as grid sites have it (hash.0)."""
    folder.mkdir()
    authorities = folder / "certificates"
    authorities.mkdir()

    def openssl(*arguments: str) -> str:
        return subprocess.run(
            ["openssl", *arguments], check=True, cwd=folder, capture_output=True, text=True
        ).stdout

    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    openssl(*new, "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem")
    openssl(
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=127.0.0.1"),
        *("-keyout", "server.key", "-out", "server.csr"),
    )
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl(
        *(
            "x509",
            "-req",
            "-in",
            "server.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
        ),
        *("-extfile", "names", "-out", "server.pem"),
    )
    number = openssl("x509", "-noout", "-hash", "-in", "ca.pem").strip()
    (authorities / f"{number}.0").write_bytes((folder / "ca.pem").read_bytes())
    both = folder / "both.pem"
    both.write_bytes((folder / "server.pem").read_bytes() + (folder / "server.key").read_bytes())
    return both, authorities
