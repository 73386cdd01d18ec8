"""Access by address, magic and token, and what a job can do to another job. Calls the functions directly."""

from __future__ import annotations

import psycopg
import pytest

from shim.database import call
from tests.support import World


def refusal(function, *arguments, **named) -> str:
    """The code with which a call is refused; everything is as before."""
    with pytest.raises(psycopg.Error) as refused:
        function(*arguments, **named)
    assert refused.value.diag.message_hint
    return refused.value.sqlstate or ""


PATTERNS: list[tuple[str, list[str], list[str]]] = [
    ("129.57.0.0/16, 10.0.0.0/8", ["129.57.1.2", "10.255.0.1"], ["129.58.0.1", "::1", "::129.57.1.2"]),
    ("10.1.2.3/16", ["10.1.255.255"], ["10.2.0.0"]),  # bits behind the mask mean nothing
    ("127.0.0.1", ["127.0.0.1"], ["127.0.0.2"]),
    ("2001:db8::/32", ["2001:db8:ffff::1"], ["2001:db9::1", "32.1.13.184"]),
    ("2001:DB8::/32 10.0.0.0/8", ["2001:db8::1", "10.0.0.1"], ["192.168.0.1"]),
    ("0.0.0.0/0", ["192.0.2.7"], ["2001:db8::1"]),
    ("0.0.0.0/0, ::/0", ["192.0.2.7", "2001:db8::1"], []),
    # v4-mapped addresses are IPv4 ones, on both sides
    ("10.0.0.0/8", ["::ffff:10.0.0.1", "::ffff:a01:203"], ["::ffff:11.0.0.1", "::fffe:10.0.0.1"]),
    ("::ffff:10.0.0.0/104", ["10.9.9.9", "::ffff:10.9.9.9"], ["11.0.0.0"]),
    ("::ffff:0.0.0.0/96", ["0.0.0.0", "255.255.255.255"], ["::1"]),
    # the patterns of the original
    ("129.57.%", ["129.57.0.1", "::ffff:129.57.0.1"], ["129.5.7.1", "1.129.57.1", "::129.57.0.1"]),
    ("10.0.0._", ["10.0.0.1"], ["10.0.0.11", "10.0.1.1"]),
    ("1%", ["10.0.0.1", "129.57.0.1"], ["1000::1", "2.1.1.1"]),  # meant for IPv4
    ("2001:DB8:%", ["2001:db8:0::1", "2001:0db8::5"], ["2001:db80::1", "32.1.13.184"]),
    ("%", ["192.0.2.7", "2001:db8::1"], []),
]


def test_subnet_pattern_admits_exactly_the_addresses_that_it_names(world: World) -> None:
    world.add_file(99)
    for number, (pattern, inside, outside) in enumerate(PATTERNS):
        world.set(subnet_pattern=pattern)
        for process, address in enumerate(inside):
            answer = world.checkout(process, cluster=number, client=address)
            assert answer["status"] == "assigned", (pattern, address)
        for address in outside:
            assert refusal(world.checkout, 99, client=address) == "OG201", (pattern, address)


def test_an_address_that_is_not_known_is_no_loopback_address(world: World) -> None:
    """A shim behind a unix socket that doesn't know the client's address must not report 127.0.0.1."""
    world.add_file(1)
    world.set(subnet_pattern="0.0.0.0/0, ::/0")
    assert refusal(world.checkout, 0, client=None) == "OG207"
    assert refusal(world.report, 0, client=None) == "OG207"
    assert refusal(world.heartbeat, 0, client=None) == "OG207"
    assert world.progress()["blocks_leased"] == 0


def test_from_psql_the_address_is_that_of_the_session(world: World) -> None:
    world.add_file(1)
    answer = call(world.db, "checkout_slice", project="p", cluster=1, process=0, magic="m")[0]
    assert answer["status"] == "assigned"
    row = world.db.execute("SELECT host(client) AS client FROM osgprod_data.attempts").fetchone()
    assert row == {"client": "127.0.0.1"}


def test_every_kind_of_wrong_magic_is_refused(world: World) -> None:
    world.add_file(1)
    for wrong in ("", "M", "m ", " m", "mm", None, "m\u200b", "%", "_", "' OR true --"):
        assert refusal(world.checkout, 0, magic=wrong) == "OG202"
        assert refusal(world.report, 0, magic=wrong) == "OG202"
        assert refusal(world.heartbeat, 0, magic=wrong) == "OG202"


def test_project_without_a_magic_refuses_everybody(world: World) -> None:
    call(
        world.db,
        "add_project",
        project="bare",
        subnet_pattern="127.0.0.0/8",
        workscript="w",
        xrootd_prefix="",
        maxblockspercore=1,
    )
    for magic in (None, "", "m"):
        assert refusal(world.checkout, 0, project="bare", magic=magic) == "OG203"


def test_old_and_new_magic_are_both_good_until_the_overlap_ends(world: World) -> None:
    world.add_file(9)
    call(world.db, "set_magic", project="p", magic="new", overlap_s=3600)
    assert world.checkout(0, magic="m")["status"] == "assigned"
    assert world.checkout(1, magic="new")["status"] == "assigned"
    world.db.execute("UPDATE osgprod_data.projects SET old_magic_until = now()")
    assert refusal(world.checkout, 2, magic="m") == "OG202"
    assert world.checkout(2, magic="new")["status"] == "assigned"


def test_without_overlap_the_old_magic_is_dead_at_once(world: World) -> None:
    world.add_file(9)
    call(world.db, "set_magic", project="p", magic="new")
    assert refusal(world.checkout, 2, magic="m") == "OG202"


def test_a_magic_is_stored_as_a_digest_that_differs_between_projects(world: World) -> None:
    world.with_project("q")  # the same magic
    rows = world.db.execute("SELECT p::text AS line, magic_digest FROM osgprod_data.projects p").fetchall()
    assert len({row["magic_digest"] for row in rows}) == 2
    secret = "a magic to look for"
    call(world.db, "set_magic", project="p", magic=secret)
    dump = world.db.execute("SELECT string_agg(p::text, '') AS t FROM osgprod_data.projects p").fetchone()
    assert dump and secret not in dump["t"] and secret.encode().hex() not in dump["t"]


def test_the_answer_to_set_project_shows_no_digest_and_no_salt(world: World) -> None:
    shown = {row["setting"] for row in call(world.db, "set_project", project="p", settings="{}")}
    assert not {name for name in shown if "magic" in name}
    assert "token_required" in shown


def test_a_magic_is_good_for_its_own_project_only(world: World) -> None:
    world.with_project("q")
    call(world.db, "set_magic", project="q", magic="other")
    world.add_file(9, project="q")
    assert refusal(world.checkout, 0, project="q", magic="m") == "OG202"


def test_new_projects_demand_the_token(world: World) -> None:
    call(
        world.db,
        "add_project",
        project="fresh",
        subnet_pattern="%",
        workscript="w",
        xrootd_prefix="",
        maxblockspercore=1,
        magic="m",
    )
    settings = {
        row["setting"]: row["value"] for row in call(world.db, "set_project", project="fresh", settings="{}")
    }
    assert settings["token_required"] == "true"


@pytest.mark.parametrize("what", ["report", "heartbeat"])
def test_the_token_of_another_job_is_refused_and_recorded(world: World, what: str) -> None:
    world.set(token_required=True)
    world.add_file(2)
    mine, others = world.checkout(0), world.checkout(1)
    act = getattr(world, what)
    for times, token in enumerate((str(others["token"]), "", "nonsense", str(others["token"])), start=1):
        answer = act(0, token=token)
        assert (answer["http_status"], answer["status"]) == (403, "refused")
        row = world.db.execute(
            "SELECT process, host(client) AS client, reason, times FROM osgprod_data.refusals"
        )
        assert row.fetchall() == [
            {
                "process": 0,
                "client": "127.0.0.1",
                "reason": "parameter token is not of this job",
                "times": times,
            }
        ]
    assert world.progress()["blocks_leased"] == 2, "nothing else has happened"
    assert act(0, token=str(mine["token"]))["http_status"] == 200
    assert act(1, token=str(others["token"]).upper())["http_status"] == 200


@pytest.mark.parametrize("what", ["report", "heartbeat"])
def test_a_missing_token_is_refused_and_recorded_where_it_is_required(world: World, what: str) -> None:
    world.set(token_required=True)
    world.add_file(1)
    world.checkout(0)
    answer = getattr(world, what)(0)
    assert answer["http_status"] == 403 and "script that the job was given" in answer["message"]
    row = world.db.execute("SELECT reason FROM osgprod_data.refusals").fetchone()
    assert row == {"reason": "parameter token is missing"}


@pytest.mark.parametrize("what", ["report", "heartbeat"])
def test_without_tokens_only_the_address_that_has_the_slice_is_believed(world: World, what: str) -> None:
    """The original's rule: address + cluster + process. Its exec script knows no token."""
    world.set(token_required=False, subnet_pattern="%")
    world.add_file(1)
    token = str(world.checkout(0, client="192.0.2.1")["token"])
    act = getattr(world, what)
    answer = act(0, client="192.0.2.2")
    assert (answer["http_status"], answer["status"]) == (403, "refused")
    row = world.db.execute("SELECT host(client) AS client, reason FROM osgprod_data.refusals").fetchone()
    assert row == {
        "client": "192.0.2.2",
        "reason": "without a token only the address that has the slice may report",
    }
    assert act(0, client="::ffff:192.0.2.1")["http_status"] == 200
    if what == "heartbeat":
        assert act(0, client="192.0.2.2", token=token)["http_status"] == 200, (
            "the token is good from anywhere"
        )


def test_the_token_of_an_earlier_start_can_not_renew_or_end_the_present_one(world: World) -> None:
    world.set(token_required=True)
    world.add_file(1)
    first = str(world.checkout(0)["token"])
    second = str(world.checkout(0)["token"])
    assert first != second
    assert world.heartbeat(0, token=first)["status"] == "superseded"
    assert world.report(0, 1, token=first)["status"] == "superseded"
    assert world.report(0, 0, token=second)["status"] == "done"


def test_a_token_is_stored_as_a_digest_only(world: World) -> None:
    world.add_file(1)
    token = str(world.checkout(0)["token"])
    dump = world.db.execute("SELECT a::text AS t FROM osgprod_data.attempts a").fetchone()
    assert dump and token not in dump["t"] and token.replace("-", "") not in dump["t"]


def test_a_job_that_lies_about_its_host_gets_no_other_node_banned(world: World) -> None:
    """What is counted against a node is counted under its address as well, which no job can choose."""
    world.set(max_fast_failures=2, backoff_s=0, max_failures=50, subnet_pattern="%")
    world.add_file(99)
    for process in range(3):
        try:
            world.checkout(process, client="192.0.2.66", host="victim")
            world.report(process, 1, client="192.0.2.66", host="victim")
        except psycopg.Error as error:
            assert error.sqlstate == "OG601"
    assert [row["worker"] for row in call(world.db, "blocked_workers")] == ["victim@192.0.2.66"]
    assert world.checkout(50, client="192.0.2.1", host="victim")["status"] == "assigned"
    assert refusal(world.checkout, 51, client="192.0.2.66", host="victim") == "OG601"
    # The same for a host that looks like a worker's whole name, or like an address.
    for process, host in enumerate(("victim@192.0.2.1", "192.0.2.1", "victim@192.0.2.1") * 3, start=60):
        try:
            world.checkout(process, client="192.0.2.77", host=host)
            world.report(process, 1, client="192.0.2.77", host=host)
        except psycopg.Error as error:
            assert error.sqlstate == "OG601"
    assert len(call(world.db, "blocked_workers")) == 3
    assert world.checkout(52, client="192.0.2.1", host="victim")["status"] == "assigned"


def test_a_report_can_not_move_its_failure_to_another_node(world: World) -> None:
    world.add_file(1)
    world.checkout(0, host="bad")
    world.report(0, 1, host="victim")
    row = world.db.execute("SELECT worker FROM osgprod_data.reports").fetchone()
    assert row == {"worker": "bad@127.0.0.1"}


def test_an_operator_bans_a_host_or_an_address_everywhere(world: World) -> None:
    world.set(subnet_pattern="%")
    world.add_file(9)
    call(world.db, "ban_worker", project="p", worker="wn1", seconds=60)
    call(world.db, "ban_worker", project="p", worker="192.0.2.9", seconds=60)
    for client, host in (("192.0.2.1", "wn1"), ("192.0.2.2", "wn1"), ("192.0.2.9", "x"), ("192.0.2.9", None)):
        assert refusal(world.checkout, 0, client=client, host=host) == "OG601"
    assert world.checkout(0, client="192.0.2.1", host="wn2")["status"] == "assigned"
    call(world.db, "ban_worker", project="p", worker="192.0.2.9", seconds=0)
    assert world.checkout(1, client="192.0.2.9", host="x")["status"] == "assigned"


def test_a_job_that_starts_too_often_gets_nothing_more_within_the_minute(world: World) -> None:
    world.set(max_starts_per_min=3)
    world.add_file(9)
    for _ in range(3):
        assert world.checkout(0)["status"] == "assigned"
    before = world.progress()
    assert refusal(world.checkout, 0) == "OG602"
    assert world.progress() == before
    assert world.checkout(1)["status"] == "assigned", "others are not concerned"
    world.attempts_pass(61)
    assert world.checkout(0)["status"] == "assigned"


def test_more_live_attempts_than_the_cap_get_nothing(world: World) -> None:
    world.set(max_live=2)
    world.add_file(9)
    for process in range(2):
        world.checkout(process)
    call(world.db, "tick")  # counted there, every few seconds
    before = world.progress()
    assert refusal(world.checkout, 2) == "OG603"
    assert world.progress() == before
    assert world.checkout(0)["nstarts"] == 2, "a restarted job's own slice is none more"
    world.report(1, 0)
    call(world.db, "tick")
    assert world.checkout(2)["status"] == "assigned"


def test_url_of_outputs_is_recorded_as_one_printable_line(world: World) -> None:
    world.add_file(1)
    world.checkout(0)
    world.report(0, 0, output_url="https://h/a\nrm -rf\x1b[2J\t" + "x" * 5000, reason="a\r\nb\x1b]0;t\x07")
    row = world.db.execute("SELECT output_url, reason FROM osgprod_data.reports").fetchone()
    assert row and row["output_url"].isprintable() and len(row["output_url"]) == 1024
    assert row["reason"] is None or row["reason"].isprintable()


def test_what_was_done_with_a_stolen_magic_is_undone_by_address_and_time(world: World) -> None:
    """The thief says "done" of all that it gets; the operator takes exactly that back."""
    world.set(subnet_pattern="%")
    world.add_file(9)
    for process, client in enumerate(("192.0.2.1", "203.0.113.5", "192.0.2.1", "203.0.113.9", "2001:db8::1")):
        world.checkout(process, client=client)
        world.report(process, 0, client=client)
    world.attempts_pass(3600)
    world.checkout(7, client="203.0.113.5")
    world.report(7, 0, client="203.0.113.5")
    call(world.db, "set_magic", project="p", magic="new")
    undo = {"project": "p", "states": ["done"], "client": "203.0.113.0/24"}
    recent = world.db.execute("SELECT now() - interval '1 min' AS t").fetchone()
    assert recent is not None
    assert [row["block1"] for row in call(world.db, "recycle", **undo, since=recent["t"], dry_run=True)] == [
        6
    ]
    assert [row["block1"] for row in call(world.db, "recycle", **undo)] == [2, 4, 6]
    assert world.progress()["blocks_done"] == 3
    assert world.checkout(8, client="192.0.2.1", magic="new")["block1"] == 2, (
        "and its blocks are leased again"
    )
    # What the thief reports later counts no more.
    assert refusal(world.report, 1, 0, client="203.0.113.5") == "OG202"
