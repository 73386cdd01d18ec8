"""Who may see the dashboard and the metrics: who knows the token, or comes from an allowed network.

The token comes from the form of the page, then in a cookie, or as ``Authorization: Bearer``. Without a token and
without allowed networks, only loopback addresses may.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress

from starlette.requests import Request
from starlette.responses import Response

from shim.config import SettingError, Settings
from shim.web.address import plain

COOKIE = "osgprod_dashboard"
COOKIE_LIFE_S = 30 * 86400
SHORTEST_TOKEN = 16
LOOPBACK = "127.0.0.0/8, ::1/128"
# Only proxies send these headers. The address of a proxy that is not trusted says nothing about the client
# behind it.
FORWARDED = ("x-forwarded-for", "x-real-ip", "forwarded", "via", "x-forwarded-host")


class Guard:
    """Decides which callers may see the dashboard.

    Parameters
    ----------
    settings : Settings
        dashboard_token and dashboard_allow count.

    Raises
    ------
    SettingError
        A token that is too short, or a value that is not a network.
    """

    def __init__(self, settings: Settings) -> None:
        self._token = settings.dashboard_token.text
        allowed = settings.dashboard_allow
        if allowed is None:
            allowed = "" if self._token else LOOPBACK
        if self._token and len(self._token) < SHORTEST_TOKEN:
            raise SettingError("OSGPROD_DASHBOARD_TOKEN", "", f"{SHORTEST_TOKEN} characters or longer")
        self._networks = []
        for word in allowed.replace(",", " ").split():
            try:
                self._networks.append(ipaddress.ip_network(word))
            except ValueError:
                rule = "a list of networks like 10.1.0.0/16, without bits set behind the slash"
                raise SettingError("OSGPROD_DASHBOARD_ALLOW", word, rule) from None

    @property
    def has_token(self) -> bool:
        """Is there a token that a person could type in?"""
        return bool(self._token)

    def admits(self, request: Request) -> bool:
        """May the sender of this request look?"""
        kind, _, word = request.headers.get("authorization", "").partition(" ")
        return (
            self._is_inside(request)
            or (kind.lower() == "bearer" and self.knows(word.strip()))
            or self._same(request.cookies.get(COOKIE, ""), self._cookie())
        )

    def knows(self, token: str) -> bool:
        """Is this the token?"""
        return self._same(token, self._token)

    def remember(self, request: Request, response: Response, path: str) -> None:
        """Lets the browser in from now on. What it keeps is not the token, and is void when the token changes."""
        keep(request, response, COOKIE, self._cookie(), COOKIE_LIFE_S, path)

    def _cookie(self) -> str:
        return hmac.new(self._token.encode(), b"osgprod dashboard", hashlib.sha256).hexdigest()

    def _same(self, given: str, wanted: str) -> bool:
        return bool(self._token) and hmac.compare_digest(given.encode(), wanted.encode())

    def _is_inside(self, request: Request) -> bool:
        client = request.scope["osgprod.client"]
        peer = plain(request.client.host) if request.client else None
        if client is None or (client == peer and any(name in request.headers for name in FORWARDED)):
            return False
        address = ipaddress.ip_address(client)
        return any(address in network for network in self._networks)


def keep(request: Request, response: Response, name: str, value: str, life_s: int, path: str) -> None:
    """Set a cookie that only this site gets and no script reads; behind https it is sent by https alone.

    Parameters
    ----------
    request, response : Request, Response
        The answer to this request sets it.
    name, value : str
        Of the cookie.
    life_s : int
        For so long the browser keeps it [s].
    path : str
        The root path of the pages; empty = /.
    """
    scheme = request.headers.get("x-forwarded-proto", request.url.scheme)
    response.set_cookie(
        name, value, life_s, path=path or "/", secure=scheme == "https", httponly=True, samesite="strict"
    )
