"""Blocks that can't be done are cornered, and bad nodes are kept out, with nobody watching."""

from __future__ import annotations

import math
import random
from typing import Any

import psycopg
import pytest

from shim.database import call, connect
from tests.support import World

BAD = frozenset({(1, 3), (1, 4), (2, 500), (3, 1), (4, 1000), (5, 777), (5, 123)})  # seqno, block


def test_slice_at_its_limit_is_split_in_halves_each_with_a_fresh_count(world: World) -> None:
    world.set(max_failures=2)
    world.add_file(8)
    for process in range(2):
        world.checkout(process, cpus=8)
        world.report(process, 1)
        world.let_backoff_pass()
    rows = world.db.execute(
        "SELECT block1, block2, state, failures FROM osgprod_data.slices ORDER BY 1"
    ).fetchall()
    assert [tuple(row.values()) for row in rows] == [(1, 5, "ready", 0), (5, 9, "ready", 0)]


def test_single_block_at_its_limit_is_quarantined_and_fully_described(world: World) -> None:
    world.set(max_failures=1)
    path = world.add_file(1)
    world.checkout(0, host="wn7", site="S")
    world.report(0, 9, reason="bank 3 is broken", output_url="file:///logs/x")
    row = call(world.db, "quarantined", project="p")[0]
    assert (row["path"], row["block"], row["exit_code"], row["reason"]) == (path, 1, 9, "bank 3 is broken")
    assert (row["offset_bytes"], row["size_bytes"], row["events"]) == (1000, 1000, 10)
    assert (row["worker"], row["site"], row["log_url"], row["job"]) == (
        "wn7@127.0.0.1",
        "S",
        "file:///logs/x",
        "1.0 start 1",
    )
    assert world.checkout(1)["status"] == "no-work", "a quarantined block is in nobody's way"


def test_recycle_says_first_what_it_would_do_and_then_does_it(world: World) -> None:
    world.set(max_failures=1)
    world.add_file(3)
    for process, code in enumerate((9, 0, 8)):
        world.checkout(process)
        world.report(process, code)
    wish: dict[str, Any] = {"project": "p", "exit_code": 9}
    foretold = call(world.db, "recycle", **wish, dry_run=True)
    assert [(row["block1"], row["was"], row["exit_code"]) for row in foretold] == [(1, "quarantined", 9)]
    assert world.progress()["blocks_quarantined"] == 2
    assert call(world.db, "recycle", **wish) == foretold
    assert call(world.db, "recycle", **wish) == []
    assert world.checkout(7)["block1"] == 1
    assert [r["was"] for r in call(world.db, "recycle", project="p", states=["done"])] == ["done"]
    assert world.checkout(8)["block1"] == 2
    with pytest.raises(psycopg.Error, match="states to recycle are quarantined, failed and done"):
        call(world.db, "recycle", project="p", states=["leased"])


def test_recycled_slice_is_not_done_by_a_report_from_before(world: World) -> None:
    world.add_file(1)
    world.checkout(0)
    world.let_leases_run_out()
    call(world.db, "reclaim_lost")
    world.checkout(1)
    world.report(1)
    call(world.db, "recycle", project="p", states=["done"])
    assert world.report(0)["status"] == "superseded"
    assert world.checkout(1)["status"] == "assigned", "what was completed is to be done again"


def test_7_bad_blocks_of_5000_are_cornered_while_a_tenth_of_jobs_vanish(world: World) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    world.set(maxblockspercore=50, max_failures=3, backoff_s=0)
    for seqno in range(1, 6):
        world.add_file(1000, seqno=seqno)
    seqno_of = {f"/hd_rawdata_000001_{n:03d}.evio": n for n in range(1, 6)}
    done: dict[tuple[int, int], int] = {}
    attempts = failed = 0
    with connect(world.dsn) as db, db.transaction():  # one transaction: only for speed
        while True:
            answer = world.checkout(attempts, db=db, host=f"wn{chance.randrange(500)}")
            if answer["status"] == "wait":
                db.execute("UPDATE osgprod_data.slices SET due_at = now() WHERE state = 'leased'")
                db.execute("UPDATE osgprod_data.projects SET next_due_at = '-infinity'")
                continue
            if answer["status"] == "no-work":
                break
            attempts += 1
            assert attempts < 2000, "the production does not end"
            blocks = [(seqno_of[answer["url"]], b) for b in range(answer["block1"], answer["block2"])]
            if chance.random() < 0.1:
                continue
            is_bad = bool(BAD.intersection(blocks))
            failed += is_bad
            world.report(attempts - 1, int(is_bad), db=db)
            if not is_bad:
                for block in blocks:
                    done[block] = done.get(block, 0) + 1
    rows = call(world.db, "quarantined", project="p")
    assert {(row["seqno"], row["block"]) for row in rows} == BAD
    assert len(done) == 5000 - len(BAD) and set(done.values()) == {1}
    # Each bad block costs max_failures attempts at each halving of a slice of 50, and the vanished come on top.
    bound = len(BAD) * 3 * (math.ceil(math.log2(50)) + 1)
    print(f"{attempts} attempts, {failed} failed, at most {bound} expected")
    assert failed <= bound
    assert world.progress()["blocks_done"] == 5000 - len(BAD)


def test_black_hole_eats_less_than_a_fiftieth_and_quarantines_nothing(world: World) -> None:
    """1 node of 50 fails everything in 2 seconds while the others need an hour for a slice."""
    world.set(maxblockspercore=1, max_failures=3, backoff_s=0)
    world.add_file(1500)
    chance = random.Random(4)
    attempts = by_bad = refused = process = 0
    with connect(world.dsn) as db, db.transaction():
        while True:
            process += 1
            # It is free again at once, so it asks as often as all the others together.
            node = "bad" if chance.random() < 0.5 else f"good{chance.randrange(49)}"
            try:
                with db.transaction():
                    answer = world.checkout(process, host=node, db=db)
            except psycopg.Error as error:
                assert error.sqlstate == "OG601"
                assert (
                    error.diag.message_primary
                    and "worker bad@127.0.0.1 is refused work until" in error.diag.message_primary
                )
                refused += 1
                continue
            if answer["status"] != "assigned":
                break
            attempts += 1
            by_bad += node == "bad"
            world.report(process, int(node == "bad"), host=node, db=db)
    print(f"{attempts} attempts, {by_bad} on the bad node, refused {refused} times")
    assert by_bad / attempts < 0.02
    assert world.progress()["blocks_quarantined"] == 0
    assert world.progress()["blocks_done"] == 1500
    banned = call(world.db, "blocked_workers", project="p")
    assert [row["worker"] for row in banned] == ["bad@127.0.0.1"]
    assert "failed within 120 s" in banned[0]["reason"]


def test_operator_bans_and_pardons(world: World) -> None:
    world.add_file(9)
    call(world.db, "ban_worker", project="p", worker="wn1", seconds=60, reason="smoke")
    with pytest.raises(psycopg.Error, match=r"worker wn1@127.0.0.1 is refused work until .* UTC: smoke"):
        world.checkout(0, host="wn1")
    assert world.checkout(1, host="wn2")["status"] == "assigned"
    assert [row["worker"] for row in call(world.db, "blocked_workers")] == ["wn1"]
    call(world.db, "ban_worker", project="p", worker="wn1", seconds=0)
    assert call(world.db, "blocked_workers") == []
    assert world.checkout(0, host="wn1")["status"] == "assigned"


def test_pardoned_worker_is_not_banned_again_for_what_it_did_before(world: World) -> None:
    world.set(max_fast_failures=2, backoff_s=0, max_failures=50)
    world.add_file(9)
    for process in range(2):
        world.checkout(process, host="wn")
        world.report(process, 1, host="wn")
    assert len(call(world.db, "blocked_workers")) == 1
    call(world.db, "ban_worker", project="p", worker="wn", seconds=0)
    world.checkout(5, host="wn")
    world.report(5, 1, host="wn")
    assert call(world.db, "blocked_workers") == []


def test_slow_failures_and_mostly_good_workers_are_not_banned(world: World) -> None:
    world.set(max_fast_failures=3, backoff_s=0, max_failures=50, fast_failure_s=100)
    world.add_file(40)
    for process in range(5):  # slow ones
        world.checkout(process, host="slow")
        world.attempts_pass(101)
        world.report(process, 1, host="slow")
    for process in range(10, 17):  # 4 of 7 succeed
        world.checkout(process, host="good")
        world.report(process, int(process % 2), host="good")
    assert call(world.db, "blocked_workers") == []
