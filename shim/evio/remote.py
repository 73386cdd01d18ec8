"""Files that are read over the network: http(s) by byte ranges, osdf from a cache, root by the XRootD bindings."""

from __future__ import annotations

import contextlib
import http.client
import re
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from shim.deadline import REQUEST_S, ends_within
from shim.evio import pelican
from shim.evio.errors import EvioError
from shim.evio.pelican import PELICAN
from shim.evio.source import LocalFile, Source

TIMEOUT_S = 60
RETRY_S = (0.2, 1, 4, None)
FIRST_BYTES = 1 << 16  # the first request brings what the first events need
MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
HTTP = {"http", "https", "dav", "davs"}
ROOT = {"root", "roots", "xroot", "xroots"}
SCHEMES = HTTP | ROOT | PELICAN


def _reason(error: Exception) -> str:
    """What went wrong, without the number of the error."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def is_url(name: str) -> bool:
    """Return whether a name is a URL that open_source() can read, or a broken one of such a scheme."""
    match = re.match(r"([a-z]+)://", name)
    return match is not None and match[1] in SCHEMES


def path_of(url: str) -> str:
    """Return the path that is registered for a URL: a project's prefix and this path give the URL again.

    It is percent-decoded for http and Pelican; the slashes of root://host//path become one. What is no URL is returned
    as it is.

    Raises
    ------
    EvioError
        The URL is broken.
    """
    if not is_url(url):
        return url
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise EvioError(f"{url}: {error}") from error
    if parts.scheme in PELICAN:
        return unquote(pelican.split(url)[1])
    path = unquote(parts.path) if parts.scheme in HTTP else parts.path
    return "/" + path.lstrip("/")


def open_source(name: str, token: str | None = None) -> Source:
    """Open a file or a URL.

    Parameters
    ----------
    name
        Path, or URL of http, https, dav, davs, root, roots, xroot, xroots, osdf or pelican.
    token
        Bearer token, sent over https (davs) only: to the host of the URL; for osdf and pelican to the caches that the
        director names, if it demands one.

    Raises
    ------
    EvioError
        It can't be opened.
    """
    if not is_url(name):
        return LocalFile(name)
    try:
        if urlsplit(name).scheme in PELICAN:
            return PelicanFile(name, token)
        return HttpFile(name, token) if urlsplit(name).scheme in HTTP else XrootdFile(name)
    except ValueError as error:  # of a broken URL, or one that a server names
        raise EvioError(f"{name}: {error}") from error


class HttpFile:
    """A file on a web server that answers byte ranges; reads may come from several threads."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.name, self.path = url, path_of(url)
        scheme = {"dav": "http", "davs": "https"}.get(urlsplit(url).scheme)
        self._url = url if scheme is None else scheme + url[url.index(":") :]
        self._token, self._token_host = token, urlsplit(self._url).netloc
        self._local = threading.local()
        self._connections: list[http.client.HTTPConnection] = []
        self.size, self._first = 0, b""
        try:
            self._first, self.size = self._range(0, FIRST_BYTES)
        except BaseException:
            self.close()
            raise

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes at `offset`, or fewer at the end of the file."""
        end = min(offset + length, self.size)
        if end <= offset:
            return b""
        if end <= len(self._first):
            return self._first[offset:end]
        data, size = self._range(offset, end - offset)
        if size != self.size or len(data) != end - offset:
            raise EvioError(
                f"{self.name}: byte {offset}: the server sent {len(data)} of {end - offset} bytes"
            )
        return data

    def close(self) -> None:
        """Close the connections."""
        for connection in self._connections:
            connection.close()

    def _range(self, offset: int, length: int) -> tuple[bytes, int]:
        """Return bytes, and the size of the file; a transient failure is retried."""
        for wait_s in RETRY_S:
            try:
                return self._ask(offset, length)
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, ssl.SSLCertVerificationError) or wait_s is None:
                    raise EvioError(f"{self.name}: {_reason(error)}") from error
                self._drop()
                time.sleep(wait_s)
            except ValueError as error:  # of a broken URL, also of one that the server redirects to
                raise EvioError(f"{self.name}: {error}") from error
        raise AssertionError

    def _ask(self, offset: int, length: int) -> tuple[bytes, int]:
        url = self._url
        for _ in range(MAX_REDIRECTS):
            parts = urlsplit(url)
            headers = {"Range": f"bytes={offset}-{offset + length - 1}", "Accept-Encoding": "identity"}
            if self._token and parts.scheme == "https" and parts.netloc == self._token_host:
                headers["Authorization"] = f"Bearer {self._token}"
            connection = self._connection(parts)
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            with ends_within(connection, REQUEST_S):
                connection.request("GET", target, headers=headers)
                with contextlib.closing(connection.getresponse()) as response:
                    if response.status not in REDIRECTS:
                        return self._answer(response, offset, length)
                    response.read()
                    url = urljoin(url, response.getheader("Location", ""))
            if urlsplit(url).scheme not in ("http", "https"):
                raise EvioError(f"{self.name}: redirected to {url}, which is not http")
        raise EvioError(f"{self.name}: more than {MAX_REDIRECTS} redirections")

    def _answer(self, response: http.client.HTTPResponse, offset: int, length: int) -> tuple[bytes, int]:
        if response.status == 206:
            match = re.fullmatch(rf"bytes {offset}-\d+/(\d+)", response.getheader("Content-Range", ""))
            if match is None:
                self._drop()
                raise EvioError(f"{self.name}: the server sends another range than the one asked for")
            return response.read(length), int(match[1])
        self._drop()  # with the unread part of the answer
        is_empty = response.status == 200 and response.getheader("Content-Length") == "0"
        if is_empty or (response.status == 416 and offset == 0):  # an empty file has no range
            return b"", 0
        if response.status == 200:
            raise EvioError(f"{self.name}: the server ignores byte ranges")
        if response.status in (429, 500, 502, 503, 504):
            raise http.client.HTTPException(f"status {response.status}")
        raise EvioError(f"{self.name}: status {response.status} {response.reason}")

    def _connection(self, parts: SplitResult) -> http.client.HTTPConnection:
        """Return this thread's connection to a host."""
        mine = self._local.__dict__
        key = f"{parts.scheme}://{parts.netloc}"
        if key not in mine:
            kind: Any = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
            if not parts.hostname:
                raise EvioError(f"{self.name}: no host in the URL")
            mine[key] = kind(parts.hostname, parts.port, timeout=TIMEOUT_S)
            self._connections.append(mine[key])
        connection: http.client.HTTPConnection = mine[key]
        return connection

    def _drop(self) -> None:
        for connection in self._local.__dict__.values():
            connection.close()  # it opens itself again


class PelicanFile:
    """A file of a Pelican federation, read from the first cache that serves it; reads may come from several threads."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.name, self.path = url, path_of(url)
        self._token = token
        self._places = pelican.places(url)
        self._lock = threading.Lock()
        self._files: list[HttpFile] = []
        self.size = self._next(None).size

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes at `offset`, or fewer at the end of the file; from the next cache where one fails."""
        while True:
            file = self._files[-1]
            try:
                return file.read(offset, length)
            except EvioError as error:
                self._next(file, str(error))

    def close(self) -> None:
        """Close the connections."""
        for file in self._files:
            file.close()

    def _next(self, failed: HttpFile | None, problem: str = "") -> HttpFile:
        """Open the file at the next cache, unless another thread has done so since `failed` was in use."""
        with self._lock:
            if failed is not None and self._files[-1] is not failed:
                return self._files[-1]
            while self._places:
                place, needs_token = self._places.pop(0)
                try:
                    file = HttpFile(place, self._token if needs_token else None)
                except EvioError as error:
                    problem = str(error)
                    continue
                if self._files and file.size != self.size:
                    problem = f"{place}: has {file.size} bytes instead of {self.size}"
                    continue
                self._files.append(file)
                return file
            raise EvioError(f"{self.name}: no cache serves it: {problem}")


class XrootdFile:
    """A file on an XRootD server; reads may come from several threads, on one connection."""

    def __init__(self, url: str) -> None:
        self.name, self.path = url, path_of(url)
        self._client = _bindings(url)
        self._file = self._client.File()
        self._check(self._file.open(url, timeout=TIMEOUT_S)[0])
        status, info = self._file.stat(timeout=TIMEOUT_S)
        self._check(status)
        self.size = int(info.size)

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes at `offset`, or fewer at the end of the file."""
        if offset >= self.size or length == 0:
            return b""
        status, data = self._file.read(offset, length, timeout=TIMEOUT_S)
        self._check(status)
        return bytes(data)

    def close(self) -> None:
        """Close the file."""
        self._file.close(timeout=TIMEOUT_S)

    def _check(self, status: Any) -> None:  # noqa: ANN401  # of the bindings, which have no types
        if not status.ok:
            raise EvioError(f"{self.name}: {str(status.message).strip()}")


def list_folder(url: str) -> Iterator[tuple[str, float]]:
    """Give URL and time of the last change [s since 1970] of each file below a folder of an XRootD server, in order.

    Raises
    ------
    EvioError
        The folder can't be read, or the URL is not of XRootD: a web server has no common way to list a folder.
    """
    parts = urlsplit(url)
    if parts.scheme not in ROOT:
        raise EvioError(f"{url}: a folder of a web server can't be listed: name its files with --list")
    client = _bindings(url)
    system = client.FileSystem(f"{parts.scheme}://{parts.netloc}")
    flags = client.flags
    folders = [path_of(url)]
    while folders:
        folder = folders.pop()
        status, entries = system.dirlist(folder, flags.DirListFlags.STAT, timeout=TIMEOUT_S)
        if not status.ok:
            raise EvioError(f"{url}: {str(status.message).strip()}")
        below = []
        for entry in sorted(entries or [], key=lambda entry: entry.name):
            path = f"{folder.rstrip('/')}/{entry.name}"
            if entry.statinfo is not None and entry.statinfo.flags & flags.StatInfoFlags.IS_DIR:
                below.append(path)
            else:
                changed = float(entry.statinfo.modtime) if entry.statinfo is not None else 0.0
                yield f"{parts.scheme}://{parts.netloc}/{path}", changed
        folders += reversed(below)


def _bindings(url: str) -> Any:  # noqa: ANN401  # has no types
    with contextlib.suppress(ImportError):
        from XRootD import client  # type: ignore[import-not-found]  # not everybody has it
        from XRootD.client import flags  # type: ignore[import-not-found]

        client.flags = flags
        return client
    raise EvioError(f"{url}: no XRootD bindings for Python: pip install xrootd, or load the files by https")
