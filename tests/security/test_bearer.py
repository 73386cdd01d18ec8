"""Bearer tokens instead of the magic, with real keys, a real issuer on loopback, and many forgeries."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import http.server
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import strategies as st

from shim.config import SettingError, Settings
from shim.web import bearer
from tests.examples import given, settings
from tests.support import CHECKOUT, PATIENCE_S, LiveShim, World

AUDIENCE, SCOPE = "https://osgprod.example.org", "osgprod.work"


class Key:
    """A signing key of an issuer, made once: RSA keys are slow to make."""

    def __init__(self, kid: str, algorithm: str) -> None:
        self.kid, self.algorithm = kid, algorithm
        self.private: Any = (
            rsa.generate_private_key(public_exponent=65537, key_size=2048)
            if algorithm == "RS256"
            else ec.generate_private_key(ec.SECP256R1())
        )
        algorithms = jwt.algorithms.get_default_algorithms()
        self.public = {
            **json.loads(algorithms[algorithm].to_jwk(self.private.public_key())),
            "kid": kid,
            "use": "sig",
        }

    def pem(self) -> bytes:
        return self.private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )


RSA, EC, OTHER = Key("rsa-1", "RS256"), Key("ec-1", "ES256"), Key("ec-2", "ES256")


class Issuer:
    """An issuer with its metadata and keys on a real HTTP server."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = [RSA.public, EC.public]
        self.is_down = False
        self.asked: list[str] = []
        self.metadata: dict[str, Any] = {}
        issuer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked.append(self.path)
                pages = {
                    "/.well-known/openid-configuration": {
                        "issuer": issuer.url,
                        "jwks_uri": f"{issuer.url}/keys",
                        **issuer.metadata,
                    },
                    "/keys": {"keys": issuer.keys},
                }
                self.send_response(500 if issuer.is_down else 200 if self.path in pages else 404)
                self.end_headers()
                self.wfile.write(json.dumps(pages.get(self.path)).encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def token(self, key: Key = RSA, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        now = int(time.time())
        values = {"iss": self.url, "aud": AUDIENCE, "scope": f"storage.read:/ {SCOPE}", "sub": "pilot",
                  "exp": now + 600, "nbf": now - 5, "iat": now - 5, **claims}  # fmt: skip
        values = {name: value for name, value in values.items() if value is not None}
        return jwt.encode(
            values,
            key.private,
            key.algorithm,
            headers={**({"kid": key.kid} if key.kid else {}), **(headers or {})},
        )

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    made = Issuer()
    yield made
    made.close()


@pytest.fixture
def live(world: World, folder: Path, issuer: Issuer) -> Iterator[LiveShim]:
    """A shim that takes the issuer's tokens for project p."""
    world.set(bearer_issuer=issuer.url, bearer_audience=AUDIENCE, bearer_scope=SCOPE, token_required=True)
    world.add_file(500)
    with LiveShim(world.dsn, folder / "www", OSGPROD_BEARER_ISSUERS=issuer.url) as live:
        live.add_template("p")
        yield live


def ask(
    live: LiveShim, credential: str, /, process: int = 0, route: str = "workscript.bash", **more: Any
) -> httpx.Response:
    parameters = {"project": "p", "cluster": 1, "process": process, **more}
    return live.client.get(
        f"{live.url}/{route}", params=parameters, headers={"Authorization": f"Bearer {credential}"}
    )


def encoded(value: object) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.mark.parametrize("key", [RSA, EC], ids=["RSA", "EC"])
def test_a_good_token_does_all_that_the_magic_does(live: LiveShim, issuer: Issuer, key: Key) -> None:
    token = issuer.token(key)
    script = ask(live, token)
    assert script.status_code == 200, script.text
    assert script.headers["Osgprod-Status"] == "assigned"
    mine = script.headers["Osgprod-Token"]
    assert ask(live, token, route="workscript.ping", token=mine).status_code == 200
    assert (
        ask(live, token, route="workscript.exit", exitcode=0, token=mine).text
        == "thank you, the slice is done\n"
    )


def test_the_attempts_token_is_still_demanded(live: LiveShim, issuer: Issuer) -> None:
    token = issuer.token()
    ask(live, token)
    assert ask(live, token, route="workscript.exit", exitcode=0).status_code == 403


def test_a_token_with_a_wrong_claim_is_refused(live: LiveShim, issuer: Issuer) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"exp": int(time.time()) - 1}, "claim exp"),
        ({"exp": int(time.time()) - 3600}, "has expired"),
        ({"exp": None}, "exp"),
        ({"nbf": int(time.time()) + 3600}, "not yet valid"),
        ({"scope": "storage.read:/"}, "claim scope"),
        ({"scope": SCOPE + "2"}, "claim scope"),
        ({"scope": "osgprod"}, "claim scope"),
        ({"scope": ""}, "claim scope"),
        ({"scope": None}, "claim scope"),
        ({"scope": [SCOPE]}, "claim scope"),
        ({"aud": "https://elsewhere.example.org"}, "claim aud"),
        ({"aud": ["https://elsewhere.example.org"]}, "claim aud"),
        ({"aud": "ANY"}, "claim aud"),
        ({"aud": None}, "claim aud"),
        ({"aud": {AUDIENCE: 1}}, "claim aud"),
        ({"iss": "https://elsewhere.example.org"}, "issuer that this server does not know"),
        ({"iss": None}, "issuer that this server does not know"),
    ]
    for claims, words in wrong:
        answer = ask(live, issuer.token(**claims))
        assert (answer.status_code, words in answer.text) == (403, True), (claims, answer.text)
        assert answer.text.startswith("# osgprod error OG20")
    assert ask(live, issuer.token()).status_code == 200, "and a good one is taken afterwards"


def test_audience_may_be_one_of_a_list(live: LiveShim, issuer: Issuer) -> None:
    assert ask(live, issuer.token(aud=["https://elsewhere.example.org", AUDIENCE])).status_code == 200


def test_project_without_an_audience_refuses_tokens_for_others(
    world: World, live: LiveShim, issuer: Issuer
) -> None:
    world.set(bearer_audience=None)
    assert ask(live, issuer.token(aud="https://elsewhere.example.org")).status_code == 403
    for aud in (None, "ANY", "https://wlcg.cern.ch/jwt/v1/any", ["x", "ANY"]):
        assert ask(live, issuer.token(aud=aud)).status_code == 200, aud


def test_project_without_a_scope_accepts_no_token(world: World, live: LiveShim, issuer: Issuer) -> None:
    world.set(bearer_scope=None)
    answer = ask(live, issuer.token())
    assert (answer.status_code, "bearer_scope" in answer.text) == (403, True)


def test_a_token_of_a_known_issuer_is_no_good_for_another_project(
    world: World, live: LiveShim, issuer: Issuer
) -> None:
    world.with_project("q", bearer_issuer="https://other.example.org", bearer_scope=SCOPE)
    world.with_project("r")
    for project, words in (("q", "claim iss"), ("r", "takes no bearer tokens")):
        answer = ask(live, issuer.token(), project=project)
        assert (answer.status_code, words in answer.text) == (403, True), answer.text


def forgeries(issuer: Issuer) -> dict[str, str]:
    head, body, signature = issuer.token().split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    later = encoded({**claims, "exp": claims["exp"] + 86400})
    none = encoded({"alg": "none", "typ": "JWT", "kid": RSA.kid})
    with_secret = encoded({"alg": "HS256", "typ": "JWT", "kid": RSA.kid})
    mac = hmac.new(RSA.pem(), f"{with_secret}.{body}".encode(), hashlib.sha256).digest()
    jwk_mac = hmac.new(
        json.dumps(RSA.public).encode(), f"{with_secret}.{body}".encode(), hashlib.sha256
    ).digest()
    return {
        "alg none, no signature": f"{none}.{body}.",
        "alg none, old signature": f"{none}.{body}.{signature}",
        "alg None": f"{encoded({'alg': 'None', 'kid': RSA.kid})}.{body}.",
        "HS256 with the public key as secret": f"{with_secret}.{body}.{encoded(mac)}",
        "HS256 with the key's JSON as secret": f"{with_secret}.{body}.{encoded(jwk_mac)}",
        "claims changed": f"{head}.{later}.{signature}",
        "signature changed": f"{head}.{body}.{encoded(bytes(256))}",
        "signature missing": f"{head}.{body}.",
        "another key under a known name": issuer.token(OTHER, headers={"kid": EC.kid}),
        "key in the header": issuer.token(OTHER, headers={"kid": RSA.kid, "jwk": OTHER.public}),
        "keys named by the header": issuer.token(OTHER, headers={"jku": f"{issuer.url}/mine"}),
        "name is a path": issuer.token(OTHER, headers={"kid": "../../../../dev/null"}),
        "RSA token with an EC key's name": issuer.token(RSA, headers={"kid": EC.kid}),
        "a must that we don't know": issuer.token(headers={"crit": ["exp2"], "exp2": 1}),
        "two tokens": f"{issuer.token()} {issuer.token()}",
        "four parts": issuer.token() + ".x",
        "deep JSON": f"{encoded(b'[' * 5000)}.{body}.{signature}",
        "deep claims": ".".join((head, encoded(b'{"a":' * 900), signature)),
        "huge number": ".".join((head, encoded(b'{"exp":1e999}'), signature)),
        "not UTF-8": ".".join((head, encoded(b"\xff\xfe"), signature)),
        "claims no object": f"{head}.{encoded([1])}.{signature}",
        "too long": "x" * 9000,
        "no token": "aaaa",
    }  # fmt: skip


def test_every_forged_token_is_refused_and_not_repeated_in_the_answer(
    world: World, live: LiveShim, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    assert ask(live, issuer.token()).status_code == 200
    before = world.progress()
    for name, token in forgeries(issuer).items():
        answer = ask(live, token, process=7)
        assert answer.status_code in (403, 503), (name, answer.text)  # 503: maybe a key that is new
        assert token not in answer.text + caplog.text, name
        assert "Traceback" not in caplog.text, name
    assert world.progress() == before
    assert "/mine" not in issuer.asked, "a token says not where its keys are"


def test_refused_token_is_not_logged(
    live: LiveShim, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    for token in (issuer.token(), issuer.token(scope="x"), forgeries(issuer)["claims changed"]):
        ask(live, token)
        for part in token.split("."):
            assert part not in caplog.text
    assert "workscript.bash" in caplog.text


def test_magic_works_beside_tokens_and_takes_precedence(live: LiveShim, issuer: Issuer) -> None:
    assert live.checkout(0).status_code == 200
    assert ask(live, "nonsense", process=1, magic="m").status_code == 200, (
        "a magic was given: the header means nothing"
    )
    assert ask(live, issuer.token(), process=2, magic="").status_code == 200
    assert ask(live, issuer.token(), process=3, magic="wrong").status_code == 403


def test_another_scheme_is_no_bearer_token(live: LiveShim) -> None:
    headers = {"Authorization": "Basic dTpw"}
    answer = live.client.get(f"{live.url}/workscript.bash?project=p&cluster=1&process=0", headers=headers)
    assert (answer.status_code, "OG202" in answer.text) == (403, True)


def test_claims_can_not_be_sent_as_parameters(live: LiveShim) -> None:
    claims = json.dumps({"iss": "x", "aud": AUDIENCE, "scope": SCOPE, "exp": 4e9})
    answer = live.get("workscript.bash", project="p", cluster=1, process=0, bearer=claims)
    assert (answer.status_code, "OG202" in answer.text) == (403, True)


def test_keys_are_fetched_once_and_new_ones_when_a_token_names_one(
    live: LiveShim, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for process in range(5):
        assert ask(live, issuer.token(), process).status_code == 200
    assert issuer.asked.count("/keys") == 1
    # Rotation: the new key is asked for when the first token names it; the old one is dead from then on.
    issuer.keys = [OTHER.public]
    monkeypatch.setattr(bearer, "RETRY_S", 0.0)
    assert ask(live, issuer.token(OTHER), 6).status_code == 200
    assert issuer.asked.count("/keys") == 2
    assert ask(live, issuer.token(RSA), 7).status_code == 403


def test_unknown_key_names_cause_no_repeated_requests_to_the_issuer(live: LiveShim, issuer: Issuer) -> None:
    assert ask(live, issuer.token()).status_code == 200
    for n in range(20):
        answer = ask(live, issuer.token(OTHER, headers={"kid": f"k{n}"}))
        assert answer.status_code == 503, "maybe a new key; the issuer was asked a moment ago"
        assert answer.headers["Retry-After"]
    assert issuer.asked.count("/keys") == 1
    assert ask(live, issuer.token()).status_code == 200, "the known keys are not concerned"


def test_slow_issuer_keeps_one_thread_however_often_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bearer, "FETCH_ALL_S", 0.05)
    monkeypatch.setattr(bearer, "RETRY_S", 0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        issuer = bearer._Issuer(f"http://127.0.0.1:{server.getsockname()[1]}")

        async def ask() -> None:
            for _ in range(5):
                with pytest.raises(bearer.BearerError, match="can't be fetched now"):
                    await issuer.key("name")
            server.settimeout(60)
            server.accept()[0].close()  # the thread ends with that

        asyncio.run(ask())
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_issuer_that_is_down_for_a_day_stops_no_job(
    live: LiveShim, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(live, issuer.token()).status_code == 200
    issuer.is_down = True
    monkeypatch.setattr(bearer, "FRESH_S", 0.0)  # as if an hour had passed
    monkeypatch.setattr(bearer, "RETRY_S", 0.0)
    for process in range(3):
        assert ask(live, issuer.token(), process).status_code == 200
    monkeypatch.setattr(bearer, "STALE_S", 0.0)  # as if a day had passed
    answer = ask(live, issuer.token(), 4)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "15")
    issuer.is_down = False
    assert ask(live, issuer.token(), 4).status_code == 200


def test_an_issuer_that_was_never_reached_is_503_and_not_a_refusal(
    live: LiveShim, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer.is_down = True
    assert ask(live, issuer.token()).status_code == 503
    issuer.is_down = False
    monkeypatch.setattr(bearer, "RETRY_S", 0.0)
    assert ask(live, issuer.token()).status_code == 200


@pytest.mark.parametrize(
    "metadata",
    [
        {"issuer": "https://other.example.org"},
        {"jwks_uri": "http://192.0.2.1/keys"},
        {"jwks_uri": "file:///etc/passwd"},
    ],
)
def test_metadata_that_name_another_issuer_or_plain_http_are_not_believed(
    live: LiveShim, issuer: Issuer, metadata: dict[str, Any]
) -> None:
    issuer.metadata = metadata
    assert ask(live, issuer.token()).status_code == 503


def test_shared_secrets_and_encryption_keys_among_the_keys_are_ignored(
    live: LiveShim, issuer: Issuer
) -> None:
    secret = "c2VjcmV0LXRoYXQtaXMtbG9uZy1lbm91Z2gtZm9yLWhzMjU2"
    issuer.keys += [
        {"kty": "oct", "kid": "oct-1", "k": secret},
        {**OTHER.public, "use": "enc"},
        {"kty": "EC", "kid": "broken", "crv": "P-256", "x": "!", "y": "!"},
    ]
    assert ask(live, issuer.token()).status_code == 200
    claims = {"iss": issuer.url, "aud": AUDIENCE, "scope": SCOPE, "exp": int(time.time()) + 60}
    raw = base64.urlsafe_b64decode(secret)
    token = jwt.encode(claims, raw, "HS256", headers={"kid": "oct-1"})
    assert ask(live, token).status_code in (403, 503)
    assert ask(live, issuer.token(OTHER)).status_code in (403, 503)


def test_keys_from_a_file_need_no_network(world: World, folder: Path, issuer: Issuer) -> None:
    world.set(bearer_issuer=issuer.url, bearer_audience=AUDIENCE, bearer_scope=SCOPE)
    world.add_file(9)
    path = folder / "keys.json"
    path.write_text(json.dumps({issuer.url: {"keys": [RSA.public]}}))
    with LiveShim(world.dsn, folder / "www", OSGPROD_BEARER_KEYS=str(path)) as live:
        live.add_template("p")
        assert ask(live, issuer.token()).status_code == 200
        assert ask(live, issuer.token(EC)).status_code == 403, "not in the file"
        nameless = Key("", "RS256")
        nameless.private = RSA.private
        assert ask(live, issuer.token(nameless)).status_code == 200, "there is one key: it is meant"
    assert issuer.asked == []


@pytest.mark.parametrize(
    "url", ["http://issuer.example.org", "issuer", "ftp://x", "http://127.0.0.1.example.org:80"]
)
def test_issuer_without_https_is_refused(url: str) -> None:
    with pytest.raises(SettingError, match="OSGPROD_BEARER_ISSUERS"):
        bearer.BearerTokens(Settings.read({"OSGPROD_BEARER_ISSUERS": url}))


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"x": 1}', '{"x": {"keys": 1}}', '{"x": {"keys": [1]}}', '{"x": {}}']
)
def test_broken_key_file_is_reported_at_the_start(folder: Path, text: str) -> None:
    path = folder / "keys.json"
    path.write_text(text)
    with pytest.raises(SettingError, match="OSGPROD_BEARER_KEYS"):
        bearer.BearerTokens(Settings.read({"OSGPROD_BEARER_KEYS": str(path)}))


@settings(max_examples=200)
@given(st.one_of(
    st.text(max_size=200),
    st.lists(st.binary(max_size=40).map(encoded), min_size=3, max_size=3).map(".".join),
    st.recursive(st.none() | st.integers() | st.floats() | st.text(), lambda v: st.lists(v) | st.dictionaries(
        st.sampled_from(["alg", "kid", "iss", "exp", "nbf", "typ", "crit", "b64"]), v), max_leaves=8).map(
        lambda v: f"{encoded(v)}.{encoded(v)}.{encoded(v)}"),
))  # fmt: skip
def test_every_broken_token_is_refused_in_one_line(text: str) -> None:
    import asyncio

    tokens = bearer.BearerTokens(Settings())
    with pytest.raises(bearer.BearerError) as refused:
        asyncio.run(tokens.claims(f"Bearer {text}"))
    assert refused.value.status == 403 and len(str(refused.value).splitlines()) == 1


# --- the real exec script, which finds the token where the WLCG rules say ----------------------------------------


def run_job(
    live: LiveShim, folder: Path, process: int, **environment: str
) -> subprocess.CompletedProcess[str]:
    place = folder / f"job{process}"
    place.mkdir()
    url = environment.pop("OSGPROD_URL", live.url)
    values = {"OSGPROD_URL": url, "OSGPROD_PROJECT": "p", "OSGPROD_TRIES": "2", "OSGPROD_MAX_WAIT_S": "0"}
    values |= {
        "PATH": os.environ["PATH"],
        "HOME": str(place),
        "XDG_RUNTIME_DIR": "/nonexistent",
        **environment,
    }
    return subprocess.run(
        ["bash", str(CHECKOUT / "condor" / "osgprod_exec.sh"), "5", str(process)],
        cwd=place,
        env=values,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


@pytest.mark.parametrize("where", ["BEARER_TOKEN", "BEARER_TOKEN_FILE", "XDG_RUNTIME_DIR", "_CONDOR_CREDS"])
def test_a_job_works_with_a_token_and_no_magic(
    live: LiveShim, issuer: Issuer, folder: Path, where: str
) -> None:
    live.add_template("p", b"#!/usr/bin/env bash\n# source:\necho result >result.txt\n")
    names = {
        "BEARER_TOKEN_FILE": "token",
        "XDG_RUNTIME_DIR": f"bt_u{os.getuid()}",
        "_CONDOR_CREDS": "scitokens.use",
    }
    value = issuer.token()
    if where != "BEARER_TOKEN":
        path = folder / names[where]
        path.write_text(value + "\n")
        value = str(path if where == "BEARER_TOKEN_FILE" else folder)
    done = run_job(live, folder, 0, **{where: value})
    assert done.returncode == 0, done.stderr
    assert (folder / "job0" / "job_5_0.tar.gz").exists()
    assert issuer.asked, "its keys were fetched"


def test_job_with_a_refused_token_is_held_and_leases_no_slice(
    world: World, live: LiveShim, issuer: Issuer, folder: Path
) -> None:
    live.add_template("p", b"# source:\nexit 0\n")
    token = issuer.token(scope="storage.read:/")
    done = run_job(live, folder, 0, BEARER_TOKEN=token)
    assert done.returncode == 40 and "claim scope" in done.stderr
    assert token not in done.stderr + done.stdout
    assert world.progress()["blocks_leased"] == 0


def test_job_sends_no_token_in_clear_text(live: LiveShim, issuer: Issuer, folder: Path) -> None:
    live.add_template("p", b"# source:\nexit 0\n")
    done = run_job(
        live, folder, 0, BEARER_TOKEN=issuer.token(), OSGPROD_URL=live.url.replace("127.0.0.1", "0.0.0.0")
    )
    assert done.returncode == 40 and "magic is wrong or missing" in done.stderr


def test_job_that_outlives_its_token_reports_with_the_renewed_one(
    world: World, live: LiveShim, issuer: Issuer, folder: Path
) -> None:
    """HTCondor renews the file; the token of the start is refused at the end."""
    (folder / "a.use").write_text(issuer.token())
    live.add_template("p", f"# source:\nwhile [[ ! -e {folder}/go ]]; do sleep 0.05; done\n".encode())
    with ThreadPoolExecutor(1) as thread:
        job = thread.submit(run_job, live, folder, 0, _CONDOR_CREDS=str(folder))
        while world.progress()["blocks_leased"] == 0 and not job.done():
            time.sleep(0.05)
        world.set(bearer_scope="osgprod.later")
        (folder / "b").write_text(issuer.token(scope="osgprod.later"))
        (folder / "b").replace(folder / "a.use")
        (folder / "go").touch()
        done = job.result(PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert "thank you" in done.stderr
