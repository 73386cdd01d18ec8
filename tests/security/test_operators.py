"""Operators act on the dashboard: only with a token, only by its own forms, and always on record."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from shim.config import SettingError, Settings
from shim.database import call
from shim.web.operators import Operators
from tests.support import LiveShim, World

TOKEN, OTHER = "first-has-a-long-token", "second-has-another-one"
TOKENS = f"operator1:{TOKEN} operator2:{OTHER}"


@pytest.fixture
def shim(world: World, folder: Path) -> Iterator[LiveShim]:
    """A shim whose own login may change nothing, with two operators."""
    world.set(max_failures=1)
    world.add_file(3)
    world.checkout(0, host="wn1", site="A")
    world.report(0, 9)
    settings = {"OSGPROD_OPERATOR_TOKENS": TOKENS, "OSGPROD_OPERATOR_DSN": world.dsn}
    with LiveShim(world.dsn, folder / "www", **settings) as live:
        yield live


def here(shim: LiveShim) -> dict[str, str]:
    """What a browser says of a form that a page of the shim sends."""
    return {"Origin": f"http://127.0.0.1:{shim.port}"}


def sign_in(shim: LiveShim, token: str = TOKEN) -> str:
    """Return the code of forms."""
    answer = shim.raw("operator", method="POST", data={"token": token}, headers=here(shim))
    assert answer.status_code == 303, answer.text
    found = re.search(r'name="code" value="([0-9a-f]{64})"', shim.client.get(f"{shim.url}/project/p").text)
    assert found, "no form for an operator"
    return found[1]


def act(shim: LiveShim, code: str, headers: dict[str, str] | None = None, **form: str) -> httpx.Response:
    headers = here(shim) if headers is None else headers
    return shim.raw("project/p/act", method="POST", data={"code": code, **form}, headers=headers)


def state(world: World) -> tuple[Any, ...]:
    """All that an action could change: state of the project, bans, quarantined blocks, operations on record."""
    log = world.db.execute("SELECT count(*) AS n FROM osgprod_data.operations").fetchone()
    quarantined = call(world.db, "quarantined", project="p")
    return world.progress()["state"], len(call(world.db, "blocked_workers")), len(quarantined), log


def test_each_action_is_the_call_of_a_function_and_on_record_with_who(world: World, shim: LiveShim) -> None:
    code = sign_in(shim)
    for form, page, changed in (
        ({"action": "pause"}, "project/p", ("paused", 0, 1)),
        ({"action": "resume"}, "project/p", ("active", 0, 1)),
        ({"action": "ban", "worker": "wn1", "hours": "2", "reason": "its disk is füll"}, "project/p/workers",
         ("active", 1, 1)),
        ({"action": "unban", "worker": "wn1"}, "project/p/workers", ("active", 0, 1)),
        ({"action": "requeue"}, "project/p/quarantine", ("active", 0, 0)),
        ({"action": "retry-merges"}, "project/p", ("active", 0, 0)),
    ):  # fmt: skip
        answer = act(shim, code, **form)
        assert answer.status_code == 303, (form, answer.text)
        assert answer.headers["location"] == f"/osgprod/{page}"
        assert state(world)[:3] == changed, form
        assert shim.client.get(f"{shim.url}/{page}").status_code == 200
    log = call(world.db, "list_operations", project="p", hours=1)
    ours = [row for row in log if "operator1 by dashboard from 127.0.0.1" in row["who"]]
    assert [row["operation"] for row in reversed(ours)] == ["set_project"] * 2 + ["ban_worker"] * 2 + [
        "recycle"
    ]
    assert any(row["details"].get("reason") == "its disk is füll" for row in ours)
    page = shim.client.get(f"{shim.url}/project/p/log").text
    assert "operator1 by dashboard" in page and "ban_worker" in page and TOKEN not in page


def test_actions_on_chosen_runs_and_clusters_change_these_only(world: World, shim: LiveShim) -> None:
    code = sign_in(shim)
    for run in (5, 6):
        world.add_file(1, run=run)
    for process in range(1, 9):
        if world.checkout(process)["status"] == "assigned":
            world.report(process, 9)
    world.add_file(9, run=7)
    for cluster in (70, 71):
        assert world.checkout(1, cluster=cluster)["status"] == "assigned"
    page = shim.client.get(f"{shim.url}/project/p/files?run=5").text
    assert "Requeue the quarantined blocks of these runs" in page and "Resume the suspended" not in page
    assert "Requeue their slices" in shim.client.get(f"{shim.url}/project/p/jobs?cluster=70").text
    runs = {row["run"] for row in call(world.db, "quarantined", project="p")}
    answer = act(shim, code, action="requeue", run="5", last_run="5")
    assert answer.headers["location"] == "/osgprod/project/p/files?run=5&last_run=5"
    assert {row["run"] for row in call(world.db, "quarantined", project="p")} == runs - {5}
    assert (
        act(shim, code, action="reclaim", cluster="70").headers["location"]
        == "/osgprod/project/p/jobs?cluster=70"
    )
    assert [row["cluster"] for row in call(world.db, "live_attempts", project="p")] == [71]
    world.db.execute(
        "UPDATE osgprod_data.loaded_files"
        " SET suspended_at = now(), suspend_reason = 'x', retest_at = now(), retest_s = 9"
    )
    assert (
        "Resume the suspended files of these runs"
        in shim.client.get(f"{shim.url}/project/p/files?run=5").text
    )
    act(shim, code, action="resume-files", run="5")
    left = call(world.db, "list_files", project="p", state="suspended")
    assert sorted(row["run"] for row in left) == sorted(runs - {5} | {7})
    act(shim, code, action="resume-files")
    assert call(world.db, "list_files", project="p", state="suspended") == []
    assert act(shim, code, action="stop").status_code == 303 and world.progress()["state"] == "paused"
    assert call(world.db, "list_operations", project="p", hours=1)[0]["operation"] == "stop_project"


def test_jobs_of_a_banned_worker_or_site_are_stopped_and_no_others(world: World, shim: LiveShim) -> None:
    code = sign_in(shim)
    world.add_file(9, run=7)
    for process, (host, site) in enumerate((("wn2", "A"), ("wn3", "A"), ("wn4", "B")), start=1):
        assert world.checkout(process, host=host, site=site)["status"] == "assigned"
    page = f"{shim.url}/project/p/workers"
    assert "Stop its jobs" not in shim.client.get(page).text
    assert "Stop its running jobs" not in shim.client.get(f"{shim.url}/project/p/site/A").text

    act(shim, code, action="ban", worker="wn2", hours="2", reason="x")
    assert "Stop its jobs" in shim.client.get(page).text
    assert (
        act(shim, code, action="stop-jobs", worker="wn2").headers["location"] == "/osgprod/project/p/workers"
    )
    running = {row["worker"].partition("@")[0] for row in call(world.db, "live_attempts", project="p")}
    assert running == {"wn3", "wn4"}

    act(shim, code, action="ban", worker="site:A", hours="2", reason="x")
    assert "Stop its running jobs" in shim.client.get(f"{shim.url}/project/p/site/A").text
    act(shim, code, action="stop-jobs", worker="site:A")
    assert [row["worker"].partition("@")[0] for row in call(world.db, "live_attempts", project="p")] == [
        "wn4"
    ]
    log = [
        row
        for row in call(world.db, "list_operations", project="p", hours=1)
        if row["operation"] == "stop_jobs"
    ]
    assert len(log) == 2 and all("operator1 by dashboard" in row["who"] for row in log)


def test_without_a_token_nothing_can_be_done_and_by_default_there_is_nothing_to_do(
    world: World, shim: LiveShim, folder: Path
) -> None:
    before = state(world)
    assert act(shim, "", action="pause").status_code == 403
    assert shim.raw("project/p/log").status_code == 403
    for token in ("", "x" * 21, TOKEN[:-1], TOKEN + "x", "operator1"):
        answer = shim.raw("operator", method="POST", data={"token": token}, headers=here(shim))
        assert answer.status_code == 403 and "set-cookie" not in answer.headers
    assert 'action="/osgprod/project/p/act"' not in shim.raw("project/p").text
    with LiveShim(world.dsn, folder / "www2") as off:
        for path in ("operator", "project/p/act", "project/p/log"):
            assert off.raw(path, method="POST").status_code == 404
            assert off.raw(path).status_code == 404
        assert "Sign in as operator" not in off.raw("").text
    assert state(world) == before


def test_forged_sessions_and_forms_change_nothing(world: World, shim: LiveShim) -> None:
    code = sign_in(shim)
    cookie = shim.client.cookies["osgprod_operator"].strip('"')
    before = state(world)
    for wrong in ("", "0" * 64, code[:-1], code.upper(), "é"):
        assert act(shim, wrong, action="pause").status_code == 403, wrong
    elsewhere: list[dict[str, str]] = [
        {}, {"Origin": "https://evil.example"}, {"Origin": "null"},
        {"Origin": f"http://127.0.0.1:{shim.port}.evil.example"}, {**here(shim), "Sec-Fetch-Site": "cross-site"},
        {**here(shim), "Sec-Fetch-Site": "same-site"}, {"Sec-Fetch-Site": "none"},
    ]  # fmt: skip
    for headers in elsewhere:
        assert act(shim, code, headers, action="pause").status_code == 403, headers
    shim.client.cookies.clear()
    sign_in(shim, OTHER)
    assert act(shim, code, action="pause").status_code == 403, "a form of another operator's session"
    shim.client.cookies.clear()
    name, end, mac = cookie.split("/")
    for forged in (f"operator2/{end}/{mac}", f"{name}/{int(end) + 1}/{mac}", f"{name}/{end}/{mac[:-1]}x",
                   f"{name}/1/{mac}", f"nobody/{end}/{mac}", "operator1//", "//", TOKEN):  # fmt: skip
        headers = {**here(shim), "Cookie": f"osgprod_operator={forged}"}
        assert act(shim, code, headers, action="pause").status_code == 403, forged
    assert state(world) == before
    headers = {"Sec-Fetch-Site": "same-origin", "Cookie": f"osgprod_operator={cookie}"}
    assert act(shim, code, headers, action="pause").status_code == 303, "the real one is accepted"


def test_only_a_post_acts_and_what_it_can_not_mean_is_refused(world: World, shim: LiveShim) -> None:
    code = sign_in(shim)
    before = state(world)
    for method in ("GET", "HEAD", "PUT", "DELETE"):
        answer = shim.client.request(
            method, f"{shim.url}/project/p/act", params={"code": code, "action": "pause"}, headers=here(shim)
        )
        assert answer.status_code == 405, method
    assert shim.client.get(f"{shim.url}/operator/leave").status_code == 405
    senseless: list[dict[str, str]] = [
        {}, {"action": "remove"}, {"action": "ban"}, {"action": "ban", "worker": "wn1", "hours": "0"},
        {"action": "ban", "worker": "wn1", "hours": "99999"},
        {"action": "ban", "worker": "wn1", "hours": "0000000010080"}, {"action": "unban"},
        {"action": "ban", "worker": "10.0.0.0/8", "hours": "1"}, {"action": "reclaim"},
        {"action": "stop-jobs"}, {"action": "stop-jobs", "worker": "merges:wn1"},
        {"action": "reclaim", "cluster": "x"}, {"action": "requeue", "run": "6", "last_run": "5"},
        {"action": "requeue", "run": "0", "last_run": "99999"}, {"action": "resume-files", "run": "-1"},
    ]  # fmt: skip
    for form in senseless:
        assert act(shim, code, **form).status_code == 400, form
    form = {"code": code, "action": "pause"}
    assert shim.raw("project/nope/act", method="POST", data=form, headers=here(shim)).status_code == 404
    assert act(shim, code, action="pause", reason="x" * 5000).status_code == 403, (
        "forms of osgprod are smaller"
    )
    assert state(world) == before


def test_session_ends_by_signing_out_and_with_the_token(world: World, shim: LiveShim, folder: Path) -> None:
    code = sign_in(shim)
    cookie = shim.client.cookies["osgprod_operator"].strip('"')
    assert TOKEN not in cookie
    answer = shim.raw("operator/leave", method="POST", data={"code": code}, headers=here(shim))
    assert answer.status_code == 303 and "Sign in as operator" in shim.client.get(f"{shim.url}/").text
    settings = {"OSGPROD_OPERATOR_TOKENS": f"operator1:{TOKEN}-new", "OSGPROD_OPERATOR_DSN": world.dsn}
    with LiveShim(world.dsn, folder / "www2", **settings) as renewed:
        headers = {**here(renewed), "Cookie": f"osgprod_operator={cookie}"}
        assert act(renewed, code, headers, action="pause").status_code == 403


def test_cookie_is_kept_from_scripts_and_other_sites(shim: LiveShim) -> None:
    headers = {**here(shim), "X-Forwarded-Proto": "https"}
    answer = shim.raw("operator", method="POST", data={"token": TOKEN}, headers=headers)
    cookie = answer.headers["set-cookie"].lower()
    for part in ("httponly", "samesite=strict", "; secure", "path=/osgprod"):
        assert part in cookie


def test_login_without_the_right_is_told_so_and_changes_nothing(world: World, folder: Path) -> None:
    """LiveShim's own login is osgprod_worker, and without OSGPROD_OPERATOR_DSN it is the one that acts."""
    with LiveShim(world.dsn, folder / "www", OSGPROD_OPERATOR_TOKENS=TOKENS) as live:
        answer = act(live, sign_in(live), action="pause")
    assert answer.status_code == 400 and "OSGPROD_OPERATOR_DSN" in answer.text
    assert world.progress()["state"] == "active"


def test_action_on_a_server_that_is_silent_ends(
    world: World, shim: LiveShim, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = sign_in(shim)
    monkeypatch.setattr("shim.dashboard.actions.SILENCE_S", 0.3)
    with psycopg.connect(world.dsn) as other:
        other.execute("SELECT FROM osgprod_data.projects FOR UPDATE")
        assert act(shim, code, action="pause").status_code == 503
    assert world.progress()["state"] == "active"


def test_operator_who_may_not_see_the_dashboard_can_not_act(world: World, folder: Path) -> None:
    settings = {"OSGPROD_OPERATOR_TOKENS": TOKENS, "OSGPROD_OPERATOR_DSN": world.dsn}
    with LiveShim(world.dsn, folder / "www", OSGPROD_DASHBOARD_ALLOW="", **settings) as live:
        answer = live.raw("operator", method="POST", data={"token": TOKEN}, headers=here(live))
        assert answer.status_code == 403 and "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "value",
    ["operator1", "operator1:short", f":{TOKEN}", f"a/b:{TOKEN}", f"operator1:{TOKEN} operator1:{OTHER}",
     f"operator1:{TOKEN} operator2:{TOKEN}", "file:/nonexistent", f"file:{TOKEN}"],
)  # fmt: skip
def test_senseless_tokens_end_the_start_without_showing_them(value: str) -> None:
    with pytest.raises(SettingError, match="OSGPROD_OPERATOR_TOKENS") as caught:
        Operators(Settings.read({"OSGPROD_OPERATOR_TOKENS": value}))
    assert TOKEN[:8] not in str(caught.value) and "short" not in str(caught.value)


def test_tokens_are_read_from_a_file(folder: Path) -> None:
    (folder / "tokens").write_text(f"operator1:{TOKEN}\noperator2:{OTHER}\n")
    operators = Operators(Settings.read({"OSGPROD_OPERATOR_TOKENS": f"file:{folder}/tokens"}))
    assert operators.is_on and operators.name_of(OTHER) == "operator2" and operators.name_of("") is None
