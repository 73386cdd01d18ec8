"""Killed anywhere, in mid-traffic, again and again: nothing is lost, nothing is done twice, and the clients finish by
themselves. All of I1 to I6 of docs/design.md; the seed is printed."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from shim.database import call, connect
from shim.local.embedded import Server
from tests import prepared
from tests.support import LiveShim, World, server_folder, wait_until
from tests.whole.traffic import MortalShim, Traffic, losing_answers

AGAIN_AND_AGAIN = pytest.mark.parametrize("times", [2, pytest.param(10, marks=pytest.mark.slow)])
IN_A_CALL = (
    "SELECT pid FROM pg_stat_activity WHERE application_name = 'osgprod shim' AND wait_event_type = 'Lock'"
    " AND datname = current_database()"
)


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    return random.Random(seed)


def check(world: World, traffic: Traffic, nblocks: int) -> None:
    """Each block's output exactly once, by the count of who made them and by the database's."""
    print(
        f"{nblocks} blocks, asked again {traffic.asked_again} times, {traffic.restarts} restarts,"
        f" {traffic.superseded} superseded"
    )
    assert len(traffic.blocks) == nblocks
    assert set(traffic.blocks.values()) == {1}
    assert call(world.db, "verify", project="p", deep=True) == []
    assert world.progress()["blocks_done"] == nblocks


def mid_traffic(traffic: Traffic, nblocks: int, chance: random.Random, times: int) -> Iterator[None]:
    """So many moments, as outputs grow to two thirds of all blocks: by count, so that no machine is too fast."""
    step = nblocks * 2 // 3 // times
    for n in range(times):
        outputs = n * step + chance.randrange(1, step)
        while len(traffic.blocks) < outputs:
            assert traffic.is_running, traffic.errors
            time.sleep(0.001)
        time.sleep(0.01 * chance.random())
        yield


def test_answers_lost_between_commit_and_client_lose_nothing(
    world: World, shim: LiveShim, chance: random.Random
) -> None:
    world.add_file(60)
    with losing_answers(shim.port, lambda: chance.random() < 0.3) as port:
        with Traffic(port, chance) as traffic:
            pass
    assert traffic.asked_again > 15
    assert traffic.restarts > 3, "who asked again got the same slice again"
    check(world, traffic, 60)


@AGAIN_AND_AGAIN
def test_shim_killed_again_and_again(world: World, folder: Path, chance: random.Random, times: int) -> None:
    nblocks = 40 * times
    with LiveShim(world.dsn, folder / "www") as live:
        live.add_template("p")
    world.add_file(nblocks)
    # Jobs that do not work have a request on its way at nearly any moment.
    with MortalShim(world.dsn, folder / "www") as shim, Traffic(shim.port, chance, work_s=0) as traffic:
        for _ in mid_traffic(traffic, nblocks, chance, times):
            shim.kill()
    assert traffic.asked_again > 0  # a kill may fall between two requests
    check(world, traffic, nblocks)


@AGAIN_AND_AGAIN
def test_backends_killed_again_and_again(
    world: World, shim: LiveShim, chance: random.Random, times: int
) -> None:
    nblocks = 30 * times
    world.add_file(nblocks)
    with connect(world.dsn) as holder, Traffic(shim.port, chance, internal_errors=2) as traffic:
        for _ in mid_traffic(traffic, nblocks, chance, times):
            with holder.transaction():  # so that a session is in a call, however few processors there are
                holder.execute("SELECT FROM osgprod_data.loaded_files FOR NO KEY UPDATE")
                wait_until(lambda: world.db.execute(IN_A_CALL).fetchall(), "a call waits for the file")
                victim = chance.choice(world.db.execute(IN_A_CALL).fetchall())
            time.sleep(0.004 * chance.random())  # it goes on, and dies anywhere
            world.db.execute("SELECT pg_terminate_backend(%s)", [victim["pid"]])
    check(world, traffic, nblocks)


@pytest.fixture
def durable() -> Iterator[tuple[Server, World]]:
    """A separate server whose commits survive a crash, with the project "p"."""
    folder = server_folder("test")
    server = Server(folder, {"max_connections": "40", "autovacuum_naptime": "1"})
    prepared.put_data(folder)
    server.start()
    try:
        with connect(server.dsn) as db:
            yield server, World(db, server.dsn).with_project("p")
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@AGAIN_AND_AGAIN
def test_server_killed_again_and_again(
    durable: tuple[Server, World], folder: Path, chance: random.Random, times: int
) -> None:
    server, world = durable
    nblocks = 30 * times
    world.add_file(nblocks)
    with LiveShim(server.dsn, folder / "www") as live:
        live.add_template("p")
        with Traffic(live.port, chance) as traffic:
            for _ in mid_traffic(traffic, nblocks, chance, times):
                server.restart(signal.SIGQUIT)
    assert traffic.asked_again > 0  # a kill may fall between two requests
    with connect(server.dsn) as db:
        check(World(db, server.dsn), traffic, nblocks)


def test_what_was_answered_survives_a_crash_at_once(durable: tuple[Server, World]) -> None:
    server, world = durable
    world.add_file(3)
    first = world.checkout(0)
    server.restart(signal.SIGQUIT)
    with connect(server.dsn) as db:
        assert world.report(0, db=db, token=str(first["token"]))["status"] == "done"
        server.restart(signal.SIGQUIT)
    with connect(server.dsn) as db:
        assert world.report(0, db=db, token=str(first["token"]))["status"] == "done"
        assert call(db, "verify", project="p", deep=True) == []


def test_call_that_was_cut_in_the_middle_leaves_nothing_behind(world: World) -> None:
    """Killed before its commit, at any place: here while it waits for a file that another has."""
    world.add_file(3)
    holder: psycopg.Connection[dict[str, Any]]
    with connect(world.dsn) as holder, connect(world.dsn) as victim, holder.transaction():
        world.checkout(0, db=holder)  # not committed: the file is locked
        pid = victim.info.backend_pid

        def ask(n: int, connection: psycopg.Connection[Any]) -> object:
            if n == 0:
                with pytest.raises(psycopg.OperationalError):
                    world.checkout(1, db=victim)
                return None
            waits = "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
            wait_until(lambda: connection.execute(waits, [pid]).fetchall(), "the call waits for the file")
            return connection.execute("SELECT pg_terminate_backend(%s)", [pid])

        world.at_once(2, ask)
    assert world.checkout(1)["block1"] == 2
    assert world.progress()["blocks_leased"] == 2
