"""Running jobs, and processes to kill under them: shims, and a proxy that loses answers."""

from __future__ import annotations

import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from typing import Any

from tests.support import CHECKOUT, WORKER_ROLE

TIMEOUT_S = 200.0


class Traffic:
    """Jobs that ask, work for a moment and report until no work is left; each retries, like the exec script.

    The output of a job is kept only if its report was accepted as done: `blocks` has for each block
    the number of outputs that hold it.
    """

    # Answers to a report with exit code 0 after which its job ends; with all but 200 the output does not count.
    DEFINITE: tuple[tuple[int, str | None], ...] = ((200, "done"), (409, "superseded"))

    def __init__(
        self, port: int, chance: random.Random, jobs: int = 6, work_s: float = 0.01, internal_errors: int = 0
    ) -> None:
        self._port, self._work_s = port, work_s
        # How many answers of 500 PostgreSQL may cause: docs/design.md, "PostgreSQL's own XX000".
        self._internal_errors = internal_errors
        self.blocks: Counter[tuple[str, int]] = Counter()
        self.restarts = self.superseded = self.asked_again = 0
        self.errors: list[str] = []
        self._lock = threading.Lock()
        seeds = [chance.random() for _ in range(jobs)]
        self._threads = [
            threading.Thread(target=self._job_slot, args=(n, seed)) for n, seed in enumerate(seeds)
        ]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        for thread in self._threads:
            thread.join(TIMEOUT_S)
        assert not self.is_running, "the clients did not finish by themselves"
        assert not self.errors, self.errors

    @property
    def is_running(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def _job_slot(self, slot: int, seed: float) -> None:
        chance = random.Random(seed)
        process = 0
        try:
            while self._one_job(slot, process, chance):
                process += 1
        except Exception as error:
            self.errors.append(f"job {slot}.{process}: {error!r}")

    def _one_job(self, cluster: int, process: int, chance: random.Random) -> bool:
        job = {"project": "p", "cluster": cluster, "process": process, "magic": "m"}
        while True:
            status, headers = self._ask("workscript.bash", job, chance)
            assert status == 200, (status, headers)
            if headers["Osgprod-Status"] == "no-work":
                return False
            if headers["Osgprod-Status"] == "assigned":
                break
            assert headers["Osgprod-Status"] == "wait", headers
            time.sleep(0.05)
        self.restarts += headers["Osgprod-Nstarts"] != "1"
        time.sleep(self._work_s * chance.random())
        report = {**job, "exitcode": 0, "token": headers["Osgprod-Token"]}
        name, _, span = headers["Osgprod-Slice"].rpartition("+")
        status, headers = self._ask("workscript.exit", report, chance)
        answer = (status, headers["Osgprod-Status"])
        assert answer in self.DEFINITE, answer
        with self._lock:
            if status != 200:
                self.superseded += 1
            else:
                block1, block2 = map(int, span.split(","))
                self.blocks.update((name, block) for block in range(block1, block2))
        return True

    def _ask(self, route: str, parameters: dict[str, Any], chance: random.Random) -> tuple[int, Message]:
        """Sends one request until it is answered."""
        target = f"/osgprod/{route}?{urllib.parse.urlencode(parameters)}"
        end = time.monotonic() + TIMEOUT_S
        while time.monotonic() < end:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
            try:
                connection.request("GET", target)
                answer = connection.getresponse()
                body = answer.read()
                if answer.status == 500:
                    self._internal_errors -= 1
                    assert self._internal_errors >= 0, body
                elif answer.status not in (503, 429):
                    return answer.status, answer.headers
            except (OSError, http.client.HTTPException):
                pass
            finally:
                connection.close()
            self.asked_again += 1
            time.sleep(0.02 + 0.05 * chance.random())
        raise AssertionError(f"no answer from {route} for {TIMEOUT_S:.0f} s")


_FORKING_SHIM = """
import os, signal, socket, sys
import uvicorn
from pathlib import Path
from shim.app import create_app
listener = socket.socket(fileno=int(sys.argv[1]))
signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
while True:
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        uvicorn.Server(uvicorn.Config(create_app(), log_config=None, lifespan="on")).run(sockets=[listener])
        os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
"""


class MortalShim:
    """The real shim in a separate process, started again at once when it dies, as systemd would; the listening socket
    is kept, and so is the time to import everything."""

    def __init__(self, dsn: str, document_root: Path) -> None:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(200)
        self.port: int = self._listener.getsockname()[1]
        self._parent = subprocess.Popen(
            [sys.executable, "-c", _FORKING_SHIM, str(self._listener.fileno())],
            cwd=CHECKOUT,
            env={
                **os.environ,
                "OSGPROD_DSN": dsn + WORKER_ROLE,
                "OSGPROD_DOCUMENT_ROOT": str(document_root),
                "OSGPROD_CLIENT_RATE": "0",
            },
            pass_fds=[self._listener.fileno()],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._pid = self._next_pid()

    def _next_pid(self) -> int:
        assert self._parent.stdout
        return int(self._parent.stdout.readline())

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        self._pid = self._next_pid()

    def __enter__(self) -> MortalShim:
        return self

    def __exit__(self, *error: object) -> None:
        os.killpg(self._parent.pid, signal.SIGKILL)
        self._parent.communicate()
        self._listener.close()


@contextmanager
def losing_answers(port: int, is_lost: Callable[[], bool]) -> Iterator[int]:
    """A proxy that loses some answers: the server has done the work, but the client does not learn it.

    Gives the proxy's port.
    """
    listener = socket.create_server(("127.0.0.1", 0), backlog=200)

    def one(client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", port), timeout=60) as server:
            client.settimeout(60)
            request = b""
            while b"\r\n\r\n" not in request:
                data = client.recv(65536)
                if not data:
                    return
                request += data
            server.sendall(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
            answer = b"".join(iter(lambda: server.recv(65536), b""))
            if not is_lost():
                client.sendall(answer)

    def run() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(client,), daemon=True).start()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
