"""Bad blocks are isolated and bad nodes are banned, without an operator."""

from __future__ import annotations

import math
import random
import re
from typing import Any

import psycopg
import pytest

from shim.database import call, connect
from tests.support import World

BAD = frozenset({(1, 3), (1, 4), (2, 500), (3, 1), (4, 1000), (5, 777), (5, 123)})  # seqno, block


def test_slice_at_its_limit_is_split_in_halves_each_with_a_fresh_count(world: World) -> None:
    world.set(max_failures=2, max_backups=0)
    world.add_file(8)
    for process in range(2):
        world.checkout(process, cpus=8)
        world.report(process, 1)
        world.let_backoff_pass()
    rows = world.db.execute(
        "SELECT block1, block2, state, failures FROM osgprod_data.slices ORDER BY 1"
    ).fetchall()
    assert [tuple(row.values()) for row in rows] == [(1, 5, "ready", 0), (5, 9, "ready", 0)]


def test_block_that_was_split_off_for_a_small_job_is_quarantined_by_its_own_failures_alone(
    world: World,
) -> None:
    world.set(max_failures=2, max_backups=0)
    world.add_file(2)
    for process, cpus in enumerate((2, 1, 1)):
        assert world.progress()["blocks_quarantined"] == 0
        assert world.checkout(process, cpus=cpus)["block1"] == 1
        world.report(process, 1)
        world.let_backoff_pass()
    assert world.progress()["blocks_quarantined"] == 1


@pytest.mark.parametrize("max_backups", [10, 0])
def test_slice_is_split_at_its_first_failure_when_nothing_is_unallocated(
    world: World, max_backups: int
) -> None:
    """In the tail idle jobs isolate a bad block side by side. Quarantine still takes max_failures."""
    world.set(max_failures=2, max_backups=max_backups)
    world.add_file(2)
    world.checkout(0, cpus=2)
    assert world.report(0, 1)["status"] == "failed"
    rows = world.db.execute(
        "SELECT block1, block2, state, failures FROM osgprod_data.slices ORDER BY 1"
    ).fetchall()
    halves = [(1, 2, "ready", 0), (2, 3, "ready", 0)]
    assert [tuple(row.values()) for row in rows] == (halves if max_backups else [(1, 3, "ready", 1)])
    world.let_backoff_pass()
    world.checkout(1, cpus=2)
    world.report(1, 1)
    row = world.db.execute("SELECT state, failures FROM osgprod_data.slices WHERE block1 = 1").fetchone()
    assert row == {"state": "ready", "failures": 1 if max_backups else 0}


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


def test_recycle_ends_the_backoff_of_a_slice_that_was_split(world: World) -> None:
    world.set(max_failures=1, backoff_s=600, maxblockspercore=4)
    world.add_file(4)
    world.checkout(0)
    world.report(0, 9)
    assert world.checkout(1)["status"] == "wait"
    assert [(row["block1"], row["was"]) for row in call(world.db, "recycle", project="p")] == [
        (1, "failed"),
        (3, "failed"),
    ]
    assert world.checkout(1)["status"] == world.checkout(2)["status"] == "assigned"


def test_path_of_a_file_is_that_file_and_a_pattern_only_where_there_is_none(world: World) -> None:
    for seqno, path in enumerate(("/run-1/a.evio", "/run_1/a.evio")):
        world.add_file(1, seqno=seqno)
        world.db.execute("UPDATE osgprod_data.rawdata SET path = %s WHERE seqno = %s", [path, seqno])
        world.checkout(seqno)
        world.report(seqno)
    again = call(world.db, "recycle", project="p", states=["done"], path="/run_1/a.evio", dry_run=True)
    assert [row["path"] for row in again] == ["/run_1/a.evio"]
    assert len(call(world.db, "recycle", project="p", states=["done"], path="/run_1/%", dry_run=True)) == 2


def test_recycled_slice_is_not_done_by_a_report_from_before(world: World) -> None:
    world.add_file(1)
    world.checkout(0)
    world.let_leases_run_out()
    call(world.db, "reclaim_lost")
    world.checkout(1)
    world.report(1)
    call(world.db, "recycle", project="p", states=["done"])
    assert world.report(0)["status"] == "superseded"
    assert world.checkout(1)["status"] == "assigned", "a completed slice is processed again"


def test_7_bad_blocks_of_5000_are_isolated_while_a_tenth_of_jobs_vanish(world: World) -> None:
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
                call(db, "tick")
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


@pytest.mark.parametrize(("workers", "code"), [(1, 1), (8, 1), (3, 139)])
def test_bad_blocks_are_isolated_though_they_ban_good_workers_for_a_while(
    world: World, workers: int, code: int
) -> None:
    """A bad block in each of 8 files fails at once wherever it is tried: half of what a worker does may fail."""
    world.set(maxblockspercore=20, backoff_s=1)
    for seqno in range(1, 9):
        world.add_file(40, seqno=seqno)
    hours = 0
    for job in range(1000):
        host = f"wn{job % workers}"
        try:
            answer = world.checkout(job, host=host)
        except psycopg.Error as error:
            assert error.sqlstate == "OG601"
            hours += 1
            world.attempts_pass(3600)
            continue
        if answer["status"] == "assigned":
            (seqno,) = re.findall(r"_(\d+)\.evio", answer["url"])
            is_bad = answer["block1"] <= 4 + 3 * int(seqno) < answer["block2"]
            world.report(job, code if is_bad else 0, host=host)
        elif answer["status"] == "wait":
            world.let_backoff_pass()
            world.db.execute(
                "UPDATE osgprod_data.slices SET not_before = not_before - interval '1 h' WHERE is_ready"
            )
        else:
            break
    assert answer["status"] == "no-work", answer["message"]
    rows = call(world.db, "quarantined", project="p")
    assert {(row["seqno"], row["block"]) for row in rows} == {(n, 4 + 3 * n) for n in range(1, 9)}
    print(f"{job} checkouts, {hours} hours in bans")
    assert hours < 100, "bans of workers that fail the same blocks as before are not doubled"


def test_workers_that_break_at_the_same_time_are_banned_and_the_data_are_not_blamed(world: World) -> None:
    world.set(maxblockspercore=1, max_failures=3, backoff_s=0)
    for seqno in range(1, 31):
        world.add_file(2, seqno=seqno)
    hosts = [f"wn{n}" for n in range(4)]
    for job in range(8):
        world.checkout(job, host=hosts[job % 4])
        world.report(job, host=hosts[job % 4])
    job = 8
    left = list(hosts)
    while left and job < 100:
        for host in list(left):
            try:
                answer = world.checkout(job, host=host)
            except psycopg.Error as error:
                assert error.sqlstate == "OG601"
                left.remove(host)
                continue
            if answer["status"] == "assigned":
                world.report(job, 1 + hosts.index(host), host=host)
            else:
                world.let_backoff_pass()
            job += 1
    assert sorted(row["worker"] for row in call(world.db, "blocked_workers")) == [
        f"{h}@127.0.0.1" for h in hosts
    ]
    assert call(world.db, "quarantined", project="p") == []


def test_black_hole_node_wastes_less_than_a_fiftieth_and_quarantines_nothing(world: World) -> None:
    """1 node of 20 fails every slice in 2 s and asks again at once; the others need an hour for a slice."""
    world.set(maxblockspercore=1, max_failures=3, backoff_s=0)
    world.add_file(30 * 19)
    by_good, by_bad, refused = [0] * 31, [0] * 31, 0  # each hour
    status = "assigned"

    def one_job(node: str, code: int, db: psycopg.Connection[dict[str, Any]]) -> str:
        cluster = 1 + sum(by_good) + sum(by_bad)
        answer = world.checkout(0, cluster=cluster, host=node, db=db)
        if answer["status"] == "assigned":
            world.report(0, code, cluster=cluster, host=node, db=db)
        return answer["status"]

    hour = 0
    while status == "assigned":
        with connect(world.dsn) as db, db.transaction():  # an hour is one transaction: only for speed
            while status == "assigned":  # the bad one is always the first to ask
                try:
                    with db.transaction():
                        status = one_job("bad", 1, db)
                    by_bad[hour] += status == "assigned"
                except psycopg.Error as error:
                    assert error.sqlstate == "OG601"
                    assert "worker bad@127.0.0.1 is banned until" in str(error)
                    refused += 1
                    break
            for n in range(19):
                status = one_job(f"good{n}", 0, db)
                by_good[hour] += status == "assigned"
        world.attempts_pass(3600)
        hour += 1
    attempts = sum(by_good) + sum(by_bad)
    print(f"{attempts} attempts, on the bad node by hour {by_bad}, refused {refused} times")
    assert world.progress()["blocks_done"] == 30 * 19
    assert world.progress()["blocks_quarantined"] == 0
    assert sum(by_bad) / attempts < 0.02
    assert by_bad[0] == 5
    assert sum(by_bad[1:]) == 4, "after 1, 3, 7 and 15 hours it is tried once more"
    bans = world.db.execute("SELECT worker, times, reason FROM osgprod_data.worker_bans").fetchall()
    assert bans == [
        {"worker": "bad@127.0.0.1", "times": 5, "reason": "failed again within 120 s after its last ban"}
    ]


def test_worker_that_proved_itself_after_a_ban_is_like_any_other(world: World) -> None:
    world.set(max_fast_failures=2, block_worker_s=100, backoff_s=0, max_failures=50)
    world.add_file(20)
    codes = iter([1, 1, 0, 1, 1])
    for process in range(4):
        if process == 2:
            world.attempts_pass(101)
        assert world.checkout(process, host="wn")["status"] == "assigned"
        world.report(process, next(codes))
        assert len(call(world.db, "blocked_workers")) == (process == 1)
    world.checkout(4, host="wn")
    world.report(4, 1)
    assert len(call(world.db, "blocked_workers")) == 1


def test_attempts_begun_before_a_ban_do_not_make_it_longer(world: World) -> None:
    world.set(max_fast_failures=2, block_worker_s=100, backoff_s=0, max_failures=3)
    world.add_file(9)
    for process in range(8):
        world.checkout(process, host="wn")
    for process in range(8):
        world.report(process, 1)
    row = world.db.execute("SELECT times FROM osgprod_data.worker_bans").fetchall()
    assert row == [{"times": 1}]
    slices = world.db.execute("SELECT DISTINCT failures FROM osgprod_data.slices").fetchall()
    assert slices == [{"failures": 0}], "no slice bears what the node did"


def test_operator_bans_and_unbans(world: World) -> None:
    world.add_file(9)
    call(world.db, "ban_worker", project="p", worker="wn1", seconds=60, reason="smoke")
    with pytest.raises(psycopg.Error, match=r"worker wn1@127.0.0.1 is banned until .* UTC: smoke"):
        world.checkout(0, host="wn1")
    assert world.checkout(1, host="wn2")["status"] == "assigned"
    assert [row["worker"] for row in call(world.db, "blocked_workers")] == ["wn1"]
    with pytest.raises(psycopg.Error, match=r"127\.0\.0\.0/8 is a network"):
        call(world.db, "ban_worker", project="p", worker="127.0.0.0/8", seconds=60)
    call(world.db, "ban_worker", project="p", worker="wn1", seconds=0)
    assert call(world.db, "blocked_workers") == []
    assert world.checkout(0, host="wn1")["status"] == "assigned"


def test_unbanning_says_whether_there_was_a_ban_and_names_the_one_that_goes_on(world: World) -> None:
    def ban(worker: str, seconds: int) -> object:
        return call(world.db, "ban_worker", project="p", worker=worker, seconds=seconds)[0]["ban_worker"]

    assert ban("wn1", 0) is None
    ban("wn1", 60)
    assert ban("wn1", 0) is not None
    assert ban("wn1", 0) is None
    for wide, narrow in (
        ("wn1", "wn1@10.0.0.1"),
        ("10.0.0.1", "wn1@10.0.0.1"),
        ("all", "wn1"),
        ("all", "site:A"),
        ("wn1", "merges:wn1"),
        ("merges:all", "merges:wn1@10.0.0.1"),
        ("merges:all", "merges:site:A"),
    ):
        ban(narrow, 60)
        ban(wide, 60)
        with pytest.raises(psycopg.Error) as caught:
            ban(narrow, 0)
        assert caught.value.sqlstate == "OG421" and f"by the ban of {wide}" in str(caught.value)
        assert caught.value.diag.message_hint == (
            f"osgprod workers unban p {wide} lifts that, and those that it includes"
        )
        ban(wide, 0)
        assert ban(narrow, 0) is None, "it was lifted with the other"
        assert call(world.db, "blocked_workers") == []
    ban("merges:wn1", 60)
    ban("wn2", 60)
    assert ban("wn1@10.0.0.1", 0) is None, "two others are banned"
    assert len(call(world.db, "blocked_workers")) == 2


@pytest.mark.parametrize(
    ("network", "name"),
    [
        ("10.0.0.0/24", "10.0.0.1"),
        ("10.0.0.0/24", "wn1@10.0.0.1"),
        ("10.0.0.0/24", "merges:10.0.0.1"),
        ("merges:10.0.0.0/24", "merges:10.0.0.1"),
        ("2001:db8::/64", "2001:db8::1"),
    ],
)
def test_address_is_not_unbanned_while_its_network_is_banned(world: World, network: str, name: str) -> None:
    world.db.execute(
        "INSERT INTO osgprod_data.worker_bans (project_id, worker, until, reason, times)"
        " SELECT project_id, %s, now() + interval '1 h', 'x', 1 FROM osgprod_data.projects",
        [network],
    )
    for _ in range(2):
        with pytest.raises(
            psycopg.Error, match=f"{name} is banned until .* UTC by the ban of {network}"
        ) as caught:
            call(world.db, "ban_worker", project="p", worker=name, seconds=0)
        assert caught.value.sqlstate == "OG421"
        call(world.db, "ban_worker", project="p", worker=name, seconds=60)
    call(world.db, "ban_worker", project="p", worker=network, seconds=0)
    assert call(world.db, "blocked_workers") == []


def test_ban_has_a_name_and_a_reason_of_one_line(world: World) -> None:
    """Jobs are answered the reason, and lists show the name."""
    for name in ("a\nb", " wn1", "x" * 513, "wn1\u202e"):
        with pytest.raises(psycopg.Error, match="no worker has the name '") as caught:
            call(world.db, "ban_worker", project="p", worker=name, seconds=60)
        assert caught.value.sqlstate == "OG108"
    call(world.db, "ban_worker", project="p", worker="x" * 512, seconds=60, reason="two\nlines")
    call(world.db, "ban_worker", project="p", worker="wn1", seconds=60, reason=" ")
    reasons = {row["reason"] for row in call(world.db, "blocked_workers")}
    assert reasons == {"two lines", "by the operator"}


@pytest.mark.parametrize("name", ["slot1@cafe", "slot1@1.2.3", "merges:slot1@dead:beef", "slot1@::1::2"])
def test_ban_of_a_host_that_looks_like_an_address_keeps_no_other_ban_from_being_lifted(
    world: World, name: str
) -> None:
    for worker in (name, "wn1"):
        call(world.db, "ban_worker", project="p", worker=worker, seconds=60)
    call(world.db, "ban_worker", project="p", worker="wn1", seconds=0)
    assert [row["worker"] for row in call(world.db, "blocked_workers")] == [name]
    call(world.db, "ban_worker", project="p", worker=name, seconds=0)
    assert call(world.db, "blocked_workers") == []


def test_unbanned_worker_is_not_banned_again_for_earlier_failures(world: World) -> None:
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
