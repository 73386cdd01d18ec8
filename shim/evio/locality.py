"""Asks storage which files are online, on tape only (nearline), or gone."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from shim.deadline import REQUEST_S, ends_within
from shim.evio.remote import HTTP, ROOT

TIMEOUT_S = 60
FILES_A_REQUEST = 500
ONLINE, NEARLINE, GONE = "online", "nearline", "gone"
# The localities of the WLCG tape REST API, and those of a WebDAV server that has dCache's property FileLocality.
TAPE_REST = {"DISK": ONLINE, "DISK_AND_TAPE": ONLINE, "TAPE": NEARLINE, "LOST": GONE, "NONE": GONE}
WEBDAV = {"ONLINE": ONLINE, "ONLINE_AND_NEARLINE": ONLINE, "NEARLINE": NEARLINE, "LOST": GONE, "NONE": GONE}
NOT_THERE = re.compile(
    r"no such file|ENOENT|file not found|(file|path|entry) (does not|doesn't) exist", re.IGNORECASE
)
NOT_ALLOWED = re.compile(r"access|permission|denied|authori", re.IGNORECASE)  # some say both in one text
PROPFIND = (
    b'<?xml version="1.0"?><propfind xmlns="DAV:"><prop>'
    b'<FileLocality xmlns="http://srm.lbl.gov/StorageResourceManager"/></prop></propfind>'
)


def localities(urls: Iterable[str], token: str | None = None) -> dict[str, str | None]:
    """Ask storage where files are. No file is read or staged.

    Parameters
    ----------
    urls : iterable of str
        Paths, or URLs.
    token : str, optional
        Bearer token for https.

    Returns
    -------
    dict
        For each URL online, nearline (on tape only) or gone; None where storage can't tell or doesn't answer.
    """
    found: dict[str, str | None] = {}
    by_server: dict[str, list[str]] = {}
    for url in urls:
        parts = urlsplit(url)
        scheme = parts.scheme.lower()
        if scheme in HTTP:
            by_server.setdefault(f"{'https' if scheme[-1] == 's' else 'http'}://{parts.netloc}", []).append(
                url
            )
        elif scheme in ROOT:
            found[url] = _of_xrootd(parts.netloc, parts.path)
        elif scheme in ("", "file"):  # another machine may see what this one doesn't
            found[url] = ONLINE if Path(parts.path if scheme else url).is_file() else None
        else:
            found[url] = None  # a cache of a federation fetches what it lacks
    for server, ours in by_server.items():
        found |= _of_web_server(server, ours, token)
    return found


def _of_xrootd(host: str, path: str) -> str | None:
    """Ask an XRootD server by its client `xrdfs`; its stat has a flag Offline."""
    try:
        done = subprocess.run(
            ["xrdfs", host, "stat", "/" + path.lstrip("/")], capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return GONE if "[3011]" in done.stderr + done.stdout else None
    flags = re.search(r"^Flags:\s*\d+ \(([^)]*)\)", done.stdout, re.MULTILINE)
    return NEARLINE if flags and "Offline" in flags[1].split("|") else ONLINE


def _of_web_server(server: str, urls: list[str], token: str | None) -> dict[str, str | None]:
    """Ask by the WLCG tape REST API if the server has one, else by WebDAV."""
    found: dict[str, str | None] = dict.fromkeys(urls)
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        endpoint = _tape_endpoint(server, token)
        if endpoint:
            for start in range(0, len(urls), FILES_A_REQUEST):
                found |= _by_tape_rest(endpoint, urls[start : start + FILES_A_REQUEST], token)
        else:
            for url in urls:
                found[url] = _by_webdav(server, urlsplit(url).path, token)
    return found


def _tape_endpoint(server: str, token: str | None) -> str | None:
    """Return where a server's tape REST API is.

    Source: WLCG Tape REST API, version 1, discovery
    """
    status, body = _ask("GET", f"{server}/.well-known/wlcg-tape-rest-api", token)
    if status != 200:
        return None
    endpoints = [one for one in json.loads(body)["endpoints"] if one.get("version") == "v1"]
    uri = endpoints[0]["uri"] if endpoints else None
    return (
        uri.rstrip("/") if isinstance(uri, str) and urlsplit(uri).netloc == urlsplit(server).netloc else None
    )


def _by_tape_rest(endpoint: str, urls: list[str], token: str | None) -> dict[str, str | None]:
    paths = {"/" + unquote(urlsplit(url).path).lstrip("/"): url for url in urls}
    status, body = _ask("POST", f"{endpoint}/archiveinfo", token, json.dumps({"paths": list(paths)}).encode())
    answers: list[Mapping[str, Any]] = json.loads(body) if status == 200 else []
    return {paths[answer["path"]]: _of_answer(answer) for answer in answers if answer.get("path") in paths}


def _of_answer(answer: Mapping[str, Any]) -> str | None:
    """What an entry of archiveinfo says. Its error is a text for people: only one that says so means gone."""
    if "locality" in answer:
        return TAPE_REST.get(answer["locality"])
    text = str(answer.get("error", ""))
    return GONE if NOT_THERE.search(text) and not NOT_ALLOWED.search(text) else None


def _by_webdav(server: str, path: str, token: str | None) -> str | None:
    status, body = _ask("PROPFIND", server + path, token, PROPFIND)
    if status == 404:
        return GONE
    locality = re.search(rb"<(?:\w+:)?FileLocality[^>]*>\s*(\w+)\s*<", body) if status == 207 else None
    if locality:
        return WEBDAV.get(locality[1].decode())
    # A server that knows no property of that name has no tape.
    status, _ = _ask("HEAD", server + path, token)
    return {200: ONLINE, 404: GONE}.get(status)


def _ask(method: str, url: str, token: str | None, body: bytes | None = None) -> tuple[int, bytes]:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    headers = {"Accept": "*/*", "Depth": "0"}
    if body is not None:
        headers["Content-Type"] = "application/json" if method == "POST" else "application/xml"
    if token and parts.scheme == "https":
        headers["Authorization"] = f"Bearer {token}"
    connection = kind(parts.netloc, timeout=TIMEOUT_S)
    try:
        with ends_within(connection, REQUEST_S):
            connection.request(method, parts.path or "/", body, headers)
            response = connection.getresponse()
            return response.status, response.read()
    finally:
        connection.close()
