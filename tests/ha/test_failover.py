"""The product on a cluster of three PostgreSQL nodes: the answers to jobs, and the losses, when the primary goes."""

from __future__ import annotations

import http.client
import os
import random
import signal
import subprocess
import sys
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from shim import outputs
from shim.database import call, connect
from shim.migrate import migrate
from tests.grid.parts import need
from tests.ha.cluster import PATIENCE_S, Cluster, Node, wait_for
from tests.support import CHECKOUT, WORKER_ROLE, World
from tests.whole.traffic import Traffic

ROUNDS = int(os.environ.get("OSGPROD_HA_ROUNDS", "2"))
CLIENTS = 32
# That the shims need on top of Patroni's own time: less than 2 s where nothing else runs; make soak demands 5 s.
BEYOND_PATRONI_S = 5.0 if ROUNDS >= 10 else 30.0
FORGOTTEN = 300  # blocks whose reports no standby has
# How fast the database is back is Patroni's matter, and that of the machine's load.
JOBS_PATIENCE_S = 2 * PATIENCE_S
pytestmark = [pytest.mark.ha, pytest.mark.timeout(1200 + 300 * ROUNDS)]


class ClusterTraffic(Traffic):
    """Jobs that ask either of two shims, and go on through all that happens to the database."""

    def __init__(self, ports: list[int], chance: random.Random) -> None:
        super().__init__(ports[0], chance, CLIENTS, work_s=0.2)
        self._ports = ports
        self.statuses: Counter[int] = Counter()
        self.assigned_at: list[float] = []
        self._is_stopped = False

    def stop(self) -> None:
        """Lets each job that has begun end, and begins no more."""
        self._is_stopped = True

    def _one_job(self, cluster: int, process: int, chance: random.Random) -> bool:
        return not self._is_stopped and super()._one_job(cluster, process, chance)

    def _ask(self, route: str, parameters: dict[str, Any], chance: random.Random) -> tuple[int, Message]:
        target = f"/osgprod/{route}?{urllib.parse.urlencode(parameters)}"
        end, last = time.monotonic() + JOBS_PATIENCE_S, b""
        while time.monotonic() < end:
            connection = http.client.HTTPConnection("127.0.0.1", chance.choice(self._ports), timeout=20)
            try:
                connection.request("GET", target)
                answer = connection.getresponse()
                last = body = answer.read()
                self.statuses[answer.status] += 1
                assert answer.status != 500, body
                if answer.status not in (503, 429):
                    if answer.headers["Osgprod-Status"] == "assigned":
                        self.assigned_at.append(time.monotonic())
                    return answer.status, answer.headers
                assert answer.status != 503 or answer.headers["Retry-After"], answer.headers
            except (OSError, http.client.HTTPException) as error:
                self.statuses[0] += 1
                last = repr(error).encode()
            finally:
                connection.close()
            time.sleep(0.1 + 0.2 * chance.random())
        raise AssertionError(f"no answer from {route} for {JOBS_PATIENCE_S:.0f} s, at last {last!r}")


@contextmanager
def shim(dsn: str, folder: Path) -> Iterator[int]:
    """`osgprod serve` with a DSN that names all nodes; gives its port."""
    with (folder / "shim.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "shim", "serve", "--port", "0"],
            cwd=CHECKOUT,
            env={
                **os.environ,
                "OSGPROD_DSN": dsn + WORKER_ROLE,
                "OSGPROD_DOCUMENT_ROOT": str(folder / "www"),
                "OSGPROD_CLIENT_RATE": "0",
                "OSGPROD_PROJECT_RATE": "0",
            },
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    try:
        assert process.stdout
        line = process.stdout.readline()
        yield int(line.split("127.0.0.1:")[1].split("/")[0])
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


class ForgetfulTraffic(ClusterTraffic):
    """Jobs whose server may have forgotten them: a lagging standby was promoted."""

    # 404: it knows no attempt of this job; 403: it knows another one.
    DEFINITE = (*Traffic.DEFINITE, (404, "error"), (403, "refused"))

    def __init__(self, ports: list[int], chance: random.Random, outputs: Path) -> None:
        super().__init__(ports, chance)
        self._outputs = outputs
        outputs.mkdir()

    def _ask(self, route: str, parameters: dict[str, Any], chance: random.Random) -> tuple[int, Message]:
        """Each job delivers an output before it reports."""
        if route == "workscript.exit":
            output = self._outputs / f"{parameters['token']}.tgz"
            output.write_bytes(b"x")
            parameters = {**parameters, "output_url": f"file://{output}", "output_bytes": 1}
        return super()._ask(route, parameters, chance)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    need("etcd")
    with Cluster(synchronous_mode=True, synchronous_mode_strict=True) as cluster:
        yield cluster


def production(cluster: Cluster, name: str, folder: Path, files: int) -> str:
    """Makes a database with project p of so many files of 2,000 blocks, and its work script; returns its DSN."""
    with connect(cluster.dsn()) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'".encode())
    dsn = cluster.dsn(name)
    migrate(dsn, say=lambda line: None)
    (folder / "www" / "p").mkdir(parents=True)
    (folder / "www" / "p" / "osgprod_work.bash").write_text('#input_eviofile_list=""\n')
    with connect(dsn) as db:
        world = World(db, dsn).with_project("p", heartbeat_s=0, lease_s=20, token_required=True)
        for seqno in range(files):
            world.add_file(2000, seqno=seqno, project=None)
        call(db, "load_slices", project="p")
    return dsn


def done_blocks(dsn: str) -> set[tuple[str, int]]:
    """Which blocks the database says are done, by file name; verify finds no fault."""
    with connect(dsn) as db:
        assert call(db, "verify", project="p", deep=True) == []
        rows = db.execute(
            "SELECT r.filename, s.block1, s.block2 FROM osgprod_data.slices s"
            " JOIN osgprod_data.rawdata r USING (rawdata_id) WHERE s.state = 'done'"
        ).fetchall()
    return {(row["filename"], block) for row in rows for block in range(row["block1"], row["block2"])}


def by_file_name(blocks: Counter[tuple[str, int]]) -> Counter[tuple[str, int]]:
    return Counter({(Path(file).name, block): times for (file, block), times in blocks.items()})


def power_failure(cluster: Cluster, primary: Node) -> Callable[[], None]:
    primary.kill()
    return primary.start


def unplugged(cluster: Cluster, primary: Node) -> Callable[[], None]:
    primary.signal(signal.SIGSTOP)
    return lambda: primary.signal(signal.SIGCONT)


def switchover(cluster: Cluster, primary: Node) -> Callable[[], None]:
    cluster.switch_over(primary)
    return lambda: None


@pytest.mark.parametrize("fault", [power_failure, unplugged, switchover], ids=lambda fault: fault.__name__)
def test_with_synchronous_replication_a_failover_loses_nothing_and_does_nothing_twice(
    cluster: Cluster, fault: Callable[[Cluster, Node], Callable[[], None]], tmp_path: Path, capsys: Any
) -> None:
    name = fault.__name__
    dsn = production(cluster, name, tmp_path, files=10 * ROUNDS)
    figures = []
    with ExitStack() as stack:
        ports = [stack.enter_context(shim(dsn, tmp_path)) for _ in range(2)]
        traffic = stack.enter_context(ClusterTraffic(ports, random.Random(1)))
        for _ in range(ROUNDS):
            wait_for(cluster.is_whole, PATIENCE_S, "the cluster is whole")
            before = len(traffic.assigned_at)
            wait_for(lambda n=before: len(traffic.assigned_at) > n + CLIENTS, PATIENCE_S, "jobs get work")
            primary = cluster.primary()
            at = time.monotonic()
            restore = fault(cluster, primary)
            others = [node for node in cluster.nodes if node is not primary]
            wait_for(
                lambda nodes=others: any(node.takes_writes() for node in nodes), PATIENCE_S, "a new primary"
            )
            patroni_s = time.monotonic() - at
            new_at = time.monotonic()
            wait_for(
                lambda t=new_at: bool(traffic.assigned_at) and traffic.assigned_at[-1] > t,
                PATIENCE_S,
                "work again",
            )
            first_s = min(t for t in traffic.assigned_at if t > at + patroni_s - 1) - at
            figures.append((patroni_s, first_s))
            restore()
        traffic.stop()
        wait_for(lambda: not traffic.is_running, PATIENCE_S, "the jobs end")
    with capsys.disabled():
        print(f"\n{name}: " + "; ".join(f"primary after {p:.1f} s, work after {f:.1f} s" for p, f in figures)
              + f"; answers {dict(sorted(traffic.statuses.items()))} (0 = none)")  # fmt: skip
    answered = by_file_name(traffic.blocks)
    assert set(answered) == done_blocks(dsn), "answered done = done"
    assert max(answered.values()) == 1, "no block is done twice"
    assert traffic.statuses[500] == 0
    for patroni_s, first_s in figures:
        assert first_s - patroni_s < BEYOND_PATRONI_S, figures


def nothing_more_is_sent(primary: Node) -> str:
    """Fills the buffers of the network until the WAL that follows is not sent; returns a place in it."""
    places: list[str] = []

    def is_full() -> bool:
        places.append(primary.write_filler())
        return places[-1] != "" and not primary.has_sent(places[-1])

    wait_for(is_full, PATIENCE_S, "the buffers of the network are full")
    return places[-1]


def test_with_a_standby_that_lagged_what_was_lost_is_done_again_and_jobs_get_definite_answers(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("etcd")
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(synchronous_mode=False, maximum_lag_on_failover=1 << 30))
        dsn = production(cluster, "lagging", tmp_path, files=1)
        ports = [stack.enter_context(shim(dsn, tmp_path)) for _ in range(2)]
        with ForgetfulTraffic(ports, random.Random(2), tmp_path / "outputs") as traffic:
            wait_for(lambda: len(traffic.assigned_at) > 4 * CLIENTS, PATIENCE_S, "jobs get work")
            primary = cluster.primary()
            standbys = [node for node in cluster.nodes if node is not primary]
            known = primary.place()  # the project: one that has just been made is not what they are to lose
            wait_for(
                lambda: primary.standbys_at(known) == len(standbys), PATIENCE_S, "standbys know the project"
            )
            for node in standbys:
                wait_for(node.stop_receiving, PATIENCE_S, "a standby receives")
            behind = nothing_more_is_sent(primary)
            told_before = len(traffic.blocks)
            wait_for(
                lambda: len(traffic.blocks) > told_before + FORGOTTEN,
                PATIENCE_S,
                "work that no standby knows of",
            )
            wait_for(lambda: not primary.has_sent(behind), PATIENCE_S, "no standby knows of it")
            primary.kill()
            for node in standbys:
                node.signal(signal.SIGCONT)
            wait_for(
                lambda: any(n.takes_writes() for n in standbys),
                PATIENCE_S,
                "a new primary",
                lambda: "".join(n.log_tail() for n in standbys),
            )
            wait_for(lambda: not traffic.is_running, 3 * PATIENCE_S, "all work is done")
            if traffic.errors:  # what pytest shows then
                print(
                    *(n.log_tail() for n in standbys), (tmp_path / "shim.log").read_text()[-5000:], sep="\n"
                )
        answered = by_file_name(traffic.blocks)
        done = done_blocks(dsn)
        monkeypatch.setenv("OSGPROD_DSN", dsn)
        orphans: list[str] = []
        outputs.orphans("p", str(tmp_path / "outputs"), 0.0, orphans.append)
        with connect(dsn) as db:
            rows = db.execute(
                "SELECT output_url FROM osgprod_data.reports WHERE output_url IS NOT NULL"
            ).fetchall()
        with capsys.disabled():
            again = sum(times - 1 for times in answered.values())
            print(
                f"\nlagging standby: {again} blocks were answered done, lost, and done again;"
                f" {traffic.superseded} outputs do not count; {len(orphans)} orphans;"
                f" answers {dict(sorted(traffic.statuses.items()))}"
            )
    assert len(done) == 2000, "every block is done"
    assert set(answered) == done
    assert again >= FORGOTTEN, "blocks that were answered done and lost are done again"
    assert traffic.statuses[500] == 0
    delivered = {f"file://{path}" for path in (tmp_path / "outputs").iterdir()}
    assert {f"file://{path}" for path in orphans} == delivered - {row["output_url"] for row in rows}
    assert len(orphans) >= again, "the outputs of lost blocks are orphans"
