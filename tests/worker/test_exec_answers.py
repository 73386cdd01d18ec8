"""The exec script before a server that answers by the test's script: settings, answers that don't count, tokens."""

from __future__ import annotations

import contextlib
import gzip
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import PATIENCE_S, wait_until
from tests.worker.conftest import EXEC, Node, slow
from tests.worker.site import Site

DONE, FAILED, LATER, REFUSED, TERM = 0, 10, 30, 40, 143


@pytest.fixture
def node(folder: Path, site: Site) -> Iterator[Node]:
    """A node whose server is the site: no database, and no shim."""
    (folder / "node").mkdir()
    node = Node(folder / "node", f"{site.url}/osgprod")
    yield node
    node.end()


@pytest.mark.parametrize(
    "environment, word",
    [
        ({"OSGPROD_URL": None}, "OSGPROD_URL"),
        ({"OSGPROD_PROJECT": None}, "OSGPROD_PROJECT"),
        ({"OSGPROD_MAGIC_FILE": "/nonexistent"}, "OSGPROD_MAGIC_FILE"),
        ({"OSGPROD_URL": "host/osgprod"}, "OSGPROD_URL"),
        ({"OSGPROD_URL": "https://me:hidden@host/osgprod"}, "OSGPROD_URL contains a user"),
        ({"OSGPROD_TRIES": "three"}, "OSGPROD_TRIES is 'three': it must be a whole number from 1 to 1000"),
        ({"OSGPROD_MAX_WAIT_S": "10m"}, "OSGPROD_MAX_WAIT_S"),
        ({"OSGPROD_BACKOFF_MS": "1s"}, "OSGPROD_BACKOFF_MS"),
        ({"OSGPROD_MAX_LOG_BYTES": "10MB"}, "OSGPROD_MAX_LOG_BYTES"),
        ({"OSGPROD_CHECKPOINT_CODE": "254"}, "OSGPROD_CHECKPOINT_CODE"),
        ({"OSGPROD_CHECKPOINT_CODE": "20"}, "OSGPROD_CHECKPOINT_CODE is 20, which says something else"),
        ({"OSGPROD_JOB_KEY": "a key"}, "OSGPROD_JOB_KEY"),
        ({"OSGPROD_OUTPUT_URL": "gsiftp://host/path"}, "OSGPROD_OUTPUT_URL"),
        ({"OSGPROD_OUTPUT_URL": "relative/path"}, "OSGPROD_OUTPUT_URL"),
        ({"OSGPROD_OUTPUT_URL": "/out/\udcb0"}, "OSGPROD_OUTPUT_URL"),
        ({"OSGPROD_OUTPUT_URL": "https://host/path?signature=hidden"}, "OSGPROD_OUTPUT_URL"),
        ({"OSGPROD_OUTPUT_URL": "https://me:hidden@host:8443/path"}, "OSGPROD_OUTPUT_URL"),
    ],
)
def test_misconfigured_job_is_to_be_held(
    node: Node, site: Site, environment: dict[str, str | None], word: str
) -> None:
    code, log = node.run(1, **environment)
    assert code == REFUSED
    assert word in log
    assert "hidden" not in log
    assert site.seen == [], "no slice is taken"


@pytest.mark.parametrize("arguments", [[], ["1"], ["1", "2", "3", "4"]])
def test_wrong_arguments_are_refused(node: Node, arguments: list[str]) -> None:
    done = subprocess.run([str(EXEC), *arguments], env=node.environment, capture_output=True, text=True)
    assert done.returncode == REFUSED
    assert "usage: osgprod_exec.sh <cluster> <process>" in done.stderr


@pytest.mark.parametrize(
    "route, status",
    [
        *(("bash", 400), ("bash", 503), ("exit", 409), ("exit", 500), ("ping", 404)),
        *slow(*(("bash", status) for status in (403, 404, 409, 429, 500))),
        *slow(*(("exit", status) for status in (400, 403, 404, 429, 503))),
        *slow(*(("ping", status) for status in (400, 403, 409))),
    ],
)
def test_refusal_of_the_server_is_logged_with_its_hint(
    node: Node, site: Site, folder: Path, route: str, status: int
) -> None:
    log, go = folder / "log", folder / "go"
    site.files["/osgprod/workscript.bash"] = f"until [[ -e {go} ]]; do sleep 0.05; done".encode()
    site.headers = {"Osgprod-Status": "assigned", "Osgprod-Heartbeat": "1" if route == "ping" else "0"}
    site.faults = [*([] if route == "bash" else [None]), *[status] * 9]
    if route != "ping":
        go.touch()
    with log.open("w") as output:
        job = subprocess.Popen(
            [EXEC, "7", "1"], cwd=node.folder, env=node.environment, stdout=output, stderr=output
        )
    what = {"bash": "", "exit": "", "ping": "heartbeat refused with "}[route]
    try:
        refused = rf"{what}status {status}\b.*: osgprod error: the site says no; hint: ask the site\n"
        wait_until(lambda: re.search(refused, log.read_text()) is not None, "the refusal is logged")
    finally:
        go.touch()
        job.wait(PATIENCE_S)


def test_retry_after_is_honoured(node: Node, site: Site) -> None:
    site.files["/osgprod/workscript.bash"] = b"#!/bin/bash\necho nothing\n"
    site.headers = {"Osgprod-Status": "no-work", "Retry-After": "1"}
    site.faults = [503, 429]
    started = time.monotonic()
    code, log = node.run(1)
    assert (code, "the site says no" in log) == (DONE, True)
    assert time.monotonic() - started >= 2


def test_job_that_asks_again_logs_when_and_why(node: Node, site: Site) -> None:
    site.files["/osgprod/workscript.bash"] = (
        b"#!/bin/bash\nprintf '%s\\n' 'osgprod: wait: all work is leased'\n"
    )
    site.headers = {"Osgprod-Status": "wait", "Retry-After": "1"}
    site.faults = [429]
    code, log = node.run(1, OSGPROD_MAX_WAIT_S="1")
    assert code == LATER, log
    assert re.search(
        r"failed \(attempt 1 of \d+, status 429, asks again in 1 s\): osgprod error: the site says no;", log
    ), log
    assert "no work can be assigned yet, asks again in 1 s: 'osgprod: wait: all work is leased'\n" in log


def test_script_that_is_cut_short_does_not_run(node: Node, site: Site) -> None:
    site.files["/osgprod/workscript.bash"] = b"#!/bin/bash\ntouch ran\n" + b"#" * 100
    site.headers = {"Osgprod-Status": "assigned", "Osgprod-Heartbeat": "0"}
    site.faults = ["close"] * 3
    assert node.run(1)[0] == LATER
    assert list(node.folder.iterdir()) == []


def test_script_that_a_proxy_has_compressed_does_not_run_and_blames_neither_data_nor_node(
    node: Node, site: Site
) -> None:
    site.files["/osgprod/workscript.bash"] = gzip.compress(b"#!/bin/bash\ntouch ran\n")
    site.headers = {"Osgprod-Status": "assigned", "Content-Encoding": "gzip"}
    code, log = node.run(1)
    assert (code, list(node.folder.iterdir())) == (LATER, []), log
    assert "a proxy on the way has encoded it: gzip" in log
    assert not any(seen.path.endswith("workscript.exit") for seen in site.seen)


@pytest.mark.parametrize("status, code", [(404, FAILED), (403, REFUSED), *slow((400, REFUSED))])
def test_delivered_output_stays_when_the_server_gives_no_verdict(
    node: Node, site: Site, status: int, code: int
) -> None:
    site.files["/osgprod/workscript.bash"] = b"#!/bin/bash\n"
    site.headers = {"Osgprod-Status": "assigned", "Osgprod-Slice": "a.evio+1,2"}
    site.faults = [None, None, status]  # of the request for work, the upload, the report
    done, log = node.run(1, OSGPROD_OUTPUT_URL=f"{site.url}/out")
    assert done == code, log
    assert [path for path in site.files if path.startswith("/out")] == ["/out/job_7_1.tar.gz"]
    assert f"the outputs stay: {site.url}/out/job_7_1.tar.gz" in log
    assert (node.folder / "unreported_job_7_1.p.tar.gz").read_bytes() == site.files["/out/job_7_1.tar.gz"]
    assert site.seen[-1].path == "/osgprod/workscript.exit"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Osgprod-Status": "assigned"},
        {"Osgprod-Request": "1-1"},
        {"Osgprod-Request": "1-1", "Osgprod-Status": "done"},
        *slow({"Osgprod-Request": "1-1", "Osgprod-Status": "assign"}),
    ],
)
def test_body_of_an_answer_that_is_not_assigned_is_never_run(
    node: Node, site: Site, headers: dict[str, str]
) -> None:
    """A portal's login page, for instance, or an answer to another question."""
    ran = node.folder.parent / "ran"
    site.files["/osgprod/workscript.bash"] = f"#!/bin/bash\ntouch {ran}\n".encode()
    site.headers, site.is_osgprod = headers, False
    code, log = node.run(1)
    assert code == LATER, log
    assert log.count("no whole answer of osgprod: is OSGPROD_URL right?") >= 3
    assert not ran.exists()


@pytest.mark.parametrize("status", ["completed", "no-work", "wait"])
def test_what_the_server_says_is_read_and_not_run(node: Node, site: Site, status: str) -> None:
    ran = node.folder.parent / "ran"
    site.files["/osgprod/workscript.bash"] = (
        f"#!/bin/bash\nprintf '%s\\n' 'osgprod: nothing today'\ntouch {ran}\n".encode()
    )
    site.headers = {"Osgprod-Status": status}
    (node.folder / "job_7_1.tar.gz").touch()  # of a job that has completed its work
    code, log = node.run(1)
    assert code == DONE, log
    assert "osgprod: nothing today" in log
    assert not ran.exists()


def test_server_that_is_away_means_later(node: Node) -> None:
    code, log = node.run(1, OSGPROD_URL="http://127.0.0.1:9/osgprod")
    assert code == LATER
    assert log.count("workscript.bash failed (attempt") == 3


# --- bearer tokens -------------------------------------------------------------------------------------------


@pytest.fixture
def tokens(folder: Path) -> Iterator[dict[str, str]]:
    """Places where a token may be, each with its own; /tmp/bt_uUID is not touched."""
    uid = os.getuid()
    for place, name in (("run", f"bt_u{uid}"), ("creds", "scitokens.use"), ("named", "file")):
        (folder / place).mkdir()
        (folder / place / name).write_text(f" {place}.token \n")
    yield {
        "BEARER_TOKEN": "env.token\n",
        "BEARER_TOKEN_FILE": str(folder / "named" / "file"),
        "_CONDOR_CREDS": str(folder / "creds"),
        "XDG_RUNTIME_DIR": str(folder / "run"),
    }


@pytest.mark.parametrize("place", ["BEARER_TOKEN", "BEARER_TOKEN_FILE", "_CONDOR_CREDS", "XDG_RUNTIME_DIR"])
def test_token_is_found_where_wlcg_tools_look_for_it(
    node: Node, site: Site, tokens: dict[str, str], place: str
) -> None:
    places = list(tokens)
    here = {name: tokens[name] for name in places[places.index(place) :]}
    site.faults = [403]
    assert node.run(1, OSGPROD_MAGIC=None, **here)[0] == REFUSED
    expected = {"BEARER_TOKEN": "env", "BEARER_TOKEN_FILE": "named", "_CONDOR_CREDS": "creds"}.get(
        place, "run"
    )
    assert site.seen[0].headers["authorization"] == f"Bearer {expected}.token"
    assert b"magic" not in site.seen[0].body


def test_token_that_is_renewed_in_mid_work_is_the_one_that_is_sent(
    node: Node, site: Site, tokens: dict[str, str]
) -> None:
    file = tokens["BEARER_TOKEN_FILE"]
    site.files["/osgprod/workscript.bash"] = f"#!/bin/bash\nprintf renewed >{file}\n".encode()
    site.headers = {"Osgprod-Status": "assigned", "Osgprod-Slice": "a.evio+1,2", "Osgprod-Token": "t"}
    node.run(1, OSGPROD_MAGIC=None, BEARER_TOKEN_FILE=file)
    assert [seen.headers["authorization"] for seen in site.seen] == ["Bearer named.token", "Bearer renewed"]
    assert site.seen[1].path == "/osgprod/workscript.exit"


def test_magic_goes_before_a_token(node: Node, site: Site, tokens: dict[str, str]) -> None:
    site.faults = [403]
    node.run(1, **tokens)
    assert "authorization" not in site.seen[0].headers
    assert b"magic=m" in site.seen[0].body


# --- signals -------------------------------------------------------------------------------------------------


def serves(site: Site, script: str) -> None:
    """The site assigns this work script to each job."""
    site.files["/osgprod/workscript.bash"] = script.encode()
    site.headers = {"Osgprod-Status": "assigned", "Osgprod-Token": "a.token", "Osgprod-Slice": "a.evio+1,2"}


def reports(site: Site) -> list[bytes]:
    return [seen.body for seen in site.seen if seen.path.endswith("workscript.exit")]


def test_job_that_any_signal_asks_to_end_blames_nobody_and_is_not_done(
    node: Node, site: Site, folder: Path
) -> None:
    """As batch systems send them. bash itself would end some of them like a script that has come to its end."""
    serves(site, f"mktemp {folder}/at.XXXXXX >/dev/null; sleep 1000")
    names = ("TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "ALRM", "XCPU")
    signals = [signal.Signals[f"SIG{name}"] for name in names]
    jobs = [node.start(n) for n in range(len(signals))]
    wait_until(lambda: len(list(folder.glob("at.*"))) == len(jobs), "all are at work")
    for job, number in zip(jobs, signals, strict=True):
        job.send_signal(number)
    logs = [job.communicate(timeout=PATIENCE_S)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [TERM] * len(jobs), logs
    assert all(f"{number.name}: " in log for number, log in zip(signals, logs, strict=True))
    assert reports(site) == []
    assert list(node.folder.iterdir()) == []


@pytest.mark.parametrize("program, code", [("mkdir", TERM), ("find", DONE)])
def test_signal_at_the_begin_and_the_end_of_a_job_is_no_node_fault(
    node: Node, site: Site, folder: Path, program: str, code: int
) -> None:
    """While it makes its folder; and while it removes that, when its outcome is fixed."""
    serves(site, "true")
    (folder / "bin").mkdir()
    at, go = folder / "at", folder / "go"
    wait = f"touch {at}; for n in {{1..600}}; do [[ ! -e {go} ]] || break; sleep 0.1; done"
    node.program(
        f"bin/{program}",
        f'case "$*" in *osgprod.????????????" -xdev -delete"|"-m 700 "*osgprod.????????????) {wait} ;; esac\n'
        f'PATH=/usr/bin:/bin {program} "$@"',
    )
    job = node.start(1, PATH=f"{folder}/bin:/usr/bin:/bin")
    wait_until(at.exists, f"{program} runs")
    job.send_signal(signal.SIGTERM)
    go.touch()
    log, _ = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == code, log
    assert [path.name for path in node.folder.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("jobs", [10, *slow(30)])
def test_job_that_is_signalled_at_any_moment_tells_its_true_outcome_or_none(
    node: Node, site: Site, jobs: int
) -> None:
    """The job alone, or with all that it has started."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    serves(site, "echo 1 >out; sleep 0.1")
    moments = {}
    for process in range(jobs):
        job = node.start(process, OSGPROD_OUTPUT_URL=f"{site.url}/out")
        moments[job] = time.monotonic() + 2.5 * chance.random()
    for job, moment in sorted(moments.items(), key=lambda item: item[1]):
        time.sleep(max(0.0, moment - time.monotonic()))
        with contextlib.suppress(ProcessLookupError):
            chance.choice([os.kill, os.killpg])(job.pid, signal.SIGTERM)
    logs = {job.communicate(timeout=PATIENCE_S)[0]: job.returncode for job in moments}
    assert {*logs.values()} <= {DONE, TERM, -signal.SIGTERM}, (
        logs
    )  # the last one: before bash has read its traps
    assert all(b"exitcode=0" in report for report in reports(site)), logs
    assert [path.name for path in node.folder.iterdir() if path.is_dir()] == [], logs
