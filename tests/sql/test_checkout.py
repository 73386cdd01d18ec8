"""What a job gets when it asks. Promises I1 (each block once) to I3 (one holder) of docs/design.md."""

from __future__ import annotations

import threading
import time

import psycopg
import pytest

from shim.database import call
from tests.support import PATIENCE_S, World, blocks_of


def test_first_job_gets_the_first_blocks_of_the_first_file_in_order(world: World) -> None:
    world.add_file(5, run=2)
    world.add_file(5, run=1, seqno=7)
    answer = world.checkout(0, cpus=3)
    assert (answer["status"], answer["url"]) == ("assigned", "/hd_rawdata_000001_007.evio")
    assert (answer["block1"], answer["block2"], answer["nstarts"]) == (1, 4, 1)


def test_restarted_job_gets_its_own_slice_back_and_starts_are_counted(world: World) -> None:
    world.add_file(5)
    first = world.checkout(0)
    world.checkout(1)
    again = world.checkout(0)
    assert (again["block1"], again["block2"]) == (first["block1"], first["block2"])
    assert (first["nstarts"], again["nstarts"]) == (1, 2)
    assert again["started_at"] > first["started_at"]
    assert again["token"] != first["token"]


def test_job_that_succeeded_gets_completed_when_it_asks_again(world: World) -> None:
    world.add_file(2)
    world.checkout(0)
    world.report(0)
    assert world.checkout(0)["status"] == "completed"
    assert world.progress()["blocks_leased"] == 0


def test_cpus_larger_than_what_remains_get_what_remains(world: World) -> None:
    world.add_file(3)
    answer = world.checkout(0, cpus=4096)
    assert (answer["block1"], answer["block2"]) == (1, 4)


def test_single_block_file_is_one_slice_and_then_there_is_no_work(world: World) -> None:
    world.add_file(1)
    answer = world.checkout(0, cpus=8)
    assert (answer["block1"], answer["block2"]) == (1, 2)
    assert world.checkout(1)["status"] == "wait"
    world.report(0)
    assert world.checkout(1)["status"] == "no-work"


def test_jobs_get_wait_while_all_work_is_leased(world: World) -> None:
    world.add_file(1)
    world.checkout(0)
    answer = world.checkout(1)
    assert (answer["status"], answer["retry_s"]) == ("wait", 60)
    assert answer["token"] is None


def test_project_without_files_has_no_work(world: World) -> None:
    assert world.checkout(0)["status"] == "no-work"


def test_32_clients_get_201_blocks_each_once_and_none_is_sent_away(world: World) -> None:
    world.add_file(201)

    def ask(n: int, connection: psycopg.Connection) -> list[dict]:
        answers = []
        while True:
            asked = time.monotonic()
            answer = world.checkout(len(answers), cluster=n, db=connection)
            if "is busy" in (answer["message"] or ""):  # on a busy machine: the file was not free for so long
                assert (answer["status"], answer["retry_s"]) == ("wait", 5)
                assert time.monotonic() - asked >= 0.5
                continue
            answers.append(answer)
            if answer["status"] != "assigned":
                return answers

    answers = [answer for client in world.at_once(32, ask) for answer in client]
    leased = blocks_of(answers)
    assert [block for _, block in leased] == list(range(1, 202))
    # Jobs got no slice only after the last block was leased: the whole file was allocated.
    assert {a["status"] for a in answers} == {"assigned", "wait"}
    assert {a["retry_s"] for a in answers if a["status"] == "wait"} == {60}


def test_same_job_on_8_connections_at_once_gets_one_slice(world: World) -> None:
    world.add_file(200)
    barrier = threading.Barrier(8, timeout=PATIENCE_S)

    def ask(n: int, db: psycopg.Connection) -> list[dict]:
        answers = []
        for process in range(15):
            barrier.wait()
            answers.append(world.checkout(process, db=db))
        return answers

    for answers in zip(*world.at_once(8, ask), strict=True):
        assert len({answer["block1"] for answer in answers}) == 1
        assert sorted(answer["nstarts"] for answer in answers) == list(range(1, 9))
    assert world.progress()["blocks_leased"] == 15


def test_two_projects_on_the_same_files_do_not_touch_each_others_slices(world: World) -> None:
    world.with_project("q", maxblockspercore=4)
    world.add_file(8)
    world.add_file(8, project="q")
    world.checkout(0, project="p")
    first = world.checkout(0, project="q")
    assert (first["block1"], first["block2"]) == (1, 5)
    world.report(0, project="q")
    assert world.progress("q")["blocks_done"] == 4
    assert world.progress("p")["blocks_done"] == 0
    assert world.progress("p")["blocks_leased"] == 1


def test_file_at_two_paths_is_one_file_for_a_project(world: World) -> None:
    world.add_file(2, run=1)
    other = world.add_file(2, run=2, project=None)
    world.db.execute("UPDATE osgprod_data.rawdata SET run = 1 WHERE path = %s", [other])
    (loaded,) = call(world.db, "load_slices", project="p")
    assert (loaded["files"], loaded["files_already"], loaded["files_double"]) == (0, 1, 1)
    assert world.progress()["blocks"] == 2
    world.with_project("q")
    (loaded,) = call(world.db, "load_slices", project="q")
    assert (loaded["files"], loaded["files_already"], loaded["files_double"]) == (1, 0, 1)
    assert [row["path"] for row in call(world.db, "list_files", project="q")] != [other], "the first one"


def test_reset_of_files_counts_the_blocks_that_it_forgets(world: World) -> None:
    world.add_file(9)
    world.checkout(0, cpus=2)
    world.report(0)
    world.checkout(1, cpus=3)
    world.checkout(2)
    world.report(2, 1)
    (loaded,) = call(world.db, "load_slices", project="p")
    assert loaded["blocks_forgotten"] == 0
    (loaded,) = call(world.db, "load_slices", project="p", start_over=True)
    assert (loaded["blocks"], loaded["blocks_forgotten"]) == (9, 2 + 3), "done and on lease"


def test_file_registered_by_mistake_can_be_forgotten_until_a_project_loads_it(world: World) -> None:
    used = world.add_file(2, run=1)
    mistaken = [world.add_file(2, run=2, seqno=seqno, project=None) for seqno in range(3)]
    assert call(world.db, "forget_rawdata", path=mistaken[0]) == [{"path": mistaken[0]}]
    with pytest.raises(psycopg.Error, match="no raw data file is registered as") as caught:
        call(world.db, "forget_rawdata", path=mistaken[0])
    assert caught.value.sqlstate == "OG302"
    with pytest.raises(psycopg.Error, match=f"{used} is work of project p") as caught:
        call(world.db, "forget_rawdata", path="/dcache/%")
    assert caught.value.sqlstate == "OG407"
    assert len(call(world.db, "list_rawdata")) == 3, "nothing is forgotten"
    gone = call(world.db, "forget_rawdata", path="/dcache/hd_rawdata_000002%")
    assert sorted(row["path"] for row in gone) == mistaken[1:]


def test_slice_lists_the_bytes_that_it_consists_of(world: World) -> None:
    world.add_file(9)
    world.checkout(0, cpus=2)
    answer = world.checkout(1, cpus=3)
    assert answer["pieces"].split("\n") == ["range 0 1000", "range 3000 3000", "hex " + "00" * 32]
    assert answer["size_bytes"] == 1000 + 3000 + 32
    assert answer["events"] == 1 + 3 * 10


def test_adjacent_pieces_become_one_range(world: World) -> None:
    world.add_file(9)
    assert world.checkout(0, cpus=2)["pieces"].split("\n")[0] == "range 0 3000"


def test_dcache_is_replaced_by_the_prefix_and_only_as_a_whole_folder(world: World) -> None:
    world.set(xrootd_prefix="root://server/", strip_prefix="/dcache")
    world.add_file(1)
    assert world.checkout(0)["url"] == "root://server//hd_rawdata_000001_001.evio"
    world.set(strip_prefix="/dca")
    assert world.checkout(0)["url"] == "root://server//dcache/hd_rawdata_000001_001.evio"


def test_changed_setting_applies_from_the_next_checkout(world: World) -> None:
    world.add_file(10)
    assert world.checkout(0)["block2"] == 2
    world.set(maxblockspercore=3, lease_s=7700)
    answer = world.checkout(1)
    assert (answer["block2"] - answer["block1"], answer["lease_s"]) == (3, 7700)


@pytest.mark.parametrize(
    ("wrong", "code", "words"),
    [
        ({"cluster": -1}, "OG102", "parameter cluster must be a number from 0 to 2147483647, not -1"),
        ({"cluster": 2147483648}, "OG102", "parameter cluster"),
        ({"cluster": None}, "OG102", "parameter cluster"),
        ({"process": -1}, "OG103", "parameter process"),
        ({"process": 2**40}, "OG103", "parameter process"),
        ({"cpus": 0}, "OG104", "parameter cpus must be a number from 1 to 4096, not 0"),
        ({"cpus": -1}, "OG104", "parameter cpus"),
        ({"cpus": 4097}, "OG104", "parameter cpus"),
        ({"project": ""}, "OG101", "parameter project is missing"),
        ({"project": None}, "OG101", "parameter project is missing"),
        ({"project": "x"}, "OG301", "parameter project: there is no project 'x'"),
        ({"magic": "wrong"}, "OG202", "parameter magic is wrong or missing"),
        ({"magic": None}, "OG202", "parameter magic is wrong or missing"),
        ({"client": "10.0.0.1"}, "OG201", "address 10.0.0.1 is outside the subnets of project p"),
        ({"client": "::1"}, "OG201", "address ::1 is outside"),
    ],
)
def test_bad_parameter_is_named_and_no_slice_is_leased(
    world: World, wrong: dict, code: str, words: str
) -> None:
    world.add_file(2)
    with pytest.raises(psycopg.Error, match=words) as caught:
        world.checkout(**{"process": 0, **wrong})
    assert caught.value.sqlstate == code
    assert caught.value.diag.message_hint
    assert world.progress()["blocks_leased"] == 0


def test_caller_with_an_outdated_template_gets_no_slice(world: World) -> None:
    world.add_file(2)
    answer = world.checkout(0, workscript="")
    assert (answer["status"], answer["workscript"]) == ("template", "osgprod_work.bash")
    assert world.progress()["blocks_leased"] == 0
    assert world.checkout(0, workscript="osgprod_work.bash")["status"] == "assigned"


@pytest.mark.parametrize("state", ["paused", "draining"])
def test_paused_and_draining_projects_assign_no_new_slices(world: World, state: str) -> None:
    world.add_file(3)
    world.checkout(0)
    world.set(state=state)
    if state == "paused":
        with pytest.raises(psycopg.Error, match="project p is paused") as caught:
            world.checkout(0)
        assert caught.value.sqlstate == "OG501"
    else:
        assert world.checkout(0)["status"] == "assigned"
        assert world.checkout(1)["status"] == "no-work"
    assert world.report(0)["status"] == "done"
    world.set(state="active")
    assert world.checkout(2)["status"] == "assigned"


def test_job_that_starts_too_often_is_refused(world: World) -> None:
    world.set(max_starts_per_min=3)
    world.add_file(3)
    for _ in range(3):
        world.checkout(0)
    with pytest.raises(
        psycopg.Error, match=r"job 1\.0 has started too often .*\(max_starts_per_min = 3\)"
    ) as caught:
        world.checkout(0)
    assert caught.value.sqlstate == "OG602"
    world.attempts_pass(61)
    assert world.checkout(0)["nstarts"] == 4


def reach_the_cap(world: World) -> None:
    """Two jobs are running, the most that the cap allows."""
    world.add_file(9)
    world.set(max_live=2)
    world.checkout(0)
    world.checkout(1)
    world.db.execute("SELECT * FROM osgprod.tick()")


def test_cap_on_live_attempts_is_held(world: World) -> None:
    reach_the_cap(world)
    with pytest.raises(psycopg.Error, match="2 live attempts of at most 2") as caught:
        world.checkout(2)
    assert caught.value.sqlstate == "OG603"
    assert world.checkout(0)["nstarts"] == 2, "a restarted job is not a new one"


def test_cap_on_live_attempts_frees_places_at_the_next_tick(world: World) -> None:
    reach_the_cap(world)
    world.report(0)
    world.tick()
    assert world.checkout(2)["status"] == "assigned"
    world.let_leases_run_out()
    world.tick()
    assert world.checkout(3)["status"] == "assigned"


def test_tables_refuse_slices_that_overlap(world: World) -> None:
    world.add_file(9)
    world.checkout(0, cpus=3)
    for block1, block2, follows in ((2, 5, 2), (4, 6, None), (1, 2, None), (6, 7, 6)):
        with pytest.raises(psycopg.errors.IntegrityError):
            world.db.execute(
                "INSERT INTO osgprod_data.slices (project_id, rawdata_id, block1, block2, follows, state, opened_at)"
                " VALUES (1, 1, %s, %s, %s, 'done', now())",
                [block1, block2, follows],
            )


def test_requeued_slice_is_assigned_before_new_blocks_when_the_cap_is_counted_anew(world: World) -> None:
    reach_the_cap(world)
    world.let_leases_run_out()
    world.tick()
    assert world.checkout(2)["block1"] == 1
