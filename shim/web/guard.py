"""Who may see the dashboard and the metrics: those who know its token, or come from an address that is let in.

OSGPROD_DASHBOARD_TOKEN  a secret of 16 characters or more: in the form of the page, or as ``Authorization: Bearer``
OSGPROD_DASHBOARD_ALLOW  CIDRs that need none; without both settings loopback addresses only
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os

from starlette.requests import Request
from starlette.responses import Response

from shim.web.address import SettingError, plain

COOKIE = "osgprod_dashboard"
COOKIE_LIFE_S = 30 * 86400
SHORTEST_TOKEN = 16
LOOPBACK = "127.0.0.0/8, ::1/128"
# Who sends one of these is a proxy. Unless it is a trusted one, whose client then is the client, its own address
# says nothing of who is behind it.
FORWARDED = ("x-forwarded-for", "x-real-ip", "forwarded", "via", "x-forwarded-host")


class Guard:
    """The rule, as the environment has it.

    Errors: SettingError  a token that is too short, or something that is no CIDR
    """

    def __init__(self) -> None:
        self._token = os.environ.get("OSGPROD_DASHBOARD_TOKEN", "")
        allowed = os.environ.get("OSGPROD_DASHBOARD_ALLOW", "" if self._token else LOOPBACK)
        if self._token and len(self._token) < SHORTEST_TOKEN:
            raise SettingError(f"OSGPROD_DASHBOARD_TOKEN: has fewer than {SHORTEST_TOKEN} characters")
        try:
            self._networks = [ipaddress.ip_network(c) for c in allowed.replace(",", " ").split()]
        except ValueError as error:
            raise SettingError(f"OSGPROD_DASHBOARD_ALLOW: {error}") from None

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
        scheme = request.headers.get("x-forwarded-proto", request.url.scheme)
        response.set_cookie(
            COOKIE, self._cookie(), COOKIE_LIFE_S, path=path or "/",
            secure=scheme == "https", httponly=True, samesite="strict",
        )  # fmt: skip

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
