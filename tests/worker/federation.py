"""A Pelican federation on loopback: its configuration and its director, as a real HTTPS server."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self


class Federation:
    """Serves ``/.well-known/pelican-configuration``, and directs requests below ``/director`` to caches.

    Parameters
    ----------
    certificate
        Folder with cert.pem and key.pem for localhost.
    caches
        URLs of caches, the preferred one first; the path of an object is appended.
    needs_token
        Does the namespace demand one?
    """

    def __init__(self, certificate: Path, caches: Sequence[str] = (), needs_token: bool = False) -> None:
        self.answers = [list(caches)]  # one an answer; the last one is given for ever
        self.statuses: list[int] = []  # of the coming answers instead of a redirect
        self.needs_token = needs_token
        self.has_location = True
        self.escapes_slashes = False  # in the configuration, as some writers of JSON do
        self.query = ""  # of the Location, as a signature
        self.seen: list[tuple[str, dict[str, str]]] = []
        handler = type("Handler", (_Handler,), {"federation": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.host = f"localhost:{self._server.server_address[1]}"
        self.url = f"pelican://{self.host}"
        self.configuration: dict[str, Any] = {
            "director_endpoint": f"https://{self.host}/director",
            "namespace_registration_endpoint": f"https://{self.host}/registry",
        }

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def asked(self) -> int:
        """How often the director was asked."""
        return sum(path.startswith("/director/") for path, _ in self.seen)

    def next_answer(self) -> list[str]:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class _Handler(BaseHTTPRequestHandler):
    federation: Federation
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", headers: Sequence[tuple[str, str]] = ()) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        federation = self.federation
        federation.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        if self.path == "/.well-known/pelican-configuration":
            text = json.dumps(federation.configuration)
            if federation.escapes_slashes:
                text = text.replace("/", "\\/")
            return self._answer(200, text.encode())
        if not self.path.startswith("/director/"):
            return self._answer(404)
        if federation.statuses:
            return self._answer(federation.statuses.pop(0), b"the director says no\n")
        path = self.path.removeprefix("/director")
        caches = federation.next_answer()
        needs = str(federation.needs_token).lower()
        headers = [
            ("X-Pelican-Namespace", f"namespace=/data, require-token={needs}, collections-url=https://o")
        ]
        if caches and federation.has_location:
            headers.append(("Location", f"{caches[0]}{path}{federation.query}"))
        # Backwards, and partly in a header of their own: pri alone tells the order.
        links = [f'<{cache}{path}>; rel="duplicate"; pri={n}; depth=3' for n, cache in enumerate(caches, 1)]
        links = [*links[::-1], '<https://localhost:1/describedby>; rel="describedby"; pri=1']
        headers += [("Link", ", ".join(links[:2])), ("Link", ", ".join(links[2:]))]
        return self._answer(307, b"moved\n", headers)
