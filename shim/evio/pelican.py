"""Where a Pelican federation has an object: its director is asked for caches."""

from __future__ import annotations

import http.client
import json
import re
import ssl
from collections.abc import Iterable
from urllib.parse import urlsplit

from shim.deadline import REQUEST_S, ends_within
from shim.evio.errors import EvioError

PELICAN = {"osdf", "pelican"}
OSDF_HOST = "osg-htc.org"  # tells where the director of the OSDF is
TIMEOUT_S = 60
MAX_CACHES = 6
MAX_BYTES = 65536  # of a configuration
REDIRECTS = (301, 302, 303, 307, 308)


def split(url: str) -> tuple[str, str]:
    """Return a federation's host (with a port where one is named) and the path of an object, still percent-encoded.

    osdf:///PATH and osdf://FOLDER/PATH name no host.
    """
    parts = urlsplit(url)
    if parts.scheme == "osdf":
        return OSDF_HOST, "/" + (parts.netloc + parts.path).lstrip("/")
    return parts.netloc, "/" + parts.path.lstrip("/")


def places(url: str) -> list[tuple[str, bool]]:
    """Ask a federation's director for an object.

    Parameters
    ----------
    url : str
        Of scheme osdf or pelican.

    Returns
    -------
    list of (str, bool)
        URLs of caches, the preferred one first, and whether the director demands a token for them.

    Raises
    ------
    EvioError
        The federation or its director doesn't answer, or names no cache.
    """
    host, path = split(url)
    status, _, body = _ask(url, f"https://{host}/.well-known/pelican-configuration")
    try:
        director = json.loads(body)["director_endpoint"] if status == 200 else ""
    except (ValueError, KeyError, TypeError):
        director = ""
    if not isinstance(director, str) or not director.startswith("https://"):
        raise EvioError(f"{url}: the federation {host} names no director (status {status})")
    status, headers, _ = _ask(url, director.rstrip("/") + path)
    if status not in REDIRECTS:
        raise EvioError(f"{url}: the director answers {status} instead of a redirect")
    said = ", ".join(headers.get_all("X-Pelican-Namespace", []))
    needs_token = re.search(r"require-token=true", said, re.IGNORECASE) is not None
    schemes = ("https",) if needs_token else ("https", "http")
    found = [one for one in _named(headers) if urlsplit(one).scheme in schemes]
    if not found:
        raise EvioError(f"{url}: the director names no cache")
    return [(one, needs_token) for one in found[:MAX_CACHES]]


def _named(headers: http.client.HTTPMessage) -> Iterable[str]:
    """Return the Location, then the links by their priority (RFC 6249), none twice but for a query."""
    location = headers.get("Location", "")
    links = []
    for link, attributes in re.findall(r"<([^<>\s]+)>([^<]*)", ", ".join(headers.get_all("Link", []))):
        priority = re.search(r"\bpri=\"?(\d{1,6})", attributes)
        if "rel=" not in attributes or re.search(r"rel=\"?duplicate", attributes):
            links.append((int(priority[1]) if priority else 999_999, link))
    links.sort(key=lambda link: link[0])
    first = [location] if location else []
    return [*first, *dict.fromkeys(link for _, link in links if link != location.partition("?")[0])]


def _ask(name: str, url: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Send a GET to a host by https; return status, headers and the first bytes of the body. Follows no redirect."""
    parts = urlsplit(url)
    connection = http.client.HTTPSConnection(parts.netloc, timeout=TIMEOUT_S)
    try:
        with ends_within(connection, REQUEST_S):
            connection.request("GET", parts.path or "/", headers={"Range": "bytes=0-65535"})
            response = connection.getresponse()
            return response.status, response.headers, response.read(MAX_BYTES)
    except (OSError, http.client.HTTPException, ssl.SSLError, ValueError) as error:
        raise EvioError(f"{name}: {parts.netloc}: {error or type(error).__name__}") from error
    finally:
        connection.close()
