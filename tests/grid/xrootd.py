"""A real XRootD server: the root protocol, XrdHttp with TLS, and writes with a token."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import sqlite3
import ssl
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Self

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support import free_port, wait_until

ISSUER = "https://issuer.invalid"  # its keys are in the server's cache: nobody asks it
CONFIG = """\
all.export /
oss.localroot {folder}/data
all.adminpath {folder}/admin
all.pidpath {folder}/admin
xrd.port {port}
xrd.network nodnr
xrd.tls {folder}/cert.pem {folder}/key.pem
xrd.tlsca certfile {folder}/cert.pem
xrd.protocol http:{https_port} libXrdHttp.so
xrootd.chksum max 2 adler32 crc32c
xrootd.seclib libXrdSec.so
sec.protocol unix
sec.protbind * unix
http.header2cgi Authorization authz
ofs.authorize 1
ofs.authlib ++ libXrdAccSciTokens.so config={folder}/scitokens.cfg
acc.authdb {folder}/authdb
"""
# Instead of the lines about checksums and rights.
CACHE = """\
ofs.osslib libXrdPss.so
pss.cachelib libXrdPfc.so
pss.origin {origin}
pfc.ram 1g
pfc.blocksize 128k
"""
# Without a token a client may read raw data, and over the root protocol write below /open.
AUTHDB = "u * /raw lr /open a\n"
SCITOKENS = f"[Global]\nonmissing = passthrough\n[Issuer test]\nissuer = {ISSUER}\nbase_path = /outputs\n"


ANSWERS_WITHIN_S = 15  # even on a busy machine


class XRootD:
    """Serves ``folder``/data, which has raw (to read), outputs (to write with a token) and open, on loopback.

    XRootD 5.5 now and then stops to answer http under many short connections ("Dispatch on closed link" in its log,
    then silence, while root goes on), or ends by SIGSEGV in libcrypto. As a site would, we look after it and start it
    again.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="osgprod-xrootd-", dir="/tmp"))
        self.port, self.https_port = free_port(), free_port()
        self.root_url = f"root://127.0.0.1:{self.port}/"
        self.https_url = f"https://localhost:{self.https_port}"
        self.data, self.certificate = self._folder / "data", self._folder / "cert.pem"
        self.log = self._folder / "log"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._process: subprocess.Popen[bytes] | None = None
        self._is_over = threading.Event()
        self._lock = threading.Lock()  # the guard starts it again, but not what a test has just stopped
        self._guard = threading.Thread(target=self._look_after, daemon=True)

    def __enter__(self) -> Self:
        user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        for name in ("data/raw", "data/outputs", "data/open", "admin", "cache/scitokens"):
            (self._folder / name).mkdir(parents=True)
        self._certify()
        (self._folder / "x.cfg").write_text(self._config())
        (self._folder / "scitokens.cfg").write_text(SCITOKENS)
        (self._folder / "authdb").write_text(AUTHDB)
        self._fill_key_cache()
        self._folder.chmod(0o755)
        if user:
            for path in (self._folder, *self._folder.rglob("*")):
                os.chown(path, user.pw_uid, user.pw_gid)
        self.start()
        self._guard.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._guard.join()
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _certify(self) -> None:
        make_certificate(self._folder)

    def _config(self) -> str:
        return CONFIG.format(**vars(self), folder=self._folder)

    def start(self) -> None:
        """Starts it, and returns when it answers."""
        with self._lock:
            process = self._launch()
            wait_until(self._answers, "XRootD answers", process, lambda: self.log.read_text()[-3000:], 0.05)

    def stop(self) -> None:
        with self._lock:
            self._stop()

    def crash(self) -> None:
        """Ends it as a fault would; it is there again a moment later."""
        with self._lock:
            assert self._process is not None
            self._process.kill()

    def _launch(self) -> subprocess.Popen[bytes]:
        user: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["xrootd", "-c", str(self._folder / "x.cfg"), "-n", "test", "-I", "v4"],
                cwd=self._folder,
                env={"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(self._folder / "cache")},
                stdout=log,
                stderr=log,
                **user,
            )
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process:
            process.kill()
            process.wait()

    def _ask(self) -> None:
        context = ssl.create_default_context(cafile=str(self.certificate))
        with httpx.Client(verify=context, timeout=ANSWERS_WITHIN_S) as client:
            client.head(f"{self.https_url}/raw")

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            self._ask()
            return True
        return False

    def _look_after(self) -> None:
        while not self._is_over.wait(1):
            watched = self._process
            if watched is None or self._is_well(watched):
                continue
            with self._lock:
                if watched is self._process:
                    self._stop()
                    self._launch()  # the next look tells whether that went well

    def _is_well(self, process: subprocess.Popen[bytes]) -> bool:
        try:
            self._ask()
        except httpx.TimeoutException:
            return False
        except httpx.TransportError:
            return process.poll() is None
        return True

    def token(self, scope: str = "storage.create:/ storage.modify:/ storage.read:/", **claims: object) -> str:
        """Returns a token for /outputs."""
        now = int(time.time())
        values = {"iss": ISSUER, "sub": "job", "iat": now, "nbf": now, "exp": now + 600, "scope": scope}
        values |= {"wlcg.ver": "1.0", "aud": "https://wlcg.cern.ch/jwt/v1/any", **claims}
        return jwt.encode(values, self._key, "ES256", headers={"kid": "1"})

    def _fill_key_cache(self) -> None:
        jwk = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self._key.public_key()))
        keys = {"jwks": {"keys": [{**jwk, "kid": "1", "alg": "ES256", "use": "sig"}]}}
        later = int(time.time()) + 86400
        with sqlite3.connect(self._folder / "cache" / "scitokens" / "scitokens_cpp.sqllite") as cache:
            cache.execute(
                "CREATE TABLE keycache (issuer text UNIQUE PRIMARY KEY NOT NULL, keys text NOT NULL)"
            )
            row = (ISSUER, json.dumps({**keys, "next_update": later, "expires": later}))
            cache.execute("INSERT INTO keycache VALUES (?, ?)", row)
        cache.close()


class Cache(XRootD):
    """A cache in front of another server: it fetches what it is asked for by the root protocol, and keeps it in data.

    Parameters
    ----------
    origin : XRootD
        Where the files are.
    certificate : Path
        Folder with cert.pem and key.pem for localhost.
    """

    def __init__(self, origin: XRootD, certificate: Path) -> None:
        super().__init__()
        self._origin, self._certified = origin, certificate

    def _certify(self) -> None:
        for name in ("cert.pem", "key.pem"):
            shutil.copy(self._certified / name, self._folder / name)

    def _config(self) -> str:
        lines = CACHE.format(**vars(self), folder=self._folder, origin=f"127.0.0.1:{self._origin.port}")
        return "\n".join([*CONFIG.format(**vars(self), folder=self._folder).splitlines()[:9], lines])

    def keeps(self, name: str) -> bool:
        """Has it fetched something of a file of this name?"""
        return any(path.stat().st_size for path in self.data.rglob(name))


def make_certificate(folder: Path) -> None:
    """Makes cert.pem and key.pem for localhost and 127.0.0.1 in a folder."""
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
            ),
            *("-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"), "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    (folder / "key.pem").chmod(0o400)
