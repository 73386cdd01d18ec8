"""What becomes of a slice when its job reports. Promises I3, I5 (first success wins), I6 (append-only)."""

from __future__ import annotations

import json

import psycopg
import pytest

from shim.database import call
from tests.support import World


def state_of(world: World, block1: int = 1) -> dict:
    row = world.db.execute("SELECT * FROM osgprod_data.slices WHERE block1 = %s", [block1]).fetchone()
    assert row is not None
    return row


def reports(world: World) -> list[dict]:
    return world.db.execute("SELECT * FROM osgprod_data.reports ORDER BY reported_at").fetchall()


def lost_by_job_0_and_leased_to_job_1(world: World) -> None:
    """The only slice, after the lease of job 0 has expired."""
    world.add_file(1)
    world.checkout(0)
    world.lose_leases()
    world.checkout(1)


def test_success_makes_the_slice_done(world: World) -> None:
    world.add_file(1)
    world.checkout(0)
    answer = world.report(0)
    assert (answer["http_status"], answer["status"]) == (200, "done")
    assert world.progress()["blocks_done"] == 1


def test_same_report_again_gets_the_same_answer_and_changes_nothing(world: World) -> None:
    world.add_file(2)
    for process, code in ((0, 0), (1, 7)):
        world.checkout(process)
        first = world.report(process, code, reason="because")
        before = (reports(world), world.progress())
        assert world.report(process, code, reason="other") == first
        assert (reports(world), world.progress()) == before


def test_another_code_for_the_same_attempt_is_contradicted_and_changes_nothing(world: World) -> None:
    world.add_file(1)
    world.checkout(0)
    world.report(0, 0)
    answer = world.report(0, 5)
    assert (answer["http_status"], answer["status"]) == (409, "contradicted")
    assert state_of(world)["state"] == "done"
    assert [row["exit_code"] for row in reports(world)] == [0]


@pytest.mark.parametrize("code", [129, 134, 137, 139, 143, 255, 75, 126, 127])
def test_node_fault_requeues_the_slice_at_once_and_does_not_count_against_it(world: World, code: int) -> None:
    world.add_file(1)
    world.checkout(0)
    answer = world.report(0, code)
    assert (answer["http_status"], answer["status"]) == (200, "node-fault")
    assert state_of(world)["failures"] == 0
    assert world.checkout(1)["status"] == "assigned"


def test_codes_that_the_project_lists_are_node_faults(world: World) -> None:
    with pytest.raises(psycopg.Error, match="p: node_fault_codes can't contain 0"):
        world.set(node_fault_codes=[75, 0])
    world.set(node_fault_codes=[3])
    world.add_file(1)
    world.checkout(0)
    assert world.report(0, 3)["status"] == "node-fault"
    world.checkout(1)
    assert world.report(1, 75)["status"] == "failed"


def test_failure_backs_off_twice_as_long_each_time(world: World) -> None:
    world.set(backoff_s=100, max_backoff_s=10000, max_failures=9)
    world.add_file(1)
    for failure in range(1, 5):
        assert world.checkout(failure)["status"] == "assigned"
        assert world.report(failure, 1)["status"] == "failed"
        assert world.checkout(99)["status"] == "wait"
        row = world.db.execute(
            "SELECT extract(epoch FROM not_before - now()) AS rest_s FROM osgprod_data.slices"
        ).fetchone()
        assert row is not None
        nominal = 100 * 2 ** (failure - 1)
        assert nominal * 0.5 - 1 <= row["rest_s"] <= nominal * 1.5
        world.let_backoff_pass()


def test_late_success_counts_when_nobody_was_faster(world: World) -> None:
    lost_by_job_0_and_leased_to_job_1(world)
    assert world.report(0, 0)["status"] == "done"
    # The other job learns that the slice is done, so the block does not count twice.
    answer = world.report(1, 0)
    assert (answer["http_status"], answer["status"]) == (409, "superseded")
    assert world.progress()["blocks_done"] == 1


def test_late_success_after_another_success_is_superseded(world: World) -> None:
    lost_by_job_0_and_leased_to_job_1(world)
    assert world.report(1, 0)["status"] == "done"
    answer = world.report(0, 0)
    assert (answer["http_status"], answer["status"]) == (409, "superseded")
    assert state_of(world)["process"] == 1


def test_late_failure_of_a_lost_attempt_does_not_hurt_the_new_holder(world: World) -> None:
    lost_by_job_0_and_leased_to_job_1(world)
    assert world.report(0, 1)["status"] == "superseded"
    assert (state_of(world)["state"], state_of(world)["failures"]) == ("leased", 0)


def test_report_of_an_earlier_start_with_its_own_token_does_not_end_the_later_one(world: World) -> None:
    world.add_file(1)
    first = world.checkout(0)
    second = world.checkout(0)
    assert world.report(0, 1, token=str(first["token"]))["status"] == "superseded"
    assert world.report(0, 0, token=str(second["token"]))["status"] == "done"


def test_report_without_any_attempt_is_an_error_that_says_so(world: World) -> None:
    world.add_file(1)
    with pytest.raises(psycopg.Error, match=r"job 1\.5 has no attempt in project p") as caught:
        world.report(5)
    assert caught.value.sqlstate == "OG303"


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"exitcode": -1}, "OG105"),
        ({"exitcode": 256}, "OG105"),
        ({"exitcode": None}, "OG105"),
        ({"cluster": -1}, "OG102"),
        ({"process": 2**31}, "OG103"),
        ({"magic": "x"}, "OG202"),
    ],
)
def test_bad_report_is_refused_and_the_slice_stays_leased(world: World, wrong: dict, code: str) -> None:
    world.add_file(1)
    world.checkout(0)
    with pytest.raises(psycopg.Error) as caught:
        world.report(**{"process": 0, **wrong})
    assert caught.value.sqlstate == code
    assert caught.value.diag.message_hint
    assert state_of(world)["state"] == "leased"


def test_success_with_fewer_events_than_the_slice_holds_is_a_failure_where_events_are_demanded(
    world: World,
) -> None:
    world.set(demand_events=True)
    world.add_file(3)
    for process, events in enumerate((None, 10, 12)):
        assert world.checkout(process)["events"] == 11
        answer = world.report(process, 0, **({} if events is None else {"events": events}))
        assert answer["status"] == "failed"
        assert "of 11 events read" in answer["message"]
        world.let_backoff_pass()
    world.checkout(9, cpus=1)
    assert world.report(9, 0, events=11)["status"] == "done"


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"events": -1}, "ignored: events (below 0)"),
        ({"outputs": -1}, "ignored: outputs (not from 0 to 2147483647)"),
        ({"outputs": 2**31}, "ignored: outputs (not from 0 to 2147483647)"),
        ({"output_bytes": -1}, "ignored: output_bytes (below 0)"),
        ({"output_adler32": "xyz"}, "ignored: output_adler32 (not 8 hexadecimal digits)"),
        ({"output_adler32": "123456789", "events": -1}, "ignored: events (below 0), output_adler32"),
    ],
)
def test_a_report_is_recorded_without_evidence_that_cannot_be_kept_and_the_answer_says_so(
    world: World, broken: dict, words: str
) -> None:
    world.add_file(1)
    world.checkout(0)
    for _ in range(2):  # the same report again gets the same answer
        answer = world.report(0, **broken)
        assert (answer["http_status"], answer["status"]) == (200, "done")
        assert answer["message"].splitlines()[0] == "thank you, the slice is done"
        assert answer["message"].splitlines()[1].startswith(words)
    row = reports(world)[0]
    assert {row[name] for name in ("events", "outputs", "output_bytes", "output_adler32")} == {None}
    assert state_of(world)["state"] == "done"


def test_broken_evidence_proves_no_success_where_evidence_is_demanded(world: World) -> None:
    world.set(demand_events=True, demand_outputs=True, demand_checksum=True)
    world.add_file(3)
    for process, broken in enumerate(({"events": -1}, {"outputs": -1}, {"output_adler32": "xyz"})):
        events = world.checkout(process)["events"]
        good = {"events": events, "outputs": 1, "output_bytes": 5, "output_adler32": "1"}
        answer = world.report(process, 0, **{**good, **broken})
        assert answer["status"] == "failed" and "\nignored: " in answer["message"]
    world.let_backoff_pass()
    world.checkout(9)
    assert world.report(9, 0, **good)["status"] == "done"
    assert reports(world)[-1]["output_adler32"] == "00000001", "some storage drops leading zeros"


def test_a_success_whose_events_contradict_the_index_is_recorded_and_shown_by_health_and_verify(
    world: World,
) -> None:
    world.add_file(3)
    world.checkout(0)
    world.checkout(1)
    world.checkout(2)
    answers = [world.report(0, 0, events=1) for _ in range(2)]
    assert {(a["http_status"], a["status"]) for a in answers} == {(200, "done")}
    assert {a["message"] for a in answers} == {
        "thank you, the slice is done; but this contradicts the index and is on record: 1 of 11 events read"
    }
    assert world.report(1, 0, events=11)["message"] == "thank you, the slice is done"
    assert world.report(2, 1, events=3)["status"] == "failed", "a failure may have read any number"
    assert [row["contradiction"] for row in reports(world)] == ["1 of 11 events read", None, None]
    found = call(world.db, "verify", project="p")
    assert [(row["block1"], row["fault"]) for row in found] == [(1, "done, but 1 of 11 events read")]
    (row,) = [row for row in call(world.db, "health", project="p") if row["what"] == "contradicted"]
    assert row["level"] == "attention" and row["found"].startswith("1 done slice whose job")
    call(world.db, "recycle", project="p", states=["done"])
    assert call(world.db, "verify", project="p") == [], "recycled work doesn't contradict anything"


def test_attempt_of_an_older_release_has_no_events_on_record_and_its_report_is_compared_all_the_same(
    world: World,
) -> None:
    world.add_file(2)
    world.set(demand_events=True)
    events = [world.checkout(process)["events"] for process in range(2)]
    rows = world.db.execute("SELECT a.events FROM osgprod_data.attempts a ORDER BY a.process").fetchall()
    assert [row["events"] for row in rows] == events == [11, 11], "noted when it is leased"
    world.db.execute("UPDATE osgprod_data.attempts SET events = NULL")
    assert "exit code 0 with 10 of 11 events read" in world.report(0, 0, events=10)["message"]
    assert world.report(1, 0, events=11)["status"] == "done"


def test_several_reports_made_together_are_recorded_each_by_its_own_evidence(world: World) -> None:
    world.add_file(3)
    job = {"project": "p", "cluster": 1, "magic": "m", "client": "127.0.0.1", "exitcode": 0}
    for process in range(3):
        world.checkout(process)
    calls = [
        {**job, "n": 0, "process": 0, "events": 11},
        {**job, "n": 1, "process": 1, "events": -5},
        {**job, "n": 2, "process": 2},
    ]
    answers = call(world.db, "report_exits", calls=json.dumps(calls))
    thanks = "thank you, the slice is done"
    assert {row["n"]: row["message"] for row in answers} == {
        0: thanks,
        1: thanks + "\nignored: events (below 0)",
        2: thanks,
    }
    assert [row["events"] for row in reports(world)] == [11, None, None]


def test_success_without_outputs_or_checksum_is_a_failure_where_they_are_demanded(world: World) -> None:
    world.add_file(4)
    world.set(demand_outputs=True, max_failures=9)
    world.checkout(0)
    assert "without outputs" in world.report(0, 0, outputs=0)["message"]
    world.set(demand_outputs=False, demand_checksum=True)
    world.checkout(1)
    assert "without size and checksum" in world.report(1, 0, output_bytes=5)["message"]
    world.checkout(2)
    assert world.report(2, 0, output_bytes=5, output_adler32="0A0b0c0d")["status"] == "done"
    assert reports(world)[-1]["output_adler32"] == "0a0b0c0d"


def test_texts_of_a_job_are_recorded_as_printable_text(world: World) -> None:
    world.add_file(1)
    world.checkout(0, host="wn1\n", site="Site\x1b[31m")
    world.report(
        0, 1, reason="a" * 120 + "x" * 1000 + ": cause\n", output_url="file:///o/job_1_0.tar.gz", events=3
    )
    row = reports(world)[0]
    assert (row["worker"], row["site"], row["exit_code"], row["events"]) == (
        "wn1@127.0.0.1",
        "Site [31m",
        1,
        3,
    )
    assert row["reason"] == "a" * 120 + " ... " + "x" * 168 + ": cause"
    assert row["output_url"] == "file:///o/job_1_0.tar.gz"


def test_lease_renewed_by_heartbeat_outlives_its_first_end(world: World) -> None:
    world.add_file(1)
    token = str(world.checkout(0)["token"])
    world.db.execute("UPDATE osgprod_data.slices SET due_at = now() + interval '1 s'")
    answer = world.heartbeat(0, token=token, bytes=10, cpu_s=1)
    assert (answer["http_status"], answer["status"], answer["lease_s"]) == (200, "alive", 21600)
    row = state_of(world)
    assert (row["bytes_fetched"], row["cpu_s"]) == (10, 1)
    left = world.db.execute(
        "SELECT min(due_at) > now() + interval '5 h' AS ok FROM osgprod_data.slices"
    ).fetchone()
    assert left == {"ok": True}


def test_heartbeat_of_an_attempt_that_lost_its_slice_stops_the_job(world: World) -> None:
    world.add_file(1)
    first = world.checkout(0)
    world.let_leases_run_out()
    world.tick()
    assert world.checkout(1)["status"] == "assigned"
    answer = world.heartbeat(0, token=str(first["token"]))
    assert (answer["http_status"], answer["status"]) == (409, "superseded")
    assert state_of(world)["process"] == 1


def test_wedged_job_must_stop_and_a_progressing_one_goes_on(world: World) -> None:
    world.set(wedged_s=600)
    world.add_file(2)
    for process in (0, 1):
        world.checkout(process)
        assert world.heartbeat(process, bytes=5, cpu_s=1)["status"] == "alive"
    world.db.execute("UPDATE osgprod_data.slices SET progress_at = progress_at - interval '601 s'")
    answer = world.heartbeat(0, bytes=5, cpu_s=1)
    assert (answer["http_status"], answer["status"]) == (409, "wedged")
    assert world.heartbeat(1, bytes=5, cpu_s=2)["status"] == "alive"


def test_slice_of_a_wedged_job_is_requeued_at_once_and_the_job_stays_stopped(world: World) -> None:
    world.set(wedged_s=1)
    world.add_file(1)
    world.checkout(0, host="wn1")
    world.heartbeat(0, bytes=5)
    world.db.execute("UPDATE osgprod_data.slices SET progress_at = progress_at - interval '9 s'")
    first = world.heartbeat(0, bytes=5)
    assert (first["status"], first["message"]) == ("wedged", "stop: no progress for more than 1 s")
    assert world.heartbeat(0, bytes=500) == first, "the same answer again, should the first have been lost"
    assert world.checkout(1, host="wn2")["status"] == "assigned"
    row = reports(world)[0]
    assert (row["by_worker"], row["outcome"], row["worker"]) == (False, "lost", "wn1@127.0.0.1")


def test_lost_job_that_sends_a_heartbeat_gets_its_slice_back_while_nobody_has_it(world: World) -> None:
    world.add_file(2)
    token = str(world.checkout(0)["token"])
    world.lose_leases()
    assert world.progress()["blocks_ready"] == 1
    assert world.heartbeat(0, token=token)["status"] == "alive"
    assert world.checkout(1)["block1"] == 2, "it is not leased twice"
    world.lose_leases()
    assert world.heartbeat(0, token=token)["status"] == "alive"
    assert world.report(0, token=token)["status"] == "done"


def test_job_that_reported_or_started_again_is_not_revived_by_a_late_heartbeat(world: World) -> None:
    world.add_file(3)
    token = str(world.checkout(0)["token"])
    world.report(0, 143, token=token)
    assert world.heartbeat(0, token=token)["status"] == "superseded", (
        "its report was faster than its last heartbeat"
    )
    token = str(world.checkout(1)["token"])
    world.checkout(2)
    world.lose_leases()
    world.checkout(3)
    assert world.checkout(1)["block1"] == 2
    answer = world.heartbeat(1, token=token)
    assert (answer["http_status"], answer["status"]) == (409, "superseded"), "one job, one slice"
    assert world.progress()["blocks_leased"] == 2


def test_late_failure_ends_the_attempt_for_good(world: World) -> None:
    world.add_file(1)
    world.checkout(0)
    world.lose_leases()
    assert world.report(0, 9)["status"] == "superseded"
    assert world.heartbeat(0)["status"] == "superseded", "its heartbeat came after its report"
    assert world.progress()["blocks_ready"] == 1


def test_late_success_of_a_quarantined_slice_counts_and_its_file_is_finished_again_at_the_next_tick(
    world: World,
) -> None:
    world.set(max_failures=1)
    lost_by_job_0_and_leased_to_job_1(world)
    world.report(1, 1)
    call(world.db, "tick")
    progress = world.progress()
    assert (progress["blocks_quarantined"], progress["files_finished"]) == (1, 1)
    assert world.report(0)["status"] == "done"
    world.tick()
    progress = world.progress()
    assert (progress["blocks_done"], progress["blocks_quarantined"], progress["files_finished"]) == (1, 0, 1)


def test_late_success_on_a_slice_that_was_split_since_does_not_count(world: World) -> None:
    world.add_file(8)
    world.checkout(0, cpus=8)
    world.lose_leases()
    assert world.checkout(1, cpus=4)["block2"] == 5
    assert world.report(0)["status"] == "superseded"
    world.report(1)
    assert world.progress()["blocks_done"] == 4


def test_failure_on_a_banned_worker_is_a_node_fault(world: World) -> None:
    world.set(max_failures=1)
    world.add_file(1)
    world.checkout(0, host="wn1")
    call(world.db, "ban_worker", project="p", worker="wn1", seconds=60)
    assert world.report(0, 1, host="wn1")["status"] == "node-fault"
    assert world.progress()["blocks_quarantined"] == 0


def test_last_exit_codes_of_a_slice_are_recorded(world: World) -> None:
    world.set(max_failures=4, backoff_s=0, max_fast_failures=99)
    world.add_file(1)
    for process, code in enumerate((143, 9, 137, 8, 7, 6)):
        world.checkout(process)
        world.report(process, code)
    row = call(world.db, "quarantined", project="p")[0]
    assert (row["exit_codes"], row["exit_code"]) == ([9, 137, 8, 7, 6], 6)


@pytest.mark.parametrize("fault", ["setting", "fetch", "delivery", "program", None])
def test_answer_to_a_report_that_is_no_failure_of_the_data_blames_nobody(
    world: World, fault: str | None
) -> None:
    world.add_file(2)
    world.checkout(0)
    for _ in range(2):  # a repeated report has the same answer
        answer = world.report(0, 137, fault=fault)
        assert (answer["status"], answer["message"]) == (
            "node-fault",
            "recorded as node-fault",
        )
