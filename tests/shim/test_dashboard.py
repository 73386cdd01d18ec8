"""The dashboard over real HTTP: who sees it, what it shows, and that nothing a job says can do harm there."""

from __future__ import annotations

import contextlib
import html
import itertools
import json
import re
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import httpx
import pytest

from shim.cli import osgprod as cli
from shim.config import SettingError, Settings
from shim.dashboard import charts, formats
from shim.dashboard.reader import Reader
from shim.database import call
from shim.snapshot import SQL_FOLDER
from shim.version import OURS
from shim.web.guard import Guard
from shim.web.metrics import Metrics
from tests import production
from tests.support import PATIENCE_S, TOKEN, LiveShim, Run, World, wait_until

HOSTILE = """<script>alert(1)</script>"'&{{7*7}}"""
MakeShim = Callable[..., LiveShim]


@pytest.fixture
def shim_with(world: World, folder: Path) -> Iterator[MakeShim]:
    """Starts a shim with settings; it is stopped at the end."""
    started: list[LiveShim] = []

    def start(**environment: str) -> LiveShim:
        live = LiveShim(world.dsn, folder / "www", **environment)
        live.__enter__()
        started.append(live)
        return live

    yield start
    for live in started:
        live.__exit__(None, None, None)


@pytest.fixture
def busy(world: World) -> World:
    world.set(max_failures=1)
    for run, seqno in ((1, 0), (1, 1), (2, 0)):
        world.add_file(4, run=run, seqno=seqno)
    for process, code in enumerate((0, 0, 9, 137)):
        world.checkout(process, host=f"wn{process}", site="A")
        world.report(process, code, reason="bank 3" if code else None)
    world.checkout(4, host="wn4", site="B")
    return world


PAGES = ["", "project/p", "project/p?hours=2", "project/p/files", "project/p/files?run=1&state=open",
         "project/p/file/1", "project/p/job/1.2", "project/p/job/1.4", "project/p/attempts",
         "project/p/attempts?exit_code=9&hours=168",
         "find", "find?text=wn1", "project/p/site/A", "project/p/jobs", "project/p/jobs?cluster=1",
         "project/p/live", "project/p/quarantine", "project/p/workers", "project/p/workers?hours=24"]  # fmt: skip


def test_pages_are_shown_with_a_policy_that_lets_nothing_foreign_in(busy: World, shim_with: MakeShim) -> None:
    shim = shim_with()
    for page in PAGES:
        answer = shim.raw(page)
        assert answer.status_code == 200, (page, answer.text)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        for inline in ("<style", " style=", " onclick="):
            assert inline not in answer.text, page
        assert re.findall(r"<script(?! src=\"/osgprod/static/dashboard\.js\" defer)", answer.text) == []
        for target in re.findall(r'(?:href|src|action)="([^"]*)"', answer.text):
            assert target.startswith(("/osgprod/", "#")), target


def test_static_files_are_those_of_the_dashboard_and_no_others(shim_with: MakeShim) -> None:
    shim = shim_with()
    for name, kind in (
        ("dashboard.css", "text/css"),
        ("dashboard.js", "javascript"),
        ("icon.svg", "image/svg"),
    ):
        answer = shim.raw(f"static/{name}")
        assert (answer.status_code, kind in answer.headers["content-type"]) == (200, True)
        assert (
            answer.headers["cache-control"] == "max-age=300" and "content-security-policy" in answer.headers
        )
        again = shim.raw(f"static/{name}", headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304
    for name in ("x", "", "%2e%2e/routes.py", "..%2froutes.py", "%2fetc/passwd"):
        assert shim.raw(f"static/{name}").status_code == 404, name


def test_links_of_all_pages_lead_somewhere(busy: World, shim_with: MakeShim) -> None:
    shim = shim_with()
    seen, waiting = set(), ["/osgprod/"]
    while waiting:
        target = waiting.pop()
        seen.add(target)
        answer = shim.client.get(f"http://127.0.0.1:{shim.port}{target}")
        assert answer.status_code == 200, target
        if answer.headers["content-type"].startswith("text/html"):
            for link in re.findall(r'(?:href|src)="([^"#]+)"', answer.text):
                link = html.unescape(link)
                if link not in seen and link not in waiting and "hours=" not in link:
                    waiting.append(link)
    assert {"/osgprod/project/p/job/1.2", "/osgprod/project/p/file/1", "/osgprod/metrics"} <= seen
    assert len(seen) > 20


def test_jobs_of_a_file_that_was_forgotten_stay_in_the_history(
    world: World, shim_with: MakeShim, run: Callable[..., Any]
) -> None:
    path = world.add_file(1)
    world.checkout(7, cluster=4711)
    world.report(7, 1, cluster=4711)
    call(world.db, "unload_slices", project="p", path=path)
    call(world.db, "forget_rawdata", path=path)
    call(world.db, "register_rawdata", **world.registered)
    call(world.db, "load_slices", project="p")
    (job,) = json.loads(run("jobs", "list", "p", "--json").stdout)
    assert (job["process"], job["path"], job["state"]) == (7, None, "failed")
    assert json.loads(run("jobs", "p", "4711.7", "--json").stdout)[0]["outcome"] == "failed"
    assert run("jobs", "p", "4711.7").exit_code == 0
    shim = shim_with()
    for page in ("project/p/jobs", "project/p/job/4711.7"):
        answer = shim.raw(page)
        assert (answer.status_code, "a forgotten file" in answer.text) == (200, True), page
    assert call(world.db, "verify", project="p", deep=True) == []


def test_page_of_a_project_that_merges_shows_the_files_by_stage(busy: World, shim_with: MakeShim) -> None:
    busy.with_project("other")
    busy.set(merge_by="file")
    busy.add_file(1, run=3)
    shim = shim_with()
    page = re.sub("<[^>]*>", "", shim.raw("project/p").text)
    assert "4 files in slices, 0 waiting for their merge, 0 of 4 delivered" in " ".join(page.split())
    assert "Delivery" not in shim.raw("project/other").text


def test_pages_of_a_file_and_of_a_job_show_what_was_delivered(world: World, shim_with: MakeShim) -> None:
    world.set(merge_by="file")
    world.add_file(1)
    world.checkout(1)
    world.report(
        1, output_url="https://user:secret@s/1.tgz?token=secret", output_bytes=5, output_adler32="1a"
    )
    shim = shim_with()
    page = shim.raw("project/p/file/1").text
    assert "https://s/1.tgz" in page and "0000001a" in page and "secret" not in page
    world.tick()
    assert world.checkout(2)["task"] == "merge"
    for page in ("project/p/jobs", "project/p/live", "project/p/job/1.2"):
        text = re.sub(r"<[^>]*>|\s", "", shim.raw(page).text)
        assert "000001_001merge" in text or "merge000001_001" in text, page
        assert "silent" not in text, page
    listed = [{"kind": "hd_root", "url": "https://s/hd_root.root", "bytes": 7, "adler32": "2b"}]
    world.report(2, outputs_list=json.dumps(listed))
    shim = shim_with()  # its pages are not kept from before
    for page in ("project/p/file/1", "project/p/job/1.2"):
        text = shim.raw(page).text
        assert "https://s/hd_root.root" in text and "0000002b" in text and "merge 000001_001" in text, page
    assert "in merge 000001_001" in shim.raw("project/p/job/1.1").text


def test_job_that_got_its_slice_back_after_a_verdict_is_live_on_each_page(
    world: World, shim_with: MakeShim
) -> None:
    world.add_file(1)
    token = str(world.checkout(0)["token"])
    world.lose_leases()
    assert world.heartbeat(0, token=token)["status"] == "alive"
    (listed,) = call(world.db, "list_jobs", project="p")
    shim = shim_with()
    for page in ("project/p/jobs", "project/p/job/1.0"):
        assert re.findall(r'class="state s-([\w-]+)', shim.raw(page).text) == [listed["state"]] == ["live"], (
            page
        )


def test_numbers_on_the_pages_are_the_database_s(busy: World, shim_with: MakeShim) -> None:
    page = shim_with().raw("project/p").text
    progress = busy.progress()
    legend = re.findall(r'<div class="(\w+)"><dt>.*?<data value="(\d+)">([\d,]+)</data>', page, re.DOTALL)[:5]
    assert {name: int(value) for name, value, _ in legend} == {
        name: progress[f"blocks_{name}"] for name in ("done", "leased", "ready", "quarantined", "unallocated")
    }
    assert f"{call(busy.db, 'quarantined', project='p')[0]['path'].rpartition('/')[2]}" in page


def test_nothing_that_a_job_says_becomes_part_of_a_page(world: World, shim_with: MakeShim) -> None:
    world.set(max_failures=1)
    world.add_file(2)
    world.checkout(0, host=HOSTILE, site=HOSTILE)
    world.report(0, 9, reason=HOSTILE, output_url="javascript:alert(1)", host=HOSTILE, site=HOSTILE)
    world.checkout(1, host=HOSTILE, site=HOSTILE)
    shim = shim_with()
    for page in ("project/p", "project/p/job/1.0", "project/p/attempts", "project/p/live", "project/p/quarantine",
                 "project/p/workers", "project/p/attempts?worker=%3Cscript%3E&site=%22%3E"):  # fmt: skip
        text = shim.raw(page).text
        assert (
            "<script>" not in text
            and 'href="javascript' not in text
            and "{{" not in text.replace(html.escape(HOSTILE), "").replace("{{7*7}}", "")
        ), page
        assert "alert(1)" in text or "worker=" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shim.raw("project/p").text


def test_without_settings_only_this_machine_sees_it_and_no_proxy_s_clients(
    world: World, shim_with: MakeShim
) -> None:
    shim = shim_with()
    assert shim.raw("").status_code == 200
    for header in ("X-Forwarded-For", "Via", "Forwarded", "X-Real-IP"):
        for page in ("", "project/p", "metrics"):
            answer = shim.raw(page, headers={header: "127.0.0.1"})
            assert answer.status_code == 403, (header, page)
            assert "spring" not in answer.text and "p-done" not in answer.text
    assert "OSGPROD_DASHBOARD_ALLOW" in shim.raw("", headers={"Via": "1.1 x"}).text


def test_client_of_a_trusted_proxy_is_who_counts(world: World, shim_with: MakeShim) -> None:
    shim = shim_with(OSGPROD_TRUSTED_PROXIES="127.0.0.1", OSGPROD_DASHBOARD_ALLOW="10.9.0.0/16 2001:db8::/32")
    for client, status in (("10.9.1.1", 200), ("10.8.1.1", 403), ("127.0.0.1", 403), ("2001:db8::5", 200)):
        assert shim.raw("", headers={"X-Forwarded-For": client}).status_code == status, client
    assert shim.raw("").status_code == 403, "the proxy itself is not in the list"


def test_token_opens_it_by_form_or_header_and_is_nowhere_to_be_read(
    world: World, shim_with: MakeShim, caplog: pytest.LogCaptureFixture
) -> None:
    shim = shim_with(OSGPROD_DASHBOARD_TOKEN=TOKEN)
    answer = shim.raw("project/p")
    assert answer.status_code == 403 and 'type="password"' in answer.text
    assert shim.raw("metrics").status_code == 403
    with caplog.at_level("INFO"):
        wrong = shim.raw("login", method="POST", data={"token": "a wrong token......"})
        assert wrong.status_code == 403 and "Wrong token." in wrong.text and "set-cookie" not in wrong.headers
        right = shim.raw("login", method="POST", data={"token": TOKEN})
    assert right.status_code == 303 and right.headers["location"] == "/osgprod/"
    cookie = right.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "path=/osgprod" in cookie
    assert TOKEN not in cookie and TOKEN not in caplog.text and "wrong" not in caplog.text
    assert shim.client.get(f"{shim.url}/project/p").status_code == 200, "the client has kept the cookie"
    shim.client.cookies.clear()
    assert shim.raw("", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert shim.raw("metrics", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    for header in (f"Bearer {TOKEN}x", "Bearer", f"Basic {TOKEN}", "Bearer é"):
        assert shim.raw("", headers={"Authorization": header.encode()}).status_code == 403
    for value in ("", "0" * 64, TOKEN):
        assert shim.raw("", headers={"Cookie": f"osgprod_dashboard={value}"}).status_code == 403
    secure = shim.raw("login", method="POST", data={"token": TOKEN}, headers={"X-Forwarded-Proto": "https"})
    assert "; secure" in secure.headers["set-cookie"].lower()


@pytest.mark.parametrize(
    ("setting", "value"),
    [("OSGPROD_DASHBOARD_TOKEN", "short"), ("OSGPROD_DASHBOARD_ALLOW", "10.0.0.0/8, here"),
     ("OSGPROD_DASHBOARD_ALLOW", "10.0.0.1/8")],
)  # fmt: skip
def test_senseless_setting_ends_the_start_in_one_line(setting: str, value: str) -> None:
    with pytest.raises(SettingError, match=setting):
        Guard(Settings.read({setting: value}))


def test_what_is_not_there_is_a_page_that_says_so(world: World, shim_with: MakeShim) -> None:
    shim = shim_with()
    for page in ("project/nope", "project/nope/files", "project/nope/jobs", "project/nope/site/A", "project/p/file/99",
                 "project/p/job/1.99", "project/p/site/nowhere", "project/p%2f..", "project/p%00"):  # fmt: skip
        answer = shim.raw(page)
        assert answer.status_code == 404, page
        assert "Traceback" not in answer.text and (
            "All productions" in answer.text or page == "project/p%2f.."
        )


def test_a_path_that_leads_nowhere_is_no_fault_of_the_server(world: World, shim_with: MakeShim) -> None:
    shim = shim_with()
    digits = "9" * 5000
    paths = [f"project/p/file/{'9' * 18}", f"project/p/job/{'9' * 18}.1", f"project/p/job/1.{'9' * 18}",
             f"project/p/file/{digits}", f"project/p/job/{digits}.1", f"project/p/job/1.{digits}",
             "static/%00", "static/%ff", "static/" + "a" * 5000, "static/a%2fb/../c", "api/%00", "project/p/site/%ff",
             "project/%ff", f"project/{digits}", f"project/p?hours={digits}", f"project/p/files?run={digits}",
             f"project/p/jobs?cluster={digits}", f"api/list_jobs?project=p&limit={digits}"]  # fmt: skip
    assert [path for path in paths if shim.raw(path).status_code >= 500] == []


def test_query_without_sense_is_refused_by_name_where_other_rows_would_be_shown(
    busy: World, shim_with: MakeShim
) -> None:
    shim = shim_with()
    for page in ("project/p?hours=x", "project/p?hours=99999999999", "project/p/files?run=&last_run=",
                 "project/p/attempts?exit_code=", "project/p/files?run=1&last_run=999999999"):  # fmt: skip
        assert shim.raw(page).status_code == 200, page
    for page, named in (
        ("attempts?outcome=x", "an outcome is"), ("files?state=%00x", "parameter state has a NUL byte"),
        ("attempts?exit_code=x", "parameter exit_code must be a number"), ("files?run=-1", "parameter run "),
        ("files?run=1&last_run=x", "parameter last_run "), ("jobs?cluster=2147483648", "parameter cluster "),
        ("attempts?worker=%00", "parameter worker has a NUL byte"),
    ):  # fmt: skip
        answer = shim.raw(f"project/p/{page}")
        assert answer.status_code == 400 and named in answer.text, page


def test_number_that_no_file_or_job_can_have_is_not_found(busy: World, shim_with: MakeShim) -> None:
    shim = shim_with()
    for page in ("file/2147483648", f"file/{'9' * 18}", "job/1.2147483648", "job/99999999999.0"):
        answer = shim.raw(f"project/p/{page}")
        assert answer.status_code == 404 and "project p has no such" in answer.text, page


def test_database_away_is_a_page_that_says_so_and_metrics_that_say_so(folder: Path, impatient: None) -> None:
    with LiveShim("host=/nonexistent connect_timeout=1", folder / "www") as shim:
        answer = shim.raw("")
    assert answer.status_code == 503 and "Not possible now" in answer.text
    assert b"osgprod_database_up 0.0" in Metrics(None).text(None)


def test_page_and_command_name_the_release_that_calls_a_column_otherwise(
    run: Run, world: World, shim_with: MakeShim
) -> None:
    shim = shim_with()
    world.db.execute("DROP FUNCTION osgprod.find")
    world.db.execute(
        "CREATE FUNCTION osgprod.find(p_text text, p_limit int DEFAULT 100) RETURNS TABLE (kind text, project text,"
        " name text, found text, command text) LANGUAGE sql AS $$ SELECT 'worker', 'p', p_text, 'x', 'osgprod' $$"
    )
    world.db.execute("INSERT INTO osgprod_data._yoyo_migration VALUES (repeat('f', 64), '9999-next', now())")
    older = f"this program ({OURS[-1]}) is older than the database (9999-next): update it and start it again"
    answer = shim.raw("find?text=wn1")
    assert answer.status_code == 503 and older in answer.text
    result = run("workers", "unban", "p", "wn1")
    assert result.stderr == f"osgprod: the database has no column 'banned_until'\nhint: {older}\n"
    world.db.execute("DROP FUNCTION osgprod.find")
    assert run("find", "wn1").stderr.endswith(f"\nhint: {older}\n")


def test_dashboard_needs_no_right_that_the_shim_has_not(busy: World, shim_with: MakeShim) -> None:
    """LiveShim logs in as osgprod_worker, which may change no table; and a page changes nothing by functions either."""
    counted = (
        "SELECT (SELECT count(*) FROM osgprod_data.attempts) AS attempts,"
        " (SELECT count(*) FROM osgprod_data.reports) AS reports"
    )
    before = busy.db.execute(counted).fetchone(), busy.progress()
    assert shim_with().raw("project/p").status_code == 200
    assert (busy.db.execute(counted).fetchone(), busy.progress()) == before


def rows(cells: list[str]) -> list[dict[str, object]]:
    return [
        {"first_run": n, "last_run": n, "files": len(c), "files_finished": c.count("#"), "blocks": 10 * len(c),
         "blocks_done": 0, "files_a_cell": 1, "cells": c}
        for n, c in enumerate(cells)
    ]  # fmt: skip


def test_map_of_100_000_files_is_small_and_loses_no_cell() -> None:
    drawn = charts.file_map(rows(["#" * 300] * 200 + ["#" * 120 + "q3." + "0" * 177] + ["0" * 300] * 133))
    assert drawn["files"] == 100_200
    assert sum(len(path) for _, path in drawn["paths"]) < 20_000
    drawn_cells = {kind: sum(int(n) for n in re.findall(r"h(\d+)v", path)) for kind, path in drawn["paths"]}
    assert drawn_cells == {"all": 60_120, "q": 1, "3": 1, "0": 177 + 133 * 300}
    labels = [line["label_y"] for line in drawn["lines"] if line["is_labelled"]]
    assert all(b - a >= charts.LABEL_PX for a, b in itertools.pairwise(labels))


@pytest.mark.parametrize("largest", [0, 0.3, 1, 7, 99, 100, 101, 4321, 1e7])
def test_axis_of_the_plot_ends_above_the_largest_value_in_few_round_steps(largest: float) -> None:
    top, step = charts._nice(largest)
    assert top >= largest and 1 <= round(top / step) <= 5
    assert float(f"{step:.0e}") == step, "one digit"


def test_bar_shows_one_quarantined_block_of_millions_and_fills_its_width() -> None:
    row = {"blocks": 10**7, "blocks_done": 10**7 - 2, "blocks_leased": 1, "blocks_ready": 0, "blocks_quarantined": 1,
           "blocks_unallocated": 0}  # fmt: skip
    parts = {part["name"]: part for part in charts.bar(row)}
    assert set(parts) == {"done", "leased", "quarantined"}
    assert parts["quarantined"]["width"] > 0.3
    assert abs(sum(part["width"] for part in parts.values()) - 100) < 0.01


@pytest.mark.slow
def test_page_costs_hardly_more_when_a_hundred_times_as_many_slices_are_done(
    world: World, shim_with: MakeShim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished files are rows, and only files in flight are counted. 288 and 28,800 slices; docs/performance.md has
    the times with ten million."""
    monkeypatch.setattr("shim.dashboard.reader.KEPT_S", 0.0)
    for name, blocks in (("small", 4), ("large", 400)):
        world.with_project(name)
        production.fill(world.db, name, runs=5, files=20, blocks=blocks, a_slice=1, finished=0.97, in_flight=0,
                        attempts=50)  # fmt: skip
        world.db.execute("UPDATE osgprod_data.rawdata SET path = '/' || rawdata_id")
    slices = {
        name: len(call(world.db, "list_slices", project=name, limit=100_000)) for name in ("small", "large")
    }
    assert slices["large"] == 100 * slices["small"] >= 25_000
    shim = shim_with()

    times: dict[str, list[float]] = {"small": [], "large": []}

    def costs_about_the_same() -> bool:
        for name in list(times) * 3:  # in turn: what else the machine does hits both
            started = time.perf_counter()
            assert shim.raw(f"project/{name}").status_code == 200
            times[name].append(time.perf_counter() - started)
        return len(times["small"]) >= 6 and min(times["large"]) < 2.5 * min(times["small"])

    # On a busy machine it takes many before one of each is not held up.
    wait_until(costs_about_the_same, "a page of many slices costs about as much", seen=lambda: times)
    world.db.execute("DELETE FROM osgprod_data.slices")  # their history is cut short
    world.db.execute("DELETE FROM osgprod_data.reports")
    world.db.execute("DELETE FROM osgprod_data.loaded_files")


def test_page_that_takes_too_long_for_the_database_is_given_up(
    busy: World, shim_with: MakeShim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shim.dashboard.reader.LONGEST_QUERY", "30ms")
    shim = shim_with()
    with busy.db.transaction():
        busy.db.execute("LOCK osgprod_data.loaded_files IN ACCESS EXCLUSIVE MODE")
        answer = shim.raw("project/p")
    assert answer.status_code == 503 and "Not possible now" in answer.text
    monkeypatch.setattr(
        "shim.dashboard.reader.LONGEST_QUERY", "60s"
    )  # 30 ms are not enough on a busy machine
    assert shim.raw("project/p").status_code == 200, "and the next one is not held up by it"


def test_sixty_screens_cost_the_database_as_much_as_one(
    busy: World, shim_with: MakeShim, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    ask = Reader._ask
    monkeypatch.setattr(Reader, "_ask", lambda self, *arguments: asked.append(1) or ask(self, *arguments))
    monkeypatch.setattr("shim.dashboard.reader.KEPT_S", 60.0)
    shim = shim_with()
    with ThreadPoolExecutor(20) as screens:
        answers = list(screens.map(lambda n: shim.raw("project/p"), range(60)))
    assert {answer.status_code for answer in answers} == {200}
    assert len(asked) == 1


def test_jobs_are_answered_while_a_page_is_drawn(
    busy: World, shim_with: MakeShim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page is drawn until a job has been answered: on the event loop that would be for ever."""
    begun, answered = threading.Event(), threading.Event()
    number = formats.number

    def slow(*arguments: Any) -> str:
        begun.set()
        assert answered.wait(PATIENCE_S), "no job was answered while the page was drawn"
        return number(*arguments)

    monkeypatch.setattr(formats, "number", slow)
    shim = shim_with()
    shim.add_template("p")
    with ThreadPoolExecutor(1) as screen:
        page = screen.submit(httpx.get, f"{shim.url}/project/p", timeout=PATIENCE_S, verify=False)
        assert begun.wait(PATIENCE_S)
        assert shim.checkout(5).headers["Osgprod-Status"] == "assigned"
        answered.set()
        assert page.result().status_code == 200


@pytest.mark.slow
@pytest.mark.history_by_hand
def test_pages_stay_small_with_50_000_sites_workers_and_quarantined_blocks(
    world: World, shim_with: MakeShim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job names its site and host as it likes. These 50,000 made a page of 29 MB, and jobs wait for 8 s."""
    monkeypatch.setattr("shim.dashboard.reader.LONGEST_QUERY", "60s")
    world.add_file(50_000)
    world.db.execute(
        "INSERT INTO osgprod_data.reports (project_id, cluster, process, nstart, by_worker, outcome, exit_code,"
        " reported_at, ran_s, nblocks, worker, site) SELECT p.project_id, 9, n, 1, true, 'failed', n % 256, now(), 5,"
        " 1, 'wn' || n, 'SITE-WITH-A-LONG-NAME-' || n FROM osgprod_data.projects p, generate_series(1, 50000) n"
    )
    world.db.execute(
        "INSERT INTO osgprod_data.slices (project_id, rawdata_id, block1, block2, follows, run, seqno, state, is_ready,"
        " opened_at, cluster, process, nstart) SELECT f.project_id, f.rawdata_id, n, n + 1, nullif(n, 1), f.run,"
        " f.seqno, 'quarantined', false, now(), 9, n, 1 FROM osgprod_data.loaded_files f, generate_series(1, 50000) n"
    )
    world.db.execute("UPDATE osgprod_data.loaded_files SET state = 'allocated'")
    world.db.execute(
        "INSERT INTO osgprod_data.worker_bans (project_id, worker, until, reason) SELECT p.project_id, 'wn' || n,"
        " now() + interval '1 h', 'black hole' FROM osgprod_data.projects p, generate_series(1, 50000) n"
    )
    world.db.execute("ANALYZE")
    shim = shim_with()
    for page in PAGES:
        if "job/" not in page:
            page = page.replace("site/A", "site/SITE-WITH-A-LONG-NAME-1")
            answer = shim.raw(page)
            assert (answer.status_code, page) == (200, page)
            assert len(answer.content) < 1_000_000, (page, len(answer.content))
    assert "SITE-WITH-A-LONG-NAME-1<" in shim.raw("project/p").text
    call(world.db, "tick")


def headings(page: str) -> list[str]:
    return [html.unescape(text) for text in re.findall(r"<h2[^>]*><a [^>]*>([^<]*)</a>", page)]


def test_projects_are_ordered_by_trouble_and_idle_ones_folded(busy: World, shim_with: MakeShim) -> None:
    busy.attempts_pass(5 * 3600)  # nothing of p was done of late
    busy.db.execute("UPDATE osgprod_data.loaded_files SET loaded_at = loaded_at - interval '5 h'")
    for name in ("a-done", "b-busy", "c-empty", "d-paused"):
        busy.with_project(name)
    busy.set("d-paused", state="paused")
    busy.add_file(4, run=7, project=None)
    for name in ("a-done", "b-busy"):
        call(busy.db, "load_slices", project=name, runs=[7])
    for process in range(6):
        if busy.checkout(process, project="a-done")["status"] == "assigned":
            busy.report(process, project="a-done")
    levels = {row["project"]: row["level"] for row in reversed(call(busy.db, "health"))}
    assert levels["p"] == "bad" and levels["b-busy"] == "attention"
    page = shim_with().raw("").text
    assert headings(page) == ["p", "b-busy"]
    folded = page.partition("<details")[2]
    assert all(f">{name}</a>" in folded for name in ("a-done", "c-empty", "d-paused"))


def test_search_finds_what_the_command_line_finds_and_links_it(busy: World, shim_with: MakeShim) -> None:
    shim = shim_with()
    for text in ("1.2", "1", "hd_rawdata_000001_001", "wn2", "A", "p", "127.0.0.1"):
        page = shim.raw(f"find?text={text}").text
        found = call(busy.db, "find", text=text)
        assert found, text
        for row in found:
            assert html.escape(row["command"]) in page and html.escape(row["found"]) in page
        targets = re.findall(r'<th scope="row"[^>]*><a href="([^"]*)"', page)
        assert len(targets) == len(found)
        for target in targets:
            answer = shim.client.get(f"http://127.0.0.1:{shim.port}{html.unescape(target)}")
            assert answer.status_code == 200, target


def test_each_command_that_health_advises_is_one_that_there_is() -> None:
    source = (SQL_FOLDER / "functions" / "reading" / "health.sql").read_text()
    literals = [text for text in re.findall(r"'((?:[^']|'')*)'", source) if "osgprod " in text]
    assert len(literals) > 12
    for text in literals:
        advised = [piece for is_command, piece in formats.commands(text) if is_command]
        assert advised, text
        for command in advised:
            words, group = command.split()[1:], cli
            while words and isinstance(group, click.Group) and words[0] in group.commands:
                group = group.commands[words.pop(0)]
            assert group is not cli and (group.params or not words), command
            options = [word for word in words if word.startswith("--")]
            known = {option for param in group.params for option in param.opts}
            assert set(options) <= known, command
            prose = {"looks", "lists", "requeues", "lifts", "and", "or", "to", "for", "the"}
            assert not prose & set(words), command


def test_each_command_that_a_function_advises_is_whole_as_it_stands() -> None:
    """With a value for each %s and each word in capitals it is parsed; a terminal, to ask there, it needs none."""
    advised = 0
    for path in sorted((SQL_FOLDER / "functions").glob("*/*.sql")):
        code = "".join(x for x in path.read_text().splitlines(True) if not x.lstrip().startswith("--"))
        for words in (match[1].split() for match in re.finditer(r"osgprod ([a-z][^;'()]*)", code)):
            command: click.Command = cli
            while words and isinstance(command, click.Group) and words[0].rstrip(",") in command.commands:
                command = command.commands[words.pop(0).rstrip(",")]
            if command is cli:  # a sentence about osgprod
                continue
            arguments: list[str] = []
            for word in words:
                if not re.search(r"^--|[A-Z=%{]|\d", word) and arguments[-1:] not in (["--by"], ["--state"]):
                    break
                value = {"FILE": "-", "N": "7", "M": "7", "RUNS": "7"}.get(
                    word.rstrip(",."), word.rstrip(",.")
                )
                arguments.append(re.sub(r"%[sL]|\{.*?\}", "7", value))
            advised += 1
            try:
                with contextlib.suppress(click.exceptions.Exit):
                    command.make_context(command.name, list(arguments))
            except click.UsageError as error:
                raise AssertionError(f"{path}: {command.name} {arguments}: {error.message}") from error
            assert command.name != "set-magic" or "--magic-file" in arguments, path
    assert advised > 50


def test_advice_is_cut_into_prose_and_commands_without_losing_a_character() -> None:
    text = (
        "see why: osgprod quarantined p; or osgprod project set p max_failures=5, then wait (osgprod doctor)."
    )
    pieces = formats.commands(text)
    assert "".join(piece for _, piece in pieces) == text
    assert [piece for is_command, piece in pieces if is_command] == [
        "osgprod quarantined p", "osgprod project set p max_failures=5", "osgprod doctor",
    ]  # fmt: skip


def progress_rows(*done: int) -> list[dict[str, Any]]:
    begin = datetime(2026, 11, 1, tzinfo=UTC)
    return [{"at": begin + timedelta(hours=n), "blocks_done": value} for n, value in enumerate(done)]


def test_course_has_a_band_that_is_cut_where_nobody_knows_the_end() -> None:
    rows = progress_rows(0, 10, 20, 30)
    now = rows[-1]["at"]
    estimate: dict[str, Any] = {
        "blocks_left": 30, "ends_at": now + timedelta(hours=3), "ends_early_at": now + timedelta(hours=2),
        "ends_late_at": None, "least_per_hour": 0.0,
    }  # fmt: skip
    drawn = charts.course(rows, estimate, now, width=600)
    assert drawn and drawn["band"] and drawn["ahead"]
    assert 0 < drawn["now"] < drawn["end"] < 600, "past, estimate and the cut band all have room"
    assert drawn["line"].count("L") == 3
    without = charts.course(rows, {**estimate, "ends_early_at": None, "ends_at": None}, now, width=600)
    assert without and without["now"] == 600 and without["ahead"] is None and without["band"] is None
    assert charts.course(rows[:1], estimate, now) is None


def test_site_shows_its_ban_and_how_to_lift_it(busy: World, shim_with: MakeShim) -> None:
    call(busy.db, "ban_worker", project="p", worker="site:A", seconds=600, reason="all of its nodes fail")
    page = shim_with().raw("project/p/site/A").text
    assert "all of its nodes fail" in page and "osgprod workers unban p site:A" in page
    assert "/project/p/site/A" in shim_with().raw("project/p/workers").text
    call(busy.db, "ban_worker", project="p", worker="site:QUIET", seconds=600, reason="it was bad in summer")
    page = shim_with().raw("project/p/site/QUIET")
    assert page.status_code == 200 and "it was bad in summer" in page.text


def test_commands_on_pages_quote_what_is_in_them(busy: World, shim_with: MakeShim) -> None:
    site = "it's; $(reboot)"
    busy.checkout(50, host="wn50", site=site)
    call(busy.db, "ban_worker", project="p", worker=f"site:{site}", seconds=600, reason="x")
    shim = shim_with()
    pages = ("find", f"project/p/site/{quote(site)}")
    for page, params in zip(pages, ({"text": "no\n$(reboot) 'x\u202e"}, {}), strict=True):
        text = shim.client.get(f"{shim.url}/{page}", params=params).text
        (command,) = re.findall(r'<code class="command">(osgprod (?:find|workers unban) [^<]*)</code>', text)
        word = shlex.split(html.unescape(command))[-1]
        assert word == (f"site:{site}" if "site" in page else "no $(reboot) 'x"), command
