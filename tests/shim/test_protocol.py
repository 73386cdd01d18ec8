"""What a job gets over HTTP: the original's protocol, and a clear line for every bad request."""

from __future__ import annotations

import http.client
import re
import subprocess
import threading
import time
import urllib.parse
from pathlib import Path
from typing import Any

import pytest

from shim.database import call, connect
from shim.local.embedded import Server
from shim.web import openapi
from shim.workscript import TemplateFolder
from tests.support import CHECKOUT, PATIENCE_S, LiveShim, World, blocks_of, wait_until

GOOD = "project=p&cluster=1&process=0&magic=m"


def field(script: str, name: str) -> str:
    match = re.search(rf"^# {name}: (.*)$", script, re.MULTILINE)
    assert match, f"no '# {name}:' in the script"
    return match[1]


def taken(world: World) -> tuple[int, int, int]:
    """Everything that a request could have changed."""
    row = world.db.execute(
        "SELECT (SELECT count(*) FROM osgprod_data.slices) AS s, (SELECT count(*) FROM osgprod_data.attempts) AS a,"
        " (SELECT count(*) FROM osgprod_data.reports) AS r"
    ).fetchone()
    assert row is not None
    return row["s"], row["a"], row["r"]


# --- the original's usage --------------------------------------------------------------------------------------


def test_originals_example_gives_a_script_and_each_repetition_moves_on(world: World, shim: LiveShim) -> None:
    world.with_project("demo")
    call(world.db, "set_magic", project="demo", magic="my magic")
    shim.add_template("demo")
    world.add_file(5, project="demo")
    target = "workscript.bash?project=demo&cluster=0&process=0&magic=my+magic;"
    first, second = shim.raw(target), shim.raw(target)
    assert first.status_code == second.status_code == 200
    assert first.headers["content-type"].startswith("text/plain")
    assert [field(r.text, "nstarts") for r in (first, second)] == ["1", "2"]
    assert field(second.text, "started") > field(first.text, "started")
    assert field(first.text, "ncpus") == "1", "cpus is 1 when it is not given"
    assert field(first.text, "source") == field(second.text, "source") == "/hd_rawdata_000001_001.evio+1,2"
    syntax = subprocess.run(["bash", "-n"], input=first.content, capture_output=True)
    assert (syntax.returncode, syntax.stderr) == (0, b"")


@pytest.mark.parametrize("tail", ["", ";", "&"])
@pytest.mark.parametrize("space", ["+", "%20"])
def test_all_ways_to_write_a_request_are_right(world: World, shim: LiveShim, tail: str, space: str) -> None:
    call(world.db, "set_magic", project="p", magic="a b=c;d")
    world.add_file(1)
    magic = f"a{space}b=c%3Bd"
    assert shim.raw(f"workscript.bash?project=p&cluster=1&process=0&magic={magic}{tail}").status_code == 200


def test_post_works_as_well_with_its_parameters_in_the_body(world: World, shim: LiveShim) -> None:
    world.add_file(1)
    answer = shim.raw("workscript.bash", "POST", content=GOOD.encode())
    assert (answer.status_code, answer.headers["Osgprod-Status"]) == (200, "assigned")
    assert shim.raw("workscript.exit?exitcode=0", "POST", content=GOOD.encode()).status_code == 200
    assert world.progress()["blocks_done"] == 1


def test_whole_life_of_a_slice(world: World, shim: LiveShim) -> None:
    world.add_file(1)
    script = shim.checkout(0)
    token = script.headers["Osgprod-Token"]
    assert f"osgprod_token={token}" in script.text
    heartbeat = shim.get(
        "workscript.ping", project="p", cluster=1, process=0, magic="m", token=token, bytes=5, cpu=1
    )
    assert (heartbeat.status_code, heartbeat.headers["Osgprod-Status"]) == (200, "alive")
    assert shim.checkout(1).headers["Osgprod-Status"] == "wait"
    assert shim.checkout(1).headers["Retry-After"] == "60"
    ended = shim.report(0, 0, token=token)
    assert (ended.status_code, ended.headers["Osgprod-Status"]) == (200, "done")
    for process, status, words in ((0, "completed", "already completed"), (1, "no-work", "no work left")):
        answer = shim.checkout(process)
        assert (answer.status_code, answer.headers["Osgprod-Status"]) == (200, status)
        run = subprocess.run(["bash"], input=answer.content, capture_output=True)
        assert (run.returncode, run.stderr) == (0, b"")
        assert words in run.stdout.decode()
    late = shim.get("workscript.ping", project="p", cluster=1, process=0, magic="m", token=token)
    assert (late.status_code, late.headers["Osgprod-Status"]) == (409, "superseded")


def test_32_clients_over_http_get_all_blocks_once(world: World, shim: LiveShim) -> None:
    world.add_file(99)
    lock, assigned, others = threading.Lock(), [], []

    def work(n: int, _: Any) -> None:
        process = 0
        while True:
            answer = shim.checkout(process, cluster=n)
            assert answer.status_code == 200, answer.text
            with lock:
                (assigned if answer.headers["Osgprod-Status"] == "assigned" else others).append(answer)
            if answer.headers["Osgprod-Status"] != "assigned":
                return
            process += 1

    world.at_once(32, work)
    blocks = [int(a.headers["Osgprod-Slice"].rpartition("+")[2].split(",")[0]) for a in assigned]
    assert sorted(blocks) == list(range(1, 100))
    assert {a.headers["Osgprod-Status"] for a in others} == {"wait"}


# --- bad input -------------------------------------------------------------------------------------------------


BAD_REQUESTS = [
    ("workscript.bash?cluster=1&process=0&magic=m", 400, "parameter project is missing"),
    ("workscript.bash?project=p&process=0&magic=m", 400, "parameter cluster must be a number"),
    ("workscript.bash?project=p&cluster=1&magic=m", 400, "parameter process must be a number"),
    (f"workscript.bash?{GOOD}&process=1", 400, "parameter process is given twice"),
    (f"workscript.bash?{GOOD}&cpus", 400, "parameter cpus has no value"),
    (f"workscript.bash?{GOOD}&cpus=0", 400, "parameter cpus must be a number from 1 to 4096, not 0"),
    (f"workscript.bash?{GOOD}&cpus=-1", 400, "parameter cpus must be"),
    (f"workscript.bash?{GOOD}&cpus=4097", 400, "parameter cpus must be"),
    (f"workscript.bash?{GOOD}&cpus=two", 400, "parameter cpus must be a number, not 'two'"),
    (f"workscript.bash?{GOOD}&cpus=1.0", 400, "parameter cpus must be a number"),
    (f"workscript.bash?{GOOD}&cpus=", 400, "parameter cpus must be a number"),
    (f"workscript.bash?{GOOD}&cpus=%D9%A1", 400, "parameter cpus must be a number"),
    (f"workscript.bash?{GOOD}&cpus={'9' * 30}", 400, "parameter cpus must be a number"),
    ("workscript.bash?project=p&cluster=-1&process=0&magic=m", 400, "parameter cluster must be"),
    ("workscript.bash?project=p&cluster=2147483648&process=0&magic=m", 400, "parameter cluster must be"),
    ("workscript.bash?project=p&cluster=1&process=99999999999&magic=m", 400, "parameter process must be"),
    ("workscript.bash?project=x&cluster=1&process=0&magic=m", 404, "there is no project 'x'"),
    ("workscript.bash?project=p&cluster=1&process=0&magic=wrong", 403, "parameter magic is wrong or missing"),
    ("workscript.bash?project=p&cluster=1&process=0", 403, "parameter magic is wrong or missing"),
    (f"workscript.bash?{GOOD}%00", 400, "parameter magic has a NUL byte"),
    (f"workscript.bash?{GOOD}%", 400, "parameter magic has broken percent-encoding"),
    (f"workscript.bash?{GOOD}%zz", 400, "parameter magic has broken percent-encoding"),
    (f"workscript.bash?{GOOD}&job_key=%ff", 400, "parameter job_key is not UTF-8"),
    (f"workscript.bash?{GOOD}&job_key={'k' * 257}", 400, "parameter job_key is longer than 256 bytes"),
    (f"workscript.exit?{GOOD}&exitcode=0&token=%ff", 400, "parameter token is not UTF-8"),
    (f"workscript.exit?{GOOD}&exitcode=0&token=a&b", 400, "a parameter that is not known here has no value"),
    (f"workscript.bash?{GOOD}%ff", 400, "parameter magic is not UTF-8"),
    (f"workscript.bash?{GOOD}&x={'y' * 9_000}", 400, "the query is longer than 8192 bytes"),
    (f"workscript.exit?{GOOD}", 400, "parameter exitcode must be a number from 0 to 255, not nothing"),
    (f"workscript.exit?{GOOD}&exitcode=256", 400, "parameter exitcode must be"),
    (f"workscript.exit?{GOOD}&exitcode=-1", 400, "parameter exitcode must be"),
    (f"workscript.exit?{GOOD}&exitcode=0x1", 400, "parameter exitcode must be a number, not '0x1'"),
    (f"workscript.exit?{GOOD}&exitcode=0", 404, "job 1.0 has no attempt in project p"),
    (f"workscript.ping?{GOOD}", 404, "job 1.0 has no attempt in project p"),
]


def test_bad_request_is_one_clear_line_and_changes_nothing(world: World, shim: LiveShim) -> None:
    world.add_file(3)
    said = []
    for target, status, words in BAD_REQUESTS:
        answer = shim.raw(target)
        lines = answer.text.splitlines()
        assert (answer.status_code, words in lines[0]) == (status, True), (target, lines)
        assert lines[1].startswith("# hint: "), target
        assert all(line.startswith("#") for line in lines), "an error is never a script that does something"
        said.append(answer.content)
    ran = subprocess.run(["bash"], input=b"".join(said), capture_output=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")
    assert taken(world) == (0, 0, 0)


DECORATIONS = [
    ("reason=45%B0C", "changed: reason (is not UTF-8)"),  # Latin-1
    ("reason=5+%C2", "changed: reason (is not UTF-8)"),  # a letter cut in half
    ("reason=a%00b", "changed: reason (has a NUL byte)"),
    ("reason=100%", "changed: reason (has broken percent-encoding)"),
    (f"reason={'x' * 1025}", "changed: reason (is too long)"),
    ("reason=a&b", "ignored: a parameter that is not known here (has no value)"),
    ("reason=a&reason=b", "ignored: reason (is given twice)"),
    ("reason&site=s", "ignored: reason (has no value)"),
    ("site=%ff%fe", "changed: site (is not UTF-8)"),
    ("host=%ff", "changed: host (is not UTF-8)"),
    ("output_url=file:///%e4", "changed: output_url (is not UTF-8)"),
    (f"output_url=https://h/{'x' * 2000}", "changed: output_url (is too long)"),
    ("events=12345678901234567890", "ignored: events (must be a number)"),
    ("events=many", "ignored: events (must be a number)"),
    ("events=", "ignored: events (must be a number)"),
    ("events=%ff", "ignored: events (must be a number)"),
    ("events=-1", "ignored: events (below 0)"),
    ("outputs=1.5", "ignored: outputs (must be a number)"),
    ("outputs=99999999999", "ignored: outputs (not from 0 to 2147483647)"),
    ("output_bytes=1e6", "ignored: output_bytes (must be a number)"),
    ("output_adler32=zz", "ignored: output_adler32 (not 8 hexadecimal digits)"),
    ("output_adler32=%ff", "changed: output_adler32 (is not UTF-8)"),
    ("nonsense=%ff%00", None),
    ("nonsense=1&nonsense=2", None),
]


@pytest.mark.parametrize(
    ("exitcode", "method"),
    [(0, "POST"), (1, "GET")]
    + [pytest.param(*which, marks=pytest.mark.slow) for which in ((0, "GET"), (1, "POST"))],
)
def test_a_report_counts_whatever_its_decoration_holds_and_the_answer_says_what_was_left_out(
    world: World, shim: LiveShim, exitcode: int, method: str
) -> None:
    world.set(token_required=True, max_failures=100, backoff_s=0, max_fast_failures=9999)
    world.add_file(len(DECORATIONS))
    expected = "done" if exitcode == 0 else "failed"
    for process, (decoration, note) in enumerate(DECORATIONS):
        asked = f"project=p&cluster=1&process={process}&magic=m"
        token = shim.raw(f"workscript.bash?{asked}").headers["Osgprod-Token"]
        query = f"{asked}&token={token}&exitcode={exitcode}&{decoration}"
        answers = [
            shim.raw(f"workscript.exit?{query}")
            if method == "GET"
            else shim.raw("workscript.exit", "POST", content=query.encode())
            for _ in range(2)
        ]
        for answer in answers:
            assert (answer.status_code, answer.headers["Osgprod-Status"]) == (200, expected), decoration
            lines = answer.text.splitlines()[1:]
            assert (note in lines) if note else (lines == []), (decoration, lines)
            assert (note in answer.headers["Osgprod-Note"]) if note else "Osgprod-Note" not in answer.headers
    rows = world.db.execute(
        "SELECT r.process, r.exit_code, r.reason, r.site, r.output_url, r.events FROM osgprod_data.reports r ORDER BY 1"
    ).fetchall()
    assert [row["exit_code"] for row in rows] == [exitcode] * len(DECORATIONS)
    kept = {decoration: row for (decoration, _), row in zip(DECORATIONS, rows, strict=True)}
    assert kept["reason=45%B0C"]["reason"] == "45\ufffdC"
    assert kept["reason=a%00b"]["reason"] == "a b"
    assert kept["reason=a&reason=b"]["reason"] == "a"
    assert kept["events=many"]["events"] is None


@pytest.mark.parametrize(
    ("route", "decoration", "note"),
    [
        ("workscript.bash", "host=%ff&site=s", "changed: host (is not UTF-8)"),
        ("workscript.bash", "site=a%00", "changed: site (has a NUL byte)"),
        ("workscript.ping", "bytes=9999999999999999999", "ignored: bytes (must be a number)"),
        ("workscript.ping", "cpu=", "ignored: cpu (must be a number)"),
    ],
)
def test_a_checkout_and_a_heartbeat_count_whatever_their_decoration_holds(
    world: World, shim: LiveShim, route: str, decoration: str, note: str
) -> None:
    world.add_file(1)
    shim.raw(f"workscript.bash?{GOOD}") if route == "workscript.ping" else None
    answer = shim.raw(f"{route}?{GOOD}&{decoration}")
    assert answer.status_code == 200
    assert answer.headers["Osgprod-Status"] in ("assigned", "alive")
    assert answer.headers["Osgprod-Note"] == note
    if route == "workscript.bash":
        assert subprocess.run(["bash", "-n"], input=answer.content, capture_output=True).stderr == b""


def test_a_request_of_many_parts_is_rejected_before_they_are_read(world: World, shim: LiveShim) -> None:
    world.add_file(1)
    for route in openapi.PROTOCOL:
        answer = shim.raw(route, "POST", content=b"host=x" + b"&b" * 32_000)
        assert (answer.status_code, "more than 100 parameters" in answer.text) == (400, True), route
        assert len(answer.content) < 1000
    assert shim.raw(f"workscript.bash?{GOOD}" + "&a=b" * 90).status_code == 200


def test_a_note_is_in_an_answer_once(world: World, shim: LiveShim) -> None:
    world.add_file(1)
    answer = shim.raw(f"workscript.bash?{GOOD}&host=x" + "&b" * 50 + "&site=%ff" * 20)
    assert answer.headers["Osgprod-Note"].split("; ") == [
        "ignored: a parameter that is not known here (has no value)",
        "changed: site (is not UTF-8)",
        "ignored: site (is given twice)",
    ]


def test_every_parameter_of_the_protocol_is_core_or_can_be_done_without() -> None:
    core = {name for name, parameter in openapi.PARAMETERS.items() if parameter.is_core}
    assert core == {"project", "cluster", "process", "magic", "cpus", "exitcode", "token", "job_key"}


def test_a_job_key_over_http_is_asked_for_and_never_logged_or_repeated(
    world: World, shim: LiveShim, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    world.add_file(2)
    mine = shim.raw(f"workscript.bash?{GOOD}&job_key=SECRETKEY1")
    assert mine.headers["Osgprod-Status"] == "assigned"
    for other in ("", "&job_key=", "&job_key=SECRETKEY2"):
        answer = shim.raw("workscript.bash", "POST", content=f"{GOOD}{other}".encode())
        assert answer.headers["Osgprod-Status"] == "wait" and answer.headers["Retry-After"] == "60"
        assert "Osgprod-Token" not in answer.headers and "SECRETKEY" not in answer.text
    again = shim.raw("workscript.bash", "POST", content=f"{GOOD}&job_key=SECRETKEY1".encode())
    assert again.headers["Osgprod-Nstarts"] == "2" and "SECRETKEY" not in again.text
    for route in ("workscript.ping", "workscript.exit"):
        answer = shim.raw(f"{route}?{GOOD}&exitcode=0&job_key=SECRETKEY1")
        assert answer.status_code == 200 and "SECRETKEY" not in answer.text
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith("http")]
    assert ours and not [line for line in ours if "SECRETKEY" in line]


def test_100_kb_of_query_or_body_are_refused_and_the_shim_lives_on(world: World, shim: LiveShim) -> None:
    world.add_file(1)
    connection = http.client.HTTPConnection("127.0.0.1", shim.port, timeout=PATIENCE_S)
    connection.request("GET", f"/osgprod/workscript.bash?{GOOD}&x={'y' * 100_000}")
    assert connection.getresponse().status in (400, 414, 431)
    assert (
        shim.raw("workscript.bash", "POST", content=f"{GOOD}&x={'y' * 100_000}".encode()).status_code == 400
    )
    assert taken(world) == (0, 0, 0)
    assert shim.checkout(0).status_code == 200


def test_client_outside_the_subnet_is_refused(world: World, shim: LiveShim) -> None:
    world.add_file(1)
    for pattern in ("10.0.0.0/8", "::1/128", "129.57.%"):
        world.set(subnet_pattern=pattern)
        answer = shim.checkout(0)
        assert answer.status_code == 403
        assert "address 127.0.0.1 is outside the subnets of project p" in answer.text
    for pattern in ("127.0.0.1/32, 10.0.0.0/8", "127.0.%"):
        world.set(subnet_pattern=pattern)
        assert shim.checkout(0).status_code == 200


def test_mistyped_path_is_told_and_in_the_log(shim: LiveShim, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "osgprod"):
        answer = shim.raw("workscript.bsh?magic=secret")
    assert (answer.status_code, answer.text.splitlines()[0]) == (
        404,
        "# osgprod error: nothing is served at this path",
    )
    above = shim.client.get(f"http://127.0.0.1:{shim.port}/")
    assert above.status_code == 404 and "# hint: pages begin at /osgprod/" in above.text
    lines = [record.getMessage() for record in caplog.records]
    assert any(f"{answer.headers['Osgprod-Request']} " in line and "workscript.bsh" in line for line in lines)
    assert "secret" not in str(lines)


def test_what_leases_nothing_answers_head_and_names_the_methods_that_it_takes(
    world: World, shim: LiveShim
) -> None:
    for path in ("healthz", "openapi.json"):
        answer = shim.raw(path, "HEAD")
        assert (answer.status_code, answer.content) == (200, b"")
        assert int(answer.headers["Content-Length"]) == len(shim.raw(path).content)
        refused = shim.raw(path, "POST")
        assert (refused.status_code, set(refused.headers["Allow"].split(", "))) == (405, {"GET", "HEAD"})
        assert refused.text.endswith("hint: use GET or HEAD\n")


@pytest.mark.parametrize("method", ["HEAD", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_take_no_slice(world: World, shim: LiveShim, method: str) -> None:
    world.add_file(1)
    answer = shim.raw(f"workscript.bash?{GOOD}", method)
    assert (answer.status_code, set(answer.headers["Allow"].split(", "))) == (405, {"GET", "POST"})
    assert taken(world) == (0, 0, 0)


@pytest.mark.parametrize("how", ["missing", "folder", "unreadable name", "empty", "names no slice"])
def test_template_that_cannot_be_used_takes_no_slice(
    world: World, shim: LiveShim, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    world.add_file(1)
    path = shim.add_template("p")
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "unreadable name":
        path.symlink_to(path)
    elif how == "empty":
        path.touch()  # what a full disk leaves of a copy: bash would run it, and succeed
    elif how == "names no slice":
        path.write_text("#!/bin/bash\n# ncpus:\nhd_root any.evio\n")
    with caplog.at_level("INFO", "osgprod"):
        answer = shim.checkout(0)
    assert answer.status_code == 500
    assert str(path.parent) not in answer.text, "where things are is nobody's business"
    assert any("work script" in record.getMessage() for record in caplog.records)
    assert taken(world) == (0, 0, 0)
    if how == "folder":
        path.rmdir()
    path.unlink(missing_ok=True)
    shim.add_template("p")
    assert shim.checkout(0).status_code == 200


def test_changed_template_is_served_at_once(world: World, shim: LiveShim) -> None:
    world.add_file(3)
    for n in range(3):
        shim.add_template("p", f"# source:\n# nstarts:\necho {'x' * n}\n".encode())
        assert shim.checkout(0).text.endswith(f"\n# nstarts: {n + 1}\necho {'x' * n}\n")
    world.set(workscript="other.bash")
    assert shim.checkout(0).status_code == 500
    (shim.add_template("p").parent / "other.bash").write_text("# source:\nother\n")
    assert shim.checkout(0).text.endswith("\nother\n")


def test_error_answer_carries_its_number_and_the_log_has_no_secret(
    world: World, shim: LiveShim, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "osgprod"):
        answer = shim.get("workscript.bash", project="p", cluster=1, process=0, magic="s3cret")
    lines = [record.getMessage() for record in caplog.records]
    assert any(answer.headers["Osgprod-Request"] in line and "status=403" in line for line in lines)
    assert "s3cret" not in "".join(lines) + answer.text


# --- the database away -----------------------------------------------------------------------------------------


def test_work_script_that_is_renamed_while_it_is_read_is_read_by_its_new_name(
    world: World, shim: LiveShim, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add_file(1)
    shim.add_template("p").with_name("new.bash").write_text("# source:\n# the new one\n")
    load = TemplateFolder.load

    def load_late(self: TemplateFolder, project: str, *more: str) -> Any:
        world.set(workscript="new.bash")
        return load(self, project, *more)

    monkeypatch.setattr(TemplateFolder, "load", load_late)
    answer = shim.checkout(0)
    assert answer.status_code == 200
    assert answer.text.endswith("\n# the new one\n")


def test_call_that_the_server_cuts_off_is_503(world: World, folder: Path) -> None:
    """Somebody has given the database a limit; the next try may be faster."""
    world.add_file(1)
    world.db.execute(f"ALTER DATABASE {world.db.info.dbname} SET statement_timeout = '300ms'".encode())
    with LiveShim(world.dsn, folder / "www") as shim:
        shim.add_template("p")
        # Any call may take longer than that on a busy machine.
        wait_until(lambda: shim.checkout(0).status_code == 200, "a slice is assigned")
        with connect(world.dsn) as other, other.transaction():
            other.execute("SET LOCAL statement_timeout = 0")
            world.report(0, db=other)
            assert shim.report(0).status_code == 503
        wait_until(lambda: shim.report(0).status_code == 200, "the report counts")


def test_database_away_is_503_and_the_shim_recovers_by_itself(
    world: World, shim: LiveShim, our_server: Server
) -> None:
    world.add_file(50)
    assert shim.checkout(0).status_code == 200
    world.db.close()
    for process in range(1, 4):
        our_server.restart()

        def is_assigned(process: int = process) -> bool:
            answer = shim.checkout(process)
            if answer.status_code != 200:
                assert answer.status_code == 503
                assert int(answer.headers["Retry-After"]) > 0
                assert answer.text.startswith("# osgprod error")
            return answer.status_code == 200

        wait_until(is_assigned, "the shim assigns work again")


def test_shim_starts_without_a_database(folder: Path, impatient: None) -> None:
    with LiveShim(f"host={folder} port=1 dbname=none", folder / "www") as shim:
        answer = shim.raw("healthz")
        assert answer.status_code == 503
        assert "Retry-After" in answer.headers


def test_functions_renewed_under_traffic_disturb_nobody(world: World, shim: LiveShim) -> None:
    from shim.migrate import migrate

    world.add_file(1000)
    stop = threading.Event()
    statuses: list[int] = []

    def ask() -> None:
        process = 0
        while not stop.is_set():
            statuses.append(shim.checkout(process).status_code)
            process += 1
            time.sleep(0.005)  # or this one thread would keep a processor busy

    thread = threading.Thread(target=ask)
    for _ in range(20):
        assert shim.raw(f"workscript.ping?{GOOD}").status_code == 404  # prepared by now, on each connection
    thread.start()
    try:
        for _ in range(2):
            world.db.execute("DROP FUNCTION osgprod.alive()")  # so that there is something to renew
            assert len(migrate(world.dsn, say=lambda line: None)) == 1
        # What an upgrade may bring: another result type, which no prepared statement survives.
        world.db.execute(
            "DROP FUNCTION osgprod.heartbeat; CREATE FUNCTION osgprod.heartbeat(p_project text, p_cluster bigint,"
            " p_process bigint, p_magic text, p_client inet, p_token text, p_bytes bigint, p_cpu_s bigint,"
            " p_bearer jsonb, p_job_key text, OUT http_status int, OUT status text, OUT message text, OUT more int)"
            " LANGUAGE sql AS 'SELECT 200, $$alive$$, $$x$$, 1'; GRANT EXECUTE ON FUNCTION osgprod.heartbeat TO PUBLIC"
        )
        heartbeats = [shim.raw(f"workscript.ping?{GOOD}").status_code for _ in range(20)]
    finally:
        stop.set()
        thread.join()
    assert set(statuses) <= {200, 503}, statuses
    assert set(heartbeats) <= {200, 503} and heartbeats[-1] == 200
    assert shim.checkout(99).status_code == 200


@pytest.mark.parametrize("route", openapi.PROTOCOL)
def test_page_on_the_protocol_describes_each_parameter_of_a_request(route: str) -> None:
    page = (CHECKOUT / "docs" / "protocol.md").read_text()
    section = page.partition(f"\n## `{{root}}/{route}`")[2].partition("\n## ")[0]
    for name in openapi.PROTOCOL[route][1]:
        assert f"`{name}`" in section, f"{route}: {name}"


def test_healthz_answers_ok(shim: LiveShim) -> None:
    assert (shim.raw("healthz").status_code, shim.raw("healthz").text) == (200, "ok\n")
    assert shim.raw("nothing-here").status_code == 404


def test_blocks_of_answers_and_pieces_agree(world: World) -> None:
    world.add_file(4)
    answers = [world.checkout(n) for n in range(5)]
    assert [block for _, block in blocks_of(answers)] == [1, 2, 3, 4]


def test_shipped_template_has_all_of_the_originals_placeholders() -> None:
    text = (CHECKOUT / "worker" / "osgprod_work.bash").read_text()
    for name in ("ncpus", "cluster", "process", "nstarts", "project", "source", "started"):
        assert re.search(rf"^# {name}:$", text, re.MULTILINE)
    for name in ("input_eviofile_list", "output_filename"):
        assert re.search(rf"^#{name}=", text, re.MULTILINE)


def test_parameters_are_decoded_as_forms_are(world: World, shim: LiveShim) -> None:
    world.with_project("a+b")
    shim.add_template("a+b")
    world.add_file(1, project="a+b")
    query = urllib.parse.urlencode({"project": "a+b", "cluster": 1, "process": 0, "magic": "m"})
    assert shim.raw(f"workscript.bash?{query}").status_code == 200
    assert shim.raw("workscript.bash?project=a+b&cluster=1&process=0&magic=m").status_code == 404


@pytest.mark.parametrize(
    "target, status",
    [
        ("workscript.bash?project=p&cluster=1&process=1&magic=wrong", 403),
        ("workscript.exit?project=p&cluster=1&process=99&magic=m&exitcode=0", 404),
        ("workscript.bash?project=p&cluster=none&process=1&magic=m", 400),
        ("workscript.nothing", 404),
        ("nothing", 404),
    ],
)
def test_error_answers_are_marked_as_ours(world: World, shim: LiveShim, target: str, status: int) -> None:
    """A job retries an answer without these headers, since it may come from a front server."""
    answer = shim.raw(target)
    assert answer.status_code == status
    assert answer.headers["Osgprod-Status"] == "error"
    assert answer.headers["Osgprod-Request"]
