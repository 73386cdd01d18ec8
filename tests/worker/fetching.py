"""The work script of one slice, to run against any storage."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support import CHECKOUT, PATIENCE_S

NOT_FETCHED = NODE_FAULT = 75
# Leaves the slice where the test finds it.
RECON = "cp -t ../kept"
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "OSGPROD_BACKOFF_MS": "5",
    "OSGPROD_TRIES": "4",
    "OSGPROD_RECON": RECON,
}
SCRIPT = CHECKOUT / "worker" / "osgprod_work.bash"


def call(commands: str, *arguments: str, cwd: Path | None = None, **environment: str) -> tuple[int, str, str]:
    """Calls functions of the work script, which is sourced; returns exit code, output and log."""
    done = subprocess.run(
        ["/bin/bash", "-c", f"source {SCRIPT}; {commands}", "-", *arguments],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


def trusting(certificate: Path) -> dict[str, str]:
    """The environment in which curl trusts a certificate, see conftest.certificate, and nobody else.

    It reads all authorities of this system otherwise, for each request: 30 ms of a processor.
    """
    return {"X509_CERT_DIR": str(certificate), "CURL_CA_BUNDLE": str(certificate / "cert.pem")}


PLACE = "http://storage.invalid~"  # in the script, quoted, until a test says where the storage is


class Slice:
    """The script of a slice, to run as often as a test likes, and the bytes that it shall get."""

    def __init__(self, assigned: dict[str, bytes], folder: Path, prefix: str) -> None:
        self.folder = folder
        self.script = assigned["script"].replace(PLACE.encode(), prefix.encode())
        lines = self.script.decode().splitlines()
        pieces = lines[lines.index("osgprod_pieces=(") + 1 :]
        self.pieces = [piece.strip(" '").split() for piece in pieces[: pieces.index(")")]]
        whole = assigned["rawdata"]
        self.expected = b"".join(
            whole[int(p[1]) : int(p[1]) + int(p[2])] if p[0] == "range" else bytes.fromhex(p[1])
            for p in self.pieces
        )
        self.ranges = sum(int(p[2]) for p in self.pieces if p[0] == "range")

    def run(
        self, *prefix: str, standard_input: bool = False, **environment: str
    ) -> tuple[int, str, bytes | None]:
        """Returns the exit code, the log, and the slice as the reconstruction saw it.

        standard_input: bash reads the script from there, as behind curl; prefix: a command before bash
        """
        work, kept = self.folder / "work", self.folder / "kept"
        for folder in (work, kept):
            folder.mkdir(exist_ok=True)
        for old in kept.iterdir():
            old.unlink()
        (self.folder / "script").write_bytes(self.script)
        with subprocess.Popen(["cat", str(self.folder / "script")], stdout=subprocess.PIPE) as cat:
            done = subprocess.run(
                [*prefix, "/bin/bash", *([] if standard_input else [str(self.folder / "script")])],
                cwd=work,
                env={**ENVIRONMENT, **environment},
                stdin=cat.stdout if standard_input else subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
            )
        assert list(work.iterdir()) == [], "the slice, whole or not, must not be taken for an output"
        assert "unbound variable" not in done.stderr
        seen = [path.read_bytes() for path in kept.iterdir()]
        return done.returncode, done.stderr, seen[0] if seen else None
