"""Bearer tokens (SciTokens, WLCG JWT) in place of the magic: signatures are checked here, claims in the database.

Only keys of configured issuers count. They come from a file, or from where the issuer's own metadata say, and are kept
for a day: an issuer that is down for an hour stops nobody.

Source: WLCG common JWT profiles 1.0; OpenID Connect Discovery 1.0; RFC 8414; RFC 8725 (the key decides the algorithm,
not the token).
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import urllib.error
import urllib.request
from http.client import HTTPMessage
from typing import IO, TYPE_CHECKING, Any

from shim.config import SettingError, Settings

if TYPE_CHECKING:  # a sixth of a server's start: only where tokens of issuers are accepted
    import jwt

METADATA = ("/.well-known/openid-configuration", "/.well-known/oauth-authorization-server")
FETCH_TIMEOUT_S = 10.0  # of a silent issuer
FETCH_ALL_S = 30.0  # of one that sends a byte now and then
MAX_ANSWER_BYTES = 1 << 20
MAX_TOKEN_BYTES = 8192
SKEW_S = 30  # tolerated lead of an issuer's clock; a token's expiry has no tolerance
FRESH_S = 3600.0  # keys are used for this time without a new request
STALE_S = 86400.0  # keys stay valid for this time while the issuer is down
RETRY_S = 60.0  # minimum time between two requests to an issuer, for any key that tokens name

log = logging.getLogger("osgprod")


class BearerError(Exception):
    """A token that is not taken, or can't be checked now (status 503): a line that shows nothing of it, a hint."""

    def __init__(self, message: str, status: int = 403) -> None:
        super().__init__(message)
        self.status = status
        self.code = "OG204" if status == 403 else "OG503"
        self.hint = (
            "docs/security.md tells which tokens are taken" if status == 403 else "try again in a while"
        )


class BearerTokens:
    """Verifies tokens of the issuers that the settings name.

    Parameters
    ----------
    settings : Settings
        bearer_issuers and bearer_keys count.

    Raises
    ------
    SettingError
        A URL without https (loopback excepted), or a file that can't be read.
    """

    def __init__(self, settings: Settings) -> None:
        self._issuers: dict[str, _Issuer] = {}
        for url in settings.bearer_issuers:
            if not _is_private(url):
                raise SettingError("OSGPROD_BEARER_ISSUERS", url, "a list of https:// URLs")
            self._issuers[url] = _Issuer(url)
        if self._issuers or settings.bearer_keys:
            import jwt  # noqa: F401  # now, and not while a request waits
        path = settings.bearer_keys
        if path:
            try:
                for url, keys in json.loads(path.read_text()).items():
                    self._issuers[url] = _Issuer(url, _usable(keys))
            except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
                rule = f'a readable JSON file {{issuer: {{"keys": [...]}}}} ({error})'
                raise SettingError("OSGPROD_BEARER_KEYS", str(path), rule) from None

    async def claims(self, authorization: str) -> dict[str, object] | None:
        """Returns the claims that _check_bearer asks for; None when the header holds no bearer token.

        Parameters
        ----------
        authorization : str
            The header's value.

        Raises
        ------
        BearerError
            Not signed by a configured issuer's key, expired, not valid yet; 503: no key to be had.
        """
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer":
            return None
        import jwt

        if len(token) > MAX_TOKEN_BYTES:
            raise BearerError(f"the bearer token is longer than {MAX_TOKEN_BYTES} bytes")
        try:
            return await self._verified(token)
        except jwt.ExpiredSignatureError:
            raise BearerError("the bearer token has expired") from None
        except (jwt.ImmatureSignatureError, jwt.MissingRequiredClaimError) as error:
            raise BearerError(f"the bearer token: {str(error)[:100].lower()}") from None
        except (jwt.PyJWTError, ValueError, TypeError, KeyError, RecursionError, OverflowError):
            # Includes JSON that is nested too deep, and numbers that are too large.
            raise BearerError("the bearer token is malformed, or its signature is not the issuer's") from None

    async def _verified(self, token: str) -> dict[str, object]:
        import jwt

        header = jwt.get_unverified_header(token)
        unverified = jwt.decode(token, options={"verify_signature": False})
        issuer = self._issuers.get(str(unverified.get("iss")))
        if issuer is None:
            raise BearerError("the bearer token is of an issuer that this server does not know")
        key = await issuer.key(header.get("kid"))
        claims = jwt.decode(
            token,
            key,
            algorithms=[key.algorithm_name],
            issuer=issuer.url,
            leeway=SKEW_S,
            options={"require": ["exp", "iss"], "verify_aud": False},  # the project's to say
        )
        return {name: claims.get(name) for name in ("iss", "aud", "scope", "exp")}


class _Issuer:
    """The keys of one issuer; those that were given never change, the others are fetched."""

    def __init__(self, url: str, keys: dict[str | None, jwt.PyJWK] | None = None) -> None:
        self.url = url
        self._keys = keys or {}
        self._is_fixed = keys is not None
        self._fetched_at = self._asked_at = float("-inf")
        self._lock = asyncio.Lock()
        self._renewal: asyncio.Task[bool] | None = None
        self._fetching: asyncio.Future[dict[str | None, jwt.PyJWK]] | None = None

    async def key(self, kid: str | None) -> jwt.PyJWK:
        """Returns the key of that name; without a name, the only key.

        Raises
        ------
        BearerError
            There is none; 503: there may be one, but the issuer can't be asked now.
        """
        key, age_s = self._find(kid), time.monotonic() - self._fetched_at
        if self._is_fixed or (key is not None and age_s < STALE_S):
            if not self._is_fixed and age_s > FRESH_S and not self._lock.locked():
                self._renewal = asyncio.create_task(self._renew())  # nobody waits for it
        elif await self._renew():
            key = self._find(kid)
        else:
            raise BearerError("the keys of the bearer token's issuer can't be fetched now", 503)
        if key is None:
            raise BearerError("the bearer token is signed with a key that its issuer does not publish")
        return key

    def _find(self, kid: str | None) -> jwt.PyJWK | None:
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(kid)

    async def _renew(self) -> bool:
        """Fetches the keys; False when that failed, or was tried a moment ago: then the old ones stay."""
        async with self._lock:
            # A fetch goes on in its thread after its caller gave up. A second fetch would take another thread.
            if time.monotonic() - self._asked_at < RETRY_S or (self._fetching and not self._fetching.done()):
                return False
            self._asked_at = time.monotonic()
            self._fetching = asyncio.ensure_future(asyncio.to_thread(_fetch, self.url))
            try:
                async with asyncio.timeout(FETCH_ALL_S):
                    self._keys = await asyncio.shield(self._fetching)
            except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
                log.warning("keys of issuer %s not fetched: %s", self.url, type(error).__name__)
                return False
            self._fetched_at = time.monotonic()
            return True


def _fetch(issuer: str) -> dict[str | None, jwt.PyJWK]:
    """Reads an issuer's metadata, then its keys."""
    try:
        metadata = _get(issuer.rstrip("/") + METADATA[0])
    except urllib.error.HTTPError:
        metadata = _get(issuer.rstrip("/") + METADATA[1])
    if metadata["issuer"] != issuer:
        raise ValueError("its metadata name another issuer")
    if not _is_private(metadata["jwks_uri"]):
        raise ValueError("its jwks_uri is not an https:// URL")
    return _usable(_get(metadata["jwks_uri"]))


def _get(url: str) -> dict[str, Any]:
    with _OPENER.open(url, timeout=FETCH_TIMEOUT_S) as page:
        body = page.read(MAX_ANSWER_BYTES + 1)
    if len(body) > MAX_ANSWER_BYTES:
        raise ValueError("its answer is too long")
    answer = json.loads(body)
    if not isinstance(answer, dict):
        raise ValueError("its answer is not a JSON object")
    return answer


def _is_private(url: str) -> bool:
    """Is the connection to this URL protected against changes on the way?"""
    return url.startswith(("https://", "http://127.0.0.1:", "http://[::1]:"))


class _NoWayOut(urllib.request.HTTPRedirectHandler):
    """Follows no redirection to where somebody could change the answer."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if not _is_private(newurl):
            raise ValueError("it redirects to a URL without https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_NoWayOut)


def _usable(keys: dict[str, Any]) -> dict[str | None, jwt.PyJWK]:
    """The public keys of a JWKS that sign; one that isn't understood is passed over."""
    import jwt

    usable: dict[str | None, jwt.PyJWK] = {}
    for entry in keys["keys"]:
        if entry.get("kty") not in ("RSA", "EC", "OKP") or entry.get("use", "sig") != "sig":
            continue
        try:
            usable[entry.get("kid")] = jwt.PyJWK(entry)
        except (jwt.PyJWTError, ValueError, TypeError):
            log.warning("a key of an issuer is not understood and passed over")
    return usable
