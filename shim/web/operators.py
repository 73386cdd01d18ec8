"""Who may act on the dashboard: operators with a token each, who signed in. Off by default.

A session is a cookie that holds a name, an end, and a code made with the operator's token: a new token ends it. Each
form holds a code made from the session, and the browser must say that the form is from this site. So no page of another
site can act in an operator's name.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from shim.config import SettingError, Settings, secret_at
from shim.errors import OperatorError
from shim.web.guard import SHORTEST_TOKEN, keep

VARIABLE = "OSGPROD_OPERATOR_TOKENS"
COOKIE = "osgprod_operator"
SESSION_S = 12 * 3600
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,31}")


class Operators:
    """Knows the operators by their tokens and sessions.

    Parameters
    ----------
    settings : Settings
        operator_tokens counts: ``NAME:TOKEN`` words, or ``file:/PATH`` of a file with them.

    Raises
    ------
    SettingError
        A word that is not NAME:TOKEN, a token that is too short, two operators with one name or token, or a file that
        can't be read. No part of a token is in the message.
    """

    def __init__(self, settings: Settings) -> None:
        text = settings.operator_tokens.text.strip()
        if text.startswith("file:"):
            try:
                text = secret_at(text)
            except OperatorError:  # its message names what may be a token
                rule = "a list of NAME:TOKEN, or file:/PATH of a readable file that is not empty"
                raise SettingError(VARIABLE, "", rule) from None
        self._tokens: dict[str, str] = {}
        for word in text.split():
            name, _, token = word.partition(":")
            if not NAME.fullmatch(name) or len(token) < SHORTEST_TOKEN:
                rule = f"a list of NAME:TOKEN, or file:/PATH; a token has {SHORTEST_TOKEN} characters or more"
                raise SettingError(VARIABLE, "", rule)
            if name in self._tokens or token in self._tokens.values():
                raise SettingError(
                    VARIABLE, "", f"a list of operators with a name and a token each; {name} has not"
                )
            self._tokens[name] = token

    @property
    def is_on(self) -> bool:
        """Is there an operator?"""
        return bool(self._tokens)

    def name_of(self, token: str) -> str | None:
        """Return whose token this is; None = nobody's."""
        names = [
            n for n, known in self._tokens.items() if hmac.compare_digest(token.encode(), known.encode())
        ]
        return names[0] if names else None

    def remember(self, request: Request, response: Response, name: str, path: str) -> None:
        """Begin a session in the browser. The cookie does not hold the token."""
        end = int(time.time()) + SESSION_S
        keep(request, response, COOKIE, f"{name}/{end}/{self._code(name, f'session {end}')}", SESSION_S, path)

    def forget(self, response: Response, path: str) -> None:
        """End the session in the browser."""
        response.delete_cookie(COOKIE, path=path or "/", httponly=True, samesite="strict")

    def who(self, request: Request) -> str | None:
        """Return the name of the signed-in operator; None = nobody is signed in."""
        name, _, rest = request.cookies.get(COOKIE, "").partition("/")
        end, _, code = rest.partition("/")
        if name not in self._tokens or not (end.isascii() and end.isdigit() and len(end) < 12):
            return None
        is_ours = hmac.compare_digest(code.encode(), self._code(name, f"session {end}").encode())
        return name if is_ours and int(end) > time.time() else None

    def form_code(self, request: Request) -> str:
        """Return what a form of the present session must hold; empty = nobody is signed in."""
        name = self.who(request)
        return self._code(name, f"form {request.cookies[COOKIE]}") if name else ""

    def accepts(self, request: Request, code: str) -> bool:
        """Is this the form of an osgprod page, sent by the signed-in operator?"""
        wanted = self.form_code(request)
        return bool(wanted) and hmac.compare_digest(code.encode(), wanted.encode()) and is_from_here(request)

    def _code(self, name: str, text: str) -> str:
        return hmac.new(
            self._tokens[name].encode(), f"osgprod {name} {text}".encode(), hashlib.sha256
        ).hexdigest()


def is_from_here(request: Request) -> bool:
    """Tell whether the browser says that a page of this site sent the request.

    By Sec-Fetch-Site where the browser sends it (https and localhost), else by Origin, whose host must be the one that
    the request is for, also as a proxy passes it on. A script of another site can set none of these headers. Without
    both of them the request is refused.

    Parameters
    ----------
    request : Request
        A POST.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = urlsplit(request.headers.get("origin", "")).netloc
    hosts = (request.headers.get("host", ""), request.headers.get("x-forwarded-host", ""))
    return bool(origin) and origin in hosts
