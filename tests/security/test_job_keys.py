"""Who gets the slice of a living attempt: only a job that proves to be the same one. Straight at the functions."""

from __future__ import annotations

import json

import psycopg
import pytest

from shim.database import call
from tests.support import World

VICTIM = {"client": "192.0.2.1", "host": "wn1"}
THIEF = {"client": "203.0.113.6", "host": "thief"}
KEY = "417483640-98233004"


@pytest.fixture
def grid(world: World) -> World:
    world.set(subnet_pattern="%", token_required=True)
    world.add_file(9)
    return world


def everything(world: World) -> list[dict]:
    """All that a checkout could change, beside the record of refusals."""
    return [
        row
        for table in ("slices", "attempts", "loaded_files", "reports")
        for row in world.db.execute(
            f"SELECT '{table}' AS t, x::text AS row FROM osgprod_data.{table} x ORDER BY 2"
        )
    ]


def refusals(world: World) -> list[tuple[str, str, int]]:
    rows = world.db.execute(
        "SELECT host(client) AS client, reason, times FROM osgprod_data.refusals ORDER BY reason, client"
    )
    return [(row["client"], row["reason"], row["times"]) for row in rows]


def missed_heartbeats(world: World, seconds: float) -> None:
    """Makes all living attempts silent for so long, in place of waiting."""
    world.db.execute(
        "UPDATE osgprod_data.slices SET due_at = due_at - make_interval(secs => %(s)s),"
        " progress_at = progress_at - make_interval(secs => %(s)s) WHERE state = 'leased'",
        {"s": seconds},
    )
    world.attempts_pass(seconds)


@pytest.mark.parametrize("restart_proof", ["key", "address", "none"])
@pytest.mark.parametrize("job_key", [None, "", "another", KEY + "0", KEY.upper() + " "])
def test_a_living_attempt_with_a_job_key_gives_its_slice_to_nobody_else(
    grid: World, restart_proof: str, job_key: str | None
) -> None:
    grid.set(restart_proof=restart_proof)
    mine = grid.checkout(0, job_key=KEY, **VICTIM)
    missed_heartbeats(grid, 3000)
    before = everything(grid)
    for caller in (THIEF, VICTIM):
        answer = grid.checkout(0, job_key=job_key, **caller)
        assert (answer["status"], answer["retry_s"]) == ("wait", 60)
        assert {answer[name] for name in ("token", "block1", "pieces", "url")} == {None}
        assert "does not prove to be the same job" in answer["message"]
    assert everything(grid) == before
    reason = "is not of this job" if job_key else "is missing"
    assert refusals(grid) == [
        (VICTIM["client"], f"parameter job_key {reason}", 1),
        (THIEF["client"], f"parameter job_key {reason}", 1),
    ]
    assert grid.heartbeat(0, token=str(mine["token"]), **{"client": VICTIM["client"]})["status"] == "alive"
    assert grid.report(0, token=str(mine["token"]), client=VICTIM["client"])["status"] == "done"


def test_a_restarted_job_gets_its_slice_anywhere_with_its_key(grid: World) -> None:
    grid.set(restart_proof="key")
    first = grid.checkout(0, job_key=KEY, **VICTIM)
    again = grid.checkout(0, job_key=KEY, client="198.51.100.7", host="wn77")
    assert (again["status"], again["nstarts"], again["block1"]) == ("assigned", 2, first["block1"])
    assert again["token"] != first["token"]
    assert refusals(grid) == []


def test_calls_made_together_are_held_to_the_same_proof(grid: World) -> None:
    grid.checkout(0, job_key=KEY, **VICTIM)
    before = everything(grid)
    base = {"project": "p", "cluster": 1, "process": 0, "cpus": 1, "magic": "m", **THIEF}
    calls = [
        {**base, "n": 0},
        {**base, "n": 1, "job_key": "x"},
        {**base, "n": 2, "project": "p", "job_key": None},
    ]
    answers = call(grid.db, "checkout_slices", calls=json.dumps(calls))
    assert {row["status"] for row in answers} == {"wait"} and {row["token"] for row in answers} == {None}
    assert everything(grid) == before
    assert sum(times for _, _, times in refusals(grid)) == 3


def test_who_asks_twice_in_one_batch_proves_itself_the_second_time(grid: World) -> None:
    base = {"project": "p", "cluster": 1, "process": 0, "cpus": 1, "magic": "m", **VICTIM}
    calls = [{**base, "n": 0, "job_key": KEY}, {**base, **THIEF, "n": 1}, {**base, "n": 2, "job_key": KEY}]
    answers = {row["n"]: row for row in call(grid.db, "checkout_slices", calls=json.dumps(calls))}
    assert [answers[n]["status"] for n in range(3)] == ["assigned", "wait", "error"]
    assert answers[2]["code"] == "55P03", "a batch writes a slice once: the shim makes this call again, alone"
    again = call(grid.db, "checkout_slices", calls=json.dumps(calls[2:]))[0]
    assert (again["status"], again["nstarts"], answers[0]["nstarts"]) == ("assigned", 2, 1)


def test_restart_proof_address_gives_the_slice_of_a_keyless_attempt_to_its_own_node_only(grid: World) -> None:
    first = grid.checkout(0, **VICTIM)
    before = everything(grid)
    for caller in (
        THIEF,
        {**VICTIM, "host": "wn2"},
        {**VICTIM, "client": THIEF["client"]},
        {"client": VICTIM["client"]},
    ):
        for key in (None, KEY):
            assert grid.checkout(0, job_key=key, **caller)["status"] == "wait"
    assert everything(grid) == before
    assert {reason for _, reason, _ in refusals(grid)} == {"the job runs elsewhere"}
    again = grid.checkout(0, client="::ffff:192.0.2.1", host="wn1\n")
    assert (again["status"], again["nstarts"], again["block1"]) == ("assigned", 2, first["block1"])


def test_restart_proof_address_gives_up_a_keyless_attempt_that_missed_three_heartbeats(grid: World) -> None:
    grid.set(heartbeat_s=600)
    token = str(grid.checkout(0, **VICTIM)["token"])
    missed_heartbeats(grid, 1790)
    assert grid.checkout(0, **THIEF)["status"] == "wait"
    grid.heartbeat(0, token=token, client=VICTIM["client"], bytes=1)
    missed_heartbeats(grid, 1790)
    assert grid.checkout(0, **THIEF)["status"] == "wait", "the heartbeat counts"
    missed_heartbeats(grid, 20)
    assert grid.checkout(0, **THIEF)["status"] == "assigned", "so a job that was moved goes on"


def test_restart_proof_address_without_heartbeats_holds_until_the_lease_ends(grid: World) -> None:
    grid.set(heartbeat_s=0)
    grid.checkout(0, **VICTIM)
    missed_heartbeats(grid, 21000)
    assert grid.checkout(0, **THIEF)["status"] == "wait"
    missed_heartbeats(grid, 700)
    assert grid.checkout(0, **THIEF)["status"] == "assigned"


def test_a_longer_lease_makes_no_living_attempt_look_silent(grid: World) -> None:
    grid.set(lease_s=1200, heartbeat_s=60)
    grid.checkout(0, **VICTIM)
    grid.set(lease_s=21600)
    assert grid.checkout(0, **THIEF)["status"] == "wait"


def test_restart_proof_key_gives_the_slice_of_a_keyless_attempt_to_nobody(grid: World) -> None:
    grid.set(restart_proof="key")
    grid.checkout(0, **VICTIM)
    missed_heartbeats(grid, 7000)
    for caller in (THIEF, VICTIM):
        for key in (None, KEY):
            assert grid.checkout(0, job_key=key, **caller)["status"] == "wait"


def test_restart_proof_none_gives_the_slice_of_a_keyless_attempt_to_any_caller_who_names_the_job(
    grid: World,
) -> None:
    """What a stolen magic can do under this setting: the victim must stop, and the thief's report counts."""
    grid.set(restart_proof="none")
    mine = grid.checkout(0, **VICTIM)
    stolen = grid.checkout(0, **THIEF)
    assert (stolen["status"], stolen["block1"]) == ("assigned", mine["block1"])
    assert grid.heartbeat(0, token=str(mine["token"]), client=VICTIM["client"])["status"] == "superseded"
    assert grid.report(0, token=str(stolen["token"]), client=THIEF["client"])["status"] == "done"


def test_a_thief_behind_the_same_address_who_names_the_host_takes_a_keyless_slice(grid: World) -> None:
    """What a stolen magic can do under restart_proof=address."""
    mine = grid.checkout(0, **VICTIM)
    stolen = grid.checkout(0, **VICTIM)
    assert stolen["block1"] == mine["block1"]
    assert grid.heartbeat(0, token=str(mine["token"]), client=VICTIM["client"])["status"] == "superseded"


@pytest.mark.parametrize("end", ["done", "failed", "lost"])
def test_once_an_attempt_has_ended_a_stranger_learns_that_it_is_done_or_gets_what_any_job_gets(
    grid: World, end: str
) -> None:
    mine = grid.checkout(0, job_key=KEY, **VICTIM)
    if end == "lost":
        grid.let_leases_run_out()
        call(grid.db, "reclaim_lost", project="p")
    else:
        grid.report(0, 0 if end == "done" else 1, token=str(mine["token"]), client=VICTIM["client"])
    answer = grid.checkout(0, **THIEF)
    assert answer["status"] == ("completed" if end == "done" else "assigned")
    assert answer["token"] is None or answer["token"] != mine["token"]
    if (
        end == "lost"
    ):  # the late success of the job counts if nobody was faster: the thief's start does not void it
        late = grid.report(0, token=str(mine["token"]), client=VICTIM["client"])
        assert late["status"] == "done"
    # And the number is not the thief's for ever: his attempt protects itself as every other, no longer.
    if answer["status"] == "assigned":
        assert grid.checkout(0, job_key=KEY, **VICTIM)["status"] in ("wait", "assigned")
        grid.let_leases_run_out()
        call(grid.db, "reclaim_lost", project="p")
        assert grid.checkout(0, job_key=KEY, **VICTIM)["status"] == "assigned"


def test_a_thief_who_was_first_under_a_job_number_holds_it_up_no_longer_than_a_lease(grid: World) -> None:
    grid.checkout(5, job_key="thief's", **THIEF)
    assert grid.checkout(5, job_key=KEY, **VICTIM)["status"] == "wait"
    grid.let_leases_run_out()
    call(grid.db, "reclaim_lost", project="p")
    assert grid.checkout(5, job_key=KEY, **VICTIM)["status"] == "assigned"


@pytest.mark.parametrize("what", ["report", "heartbeat"])
def test_a_token_speaks_for_its_attempt_and_without_one_the_job_key_is_needed_too(
    grid: World, what: str
) -> None:
    grid.set(token_required=False)
    token = str(grid.checkout(0, job_key=KEY, **VICTIM)["token"])
    act, here = getattr(grid, what), {"client": VICTIM["client"]}
    for key in (None, "", "another"):
        answer = act(0, job_key=key, **here)
        assert (answer["http_status"], answer["status"]) == (403, "refused")
    assert act(0, job_key=KEY, client=THIEF["client"])["status"] == "refused", "the address is needed as well"
    assert act(0, job_key=KEY, **here)["http_status"] == 200
    assert act(0, job_key="another", token=token, client="198.51.100.7")["http_status"] == 200


def test_a_job_key_is_stored_as_a_digest_that_differs_between_projects(grid: World) -> None:
    grid.with_project("q", subnet_pattern="%").add_file(1, run=2, project="q")
    grid.checkout(0, job_key=KEY, **VICTIM)
    grid.checkout(0, job_key=KEY, project="q", **VICTIM)
    rows = grid.db.execute(
        "SELECT a.job_key_digest AS d, a::text AS t FROM osgprod_data.attempts a"
    ).fetchall()
    assert len({bytes(row["d"]) for row in rows}) == 2
    assert not any(KEY in row["t"] for row in rows)


@pytest.mark.parametrize("job_key", ["k" * 257, "\N{GREEK SMALL LETTER MU}" * 129])
def test_a_job_key_beyond_256_bytes_is_refused_and_not_repeated(grid: World, job_key: str) -> None:
    before = everything(grid)
    with pytest.raises(psycopg.Error) as refused:
        grid.checkout(0, job_key=job_key, **VICTIM)
    assert refused.value.sqlstate == "OG110" and job_key[:9] not in str(refused.value)
    assert everything(grid) == before
    assert grid.checkout(0, job_key="k" * 256, **VICTIM)["status"] == "assigned"


def test_restart_proof_is_one_of_three_words(world: World) -> None:
    with pytest.raises(psycopg.Error, match="restart_proof") as refused:
        world.set(restart_proof="maybe")
    assert refused.value.sqlstate == "OG108"
    settings = {
        row["setting"]: row["value"] for row in call(world.db, "set_project", project="p", settings="{}")
    }
    assert settings["restart_proof"] == "address"
