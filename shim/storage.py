"""What storage says of a file that was delivered to a URL: size and checksum. Only a local file is read for that."""

from __future__ import annotations

import http.client
import importlib
import os
import re
import ssl
import stat
import threading
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from shim.deadline import ends_within

TIMEOUT_S = 60  # of a silent server
REQUEST_S = 60.0  # of one that sends a byte now and then
MAX_REDIRECTS = 5
HTTP = {"http": "http", "https": "https", "dav": "http", "davs": "https"}
ROOT = ("root", "roots", "xroot", "xroots")
GONE = (404, 410)


class Found(NamedTuple):
    """What was found.

    Parameters
    ----------
    fault : str
        Empty: the file is as recorded. Otherwise the difference.
    is_known : bool
        False: storage did not answer, and nothing must be done again for that.
    """

    fault: str
    is_known: bool = True


class Storage:
    """Asks storage about files; may be used by several threads.

    Parameters
    ----------
    token : str or None
        Bearer token for https and davs.
    token_hosts : iterable of str
        Host names that may see the token. URLs are what jobs report, so any other host is asked without it.
    """

    def __init__(self, token: str | None = None, token_hosts: Iterable[str] = ()) -> None:
        self._token = token
        self._token_hosts = frozenset(host.lower() for host in token_hosts)
        self.asked_without_token: set[str] = set()  # scheme and host, where there is a token
        self._local = threading.local()
        self._connections: list[http.client.HTTPConnection] = []
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closed = True
        for connection in self._connections:
            connection.close()

    def compare(self, url: str | None, size: int | None, adler32: str | None) -> Found:
        """Compare a file with its record.

        Parameters
        ----------
        url : str or None
            http(s), dav(s), root(s) or file, or a path. None: not recorded.
        size : int or None
            As recorded [bytes]; None = any.
        adler32 : str or None
            As recorded, 8 hexadecimal digits; None = any. Compared where storage tells it. A local file is read.
        """
        if not url:
            return Found("its URL is not known", False)
        # A job wrote the URL, and a server the answer: they may have any fault, and none ends the check.
        try:
            found = self._look(url)
            if isinstance(found, Found):
                return found
            has_size, has_adler32 = found
            if size is not None and has_size is not None and has_size != size:
                return Found(f"has {has_size} of {size} bytes")
            if adler32 is not None and has_adler32 is not None and int(has_adler32, 16) != int(adler32, 16):
                return Found(f"has checksum {has_adler32.zfill(8)}, not {adler32}")
        except (OSError, http.client.HTTPException, ValueError) as error:
            return Found(str(error) or type(error).__name__, False)
        return Found("")

    def _look(self, url: str) -> tuple[int | None, str | None] | Found:
        scheme = urlsplit(url).scheme if "://" in url else "file"
        if scheme in HTTP:
            return self._head(url)
        if scheme in ROOT:
            return _xrootd(url)
        if scheme == "file":
            return _local(unquote(url.split("://", 1)[1]) if "://" in url else url)
        return Found(f"nothing is known of {scheme}://", False)

    def _head(self, url: str) -> tuple[int | None, str | None] | Found:
        scheme, location = url.split("://", 1)
        url = f"{HTTP[scheme.lower()]}://{location}"
        for _ in range(MAX_REDIRECTS):
            parts = urlsplit(url)
            headers = {"Want-Digest": "adler32", "Accept-Encoding": "identity"}
            if self._token and parts.scheme == "https" and parts.hostname in self._token_hosts:
                headers["Authorization"] = f"Bearer {self._token}"
            elif self._token:
                self.asked_without_token.add(f"{parts.scheme}://{parts.hostname}")
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            response = self._ask(parts, target, headers)
            if response.status in (301, 302, 303, 307, 308):
                url = urljoin(url, response.getheader("Location", ""))
                if urlsplit(url).scheme not in ("http", "https"):
                    return Found("redirected to another scheme than http", False)
                continue
            if response.status in GONE:
                return Found("is not there")
            if response.status != 200:
                return Found(f"status {response.status} {response.reason}", False)
            length = response.getheader("Content-Length", "")
            digest = re.search(r"\badler32=([0-9A-Fa-f]{1,8})\b", response.getheader("Digest", ""))
            return int(length) if length.isdigit() else None, digest[1] if digest else None
        return Found(f"more than {MAX_REDIRECTS} redirections", False)

    def _ask(self, parts: SplitResult, target: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        """Make a request on this thread's connection to a host; the host may have closed an old connection."""
        mine, key = self._local.__dict__, f"{parts.scheme}://{parts.netloc}"
        if not parts.hostname:
            raise ValueError("no host in the URL")
        for is_last in (False, True):
            connection = mine.get(key)
            if connection is None:
                host = parts.hostname
                if parts.scheme == "https":
                    context = ssl.create_default_context()
                    connection = http.client.HTTPSConnection(
                        host, parts.port or 443, timeout=TIMEOUT_S, context=context
                    )
                else:
                    connection = http.client.HTTPConnection(host, parts.port or 80, timeout=TIMEOUT_S)
                mine[key] = connection
                self._connections.append(connection)
            try:
                with ends_within(connection, REQUEST_S):
                    connection.request("HEAD", target, headers=headers)
                    response: http.client.HTTPResponse = connection.getresponse()
                    response.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                del mine[key]
                if is_last or isinstance(error, TimeoutError):
                    raise
            else:
                if self._is_closed:  # by a check that was interrupted
                    connection.close()
                return response
        raise AssertionError


def _local(path: str) -> tuple[int | None, str | None] | Found:
    checksum = 1
    try:
        # A job may name a device, which has no end, or a FIFO, which waits for a writer.
        if not stat.S_ISREG(Path(path).stat().st_mode):
            return Found("is not a regular file", False)
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123  # a descriptor
            size = 0
            while part := file.read(1 << 20):
                checksum, size = zlib.adler32(part, checksum), size + len(part)
    except FileNotFoundError:
        return Found("is not there")
    return size, f"{checksum:08x}"


def _xrootd(url: str) -> tuple[int | None, str | None] | Found:
    try:
        client: Any = importlib.import_module("XRootD.client")
        flags: Any = importlib.import_module("XRootD.client.flags")
    except ImportError:
        return Found("root:// needs the XRootD bindings: pip install xrootd", False)
    parts = urlsplit(url)
    server: Any = client.FileSystem(f"{parts.scheme}://{parts.netloc}")
    path = parts.path.replace("//", "/", 1)
    status, about = server.stat(path, timeout=TIMEOUT_S)
    if not status.ok:
        return Found("is not there") if status.errno == 3011 else Found(status.message.strip(), False)
    status, answer = server.query(flags.QueryCode.CHECKSUM, path, timeout=TIMEOUT_S)
    words = answer.decode().strip("\0 \n").split() if status.ok else []
    return int(about.size), words[1] if len(words) == 2 and words[0] == "adler32" else None
