"""The dashboard in Chromium: with mouse, keyboard and screen reader, in the light and the dark theme."""

from __future__ import annotations

import os
import re
from datetime import UTC
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from shim.database import call
from tests.browser.conftest import FAILING, FINISHED, LOG_TAIL, NAME
from tests.support import CHECKOUT, LiveShim, World, wait_until

pytestmark = pytest.mark.browser

IMAGES = CHECKOUT / "docs" / "images"
PAGES = {
    "overview": "",
    "project": f"project/{NAME}",
    "files": f"project/{NAME}/files?state=open",
    "job": f"project/{NAME}/job/9001.1",
    "attempts": f"project/{NAME}/attempts",
    "live": f"project/{NAME}/live",
    "quarantine": f"project/{NAME}/quarantine",
    "workers": f"project/{NAME}/workers",
    "jobs": f"project/{NAME}/jobs",
    "site": f"project/{NAME}/site/SITE_G",
    "find": "find?text=SITE_F",
    "nothing": "project/nope",
}


def number(page: Page, selector: str) -> int:
    """The number as a person reads it."""
    return int(page.locator(selector).first.inner_text().replace(",", ""))


def column(page: Page, table: str, head: str) -> list[str]:
    heads = page.locator(f"{table} thead th").all_inner_texts()
    place = heads.index(head) + 1
    return page.locator(f"{table} tbody tr > *:nth-child({place})").all_inner_texts()


def test_numbers_on_the_page_equal_the_database(page: Page, full: World) -> None:
    page.goto(f"project/{NAME}")
    progress = full.progress(NAME)
    for state in ("done", "leased", "ready", "quarantined", "unallocated"):
        assert number(page, f".legend .{state} data") == progress[f"blocks_{state}"] > 0
    by_exit = call(full.db, "attempts_by_exit", project=NAME)
    assert column(page, "#by-exit", "attempts") == [f"{row['attempts']:,}" for row in by_exit]
    assert column(page, "#by-exit", "outcome") == [row["outcome"].replace("-", " ") for row in by_exit]
    by_site = call(full.db, "attempts_by_site", project=NAME)
    assert column(page, "#by-site", "site") == [row["site"] for row in by_site]
    assert column(page, "#by-site", "ended") == [f"{row['attempts']:,}" for row in by_site]
    quarantined = call(full.db, "quarantined", project=NAME)
    section = page.get_by_role("region", name="Blocks that can't be done")
    assert section.locator("tbody tr").count() == len(quarantined) == 3
    assert quarantined[0]["reason"] in section.inner_text() and "secret" not in page.content()
    live = call(full.db, "live_attempts", project=NAME, limit=8)
    shown = page.get_by_role("region", name="Oldest live attempts").locator("tbody th").all_inner_texts()
    assert shown == [f"{row['cluster']}.{row['process']}" for row in live]
    estimate = call(full.db, "estimate", project=NAME)[0]
    assert f"{estimate['ends_at'].astimezone(UTC):%a %d %b %Y}" in page.locator(".eta").inner_text()
    assert number(page, ".eta data >> nth=1") == estimate["blocks_left"]


def test_health_and_what_to_do_come_before_anything_else(page: Page, full: World) -> None:
    page.goto("")
    page.locator(".copy").evaluate_all("all => all.forEach(button => button.remove())")
    said = page.locator(".health li").all_inner_texts()
    for row in call(full.db, "health", project=NAME):
        assert any(row["found"] in text and row["advice"] in text for text in said)
    place = page.locator(".health").last.bounding_box()
    assert place and place["y"] + place["height"] < 900, "it is seen without scrolling"
    assert page.locator("h2").all_inner_texts() == [FAILING, NAME], (
        "the worst first, and idle projects are folded"
    )
    page.get_by_text("1 idle project").click()
    expect(page.get_by_role("region", name="Idle projects").get_by_role("link")).to_have_text(FINISHED)


def test_map_shows_each_run_and_leads_to_its_files(page: Page, full: World) -> None:
    page.goto(f"project/{NAME}")
    cells = call(full.db, "map_files", project=NAME, rows=240, columns=200)
    assert page.locator(".cells a").count() == len(cells) == 24
    box = page.locator(".cells").bounding_box()
    assert box and box["width"] > 900
    third = page.locator(".cells a").nth(2)
    files = f"{cells[2]['files_finished']} of {cells[2]['files']} files finished, 100 % of blocks done"
    assert third.locator("title").text_content() == f"run {cells[2]['first_run']}: {files}"
    third.locator("rect").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Files of run {cells[2]['first_run']}")
    assert page.locator("tbody tr").count() == cells[2]["files"]
    assert column(page, "table", "done") == ["60"] * cells[2]["files"]


def test_links_lead_down_to_a_file_and_to_the_whole_history_of_an_attempt(page: Page, full: World) -> None:
    page.goto("")
    page.get_by_role("link", name=NAME, exact=True).click()
    page.get_by_role("link", name="Quarantine").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Quarantine")
    page.get_by_role("link", name="9001.1").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Job 9001.1")
    facts = page.locator(".attempt").first.inner_text()
    assert LOG_TAIL.strip() in page.locator(".attempt pre").inner_text()
    assert "JException: no BOR record for crate 12" in facts and "SITE_F" in facts and "failed" in facts
    page.locator(".attempt a").first.click()
    row = call(full.db, "job_history", project=NAME, cluster=9001, process=1)[0]
    expect(page.get_by_role("heading", level=1)).to_have_text(Path(row["path"]).name)
    slices = call(full.db, "list_slices", project=NAME, file_id=row["file_id"], limit=5000)
    assert column(page, "[aria-label=Slices] table", "blocks") == [
        f"[{s['block1']}, {s['block2']})" for s in slices
    ]
    assert column(page, "[aria-label=Slices] table", "state") == [s["state"] for s in slices]
    assert number(page, ".legend .done data") == sum(
        s["block2"] - s["block1"] for s in slices if s["state"] == "done"
    )


def test_plot_has_a_bar_for_each_interval_in_which_something_was_done(page: Page, full: World) -> None:
    def has_its_bars(hours: int, name: str) -> bool:
        page.goto(f"project/{NAME}")
        page.get_by_role("navigation", name="Time window").get_by_role("link", name=name).click()
        rate = call(full.db, "rate", project=NAME, hours=hours)
        bars = [page.locator(f".plot.wide-window .p-{kind}").count() for kind in ("done", "quarantined")]
        fails = [row["failed"] + row["node_faults"] + row["lost"] > 0 for row in rate]
        return bars == [sum(row["blocks_done"] > 0 for row in rate), sum(fails)]

    for hours, name in ((24, "24 hours"), (168, "7 days"), (2, "2 hours")):
        # Seen again where an interval has begun between the page and the question.
        wait_until(lambda hours=hours, name=name: has_its_bars(hours, name), f"the bars of {name}")
        box = page.locator(".plot.wide-window").last.bounding_box()
        assert box and box["width"] > 1000


def test_page_renews_itself_and_stops_when_asked(page: Page, full: World, live: LiveShim) -> None:
    page.clock.install()
    page.goto(f"project/{NAME}")
    before = full.progress(NAME)["blocks_leased"]
    assert number(page, ".legend .leased data") == before
    page.get_by_text("The same as a table of runs").click()
    answer = full.checkout(77, cluster=9002, project=NAME)
    after = before + answer["block2"] - answer["block1"]
    page.wait_for_timeout(100)
    page.clock.run_for(11_000)
    expect(page.locator(".legend .leased data")).to_have_text(f"{full.progress(NAME)['blocks_leased']:,}")
    assert full.progress(NAME)["blocks_leased"] == after
    assert page.locator("#runs").get_attribute("open") is not None, "opened details stay open"
    page.get_by_role("button", name="Pause updates").click()
    expect(page.locator("#pause")).to_have_attribute("aria-pressed", "true")
    full.checkout(78, cluster=9002, project=NAME)
    page.clock.run_for(60_000)
    page.wait_for_timeout(300)
    assert number(page, ".legend .leased data") == after


def test_page_that_renews_itself_stays_where_it_is(page: Page, full: World) -> None:
    page.clock.install()
    page.goto(f"project/{NAME}")
    page.locator("#runs summary").click()
    page.evaluate("window.scrollTo(0, 900); document.querySelector('#runs .scroll').scrollTop = 120")
    places = "[window.scrollY, document.querySelector('#runs .scroll').scrollTop, document.querySelector('#runs').open]"
    before = page.evaluate(places)
    assert before[1:] == [120, True] and before[0] > 800
    page.evaluate("document.querySelector('main').firstElementChild.id = 'former'")
    page.clock.run_for(11_000)
    expect(page.locator("#former")).to_have_count(0)
    assert page.evaluate(places) == before


def test_page_in_use_stands_still_and_says_so(page: Page, full: World) -> None:
    page.clock.install()
    page.goto(f"project/{NAME}")
    page.evaluate("document.querySelector('main').firstElementChild.id = 'former'")
    page.locator("#find").fill("hd_rawdata")  # outside of the renewed part
    page.locator("main .command").first.click()  # marks the command
    page.clock.run_for(31_000)
    expect(page.locator("#former")).to_have_count(1)
    expect(page.locator("body")).not_to_have_class(re.compile("held"))
    page.clock.run_for(60_000)
    expect(page.locator("body")).to_have_class(re.compile("held"))
    expect(page.locator("#former")).to_have_count(1)
    page.evaluate("getSelection().empty()")
    page.clock.run_for(11_000)
    expect(page.locator("#former")).to_have_count(0)
    expect(page.locator("body")).not_to_have_class(re.compile("held"))
    expect(page.locator("#find")).to_have_value("hd_rawdata")


def test_old_numbers_are_marked_when_the_server_is_gone(browser: Browser, live: LiveShim) -> None:
    context = browser.new_context(base_url=f"{live.url}/")
    page = context.new_page()
    page.clock.install()
    page.goto("")
    context.set_offline(True)
    page.clock.run_for(11_000)
    expect(page.locator("body")).to_have_class(re.compile("stale"))
    context.set_offline(False)
    page.clock.run_for(11_000)
    expect(page.locator("body")).not_to_have_class(re.compile("stale"))
    context.close()


def test_all_is_there_without_javascript(browser: Browser, live: LiveShim, full: World) -> None:
    context = browser.new_context(java_script_enabled=False, base_url=f"{live.url}/")
    page = context.new_page()
    page.goto("")
    page.get_by_role("link", name=NAME, exact=True).click()
    assert number(page, ".legend .done data") == full.progress(NAME)["blocks_done"]
    assert page.locator("#pause").is_hidden(), "a button that does nothing is not shown"
    assert page.locator(".copy").count() == 0 and page.locator(".command").count() > 0
    page.locator(".command").first.click()
    page.get_by_text("The same as a table of runs").click()
    page.get_by_role("region", name="Runs").get_by_role("link").first.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Files of run")
    context.close()


def test_keyboard_reaches_the_content_and_shows_where_it_is(page: Page) -> None:
    page.goto(f"project/{NAME}")
    page.keyboard.press("Tab")
    focused = page.locator(":focus")
    expect(focused).to_have_text("Skip to the content")
    box = focused.bounding_box()
    assert box and box["x"] >= 0, "it is visible when it has the focus"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.locator(":focus")).to_have_text("Files")
    outline = page.locator(":focus").evaluate("e => getComputedStyle(e).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Files")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_any_page(browser: Browser, live: LiveShim, full: World, scheme: str) -> None:
    file_id = call(full.db, "list_files", project=NAME, state="open", limit=1)[0]["file_id"]
    context = browser.new_context(color_scheme=scheme, base_url=f"{live.url}/")  # type: ignore[arg-type]
    page = context.new_page()
    for path in [*PAGES.values(), "login", f"project/{NAME}/file/{file_id}"]:
        page.goto(path)
        found = Axe().run(page).response["violations"]
        violations = [
            (v["id"], v["nodes"][0]["html"][:150], v["nodes"][0]["failureSummary"][:200]) for v in found
        ]
        assert violations == [], path
    context.close()


TOO_WIDE = """[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1)
    .map(e => e.getAttribute('aria-label'))"""


@pytest.mark.parametrize("width", [360, 390, 800, 1280, 1920])
def test_no_page_is_wider_than_its_window_and_no_table_needs_scrolling(
    browser: Browser, live: LiveShim, full: World, width: int
) -> None:
    file_id = call(full.db, "list_files", project=NAME, state="open", limit=1)[0]["file_id"]
    context = browser.new_context(viewport={"width": width, "height": 800}, base_url=f"{live.url}/")
    page = context.new_page()
    for name, path in {**PAGES, "file": f"project/{NAME}/file/{file_id}"}.items():
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        if width in (390, 1280):
            page.locator("details").evaluate_all("all => all.forEach(d => d.open = true)")
            assert page.evaluate(TOO_WIDE) == [], name
    context.close()


def test_page_of_a_project_with_the_longest_name_is_no_wider_than_its_window(
    browser: Browser, live: LiveShim, full: World
) -> None:
    """Nothing of it can be broken at a hyphen. The overview has it among the idle ones, then by itself."""
    name = "x" * 63
    full.with_project(name)
    context = browser.new_context(viewport={"width": 360, "height": 800}, base_url=f"{live.url}/")
    page = context.new_page()
    for path in ("", f"project/{name}", f"project/{name}/files", f"find?text={name}"):
        page.goto(path)
        expect(page.get_by_text(name).first).to_be_attached()  # a page that was kept renews itself
        page.locator("details").evaluate_all("all => all.forEach(d => d.open = true)")
        assert page.evaluate(TOO_WIDE) == [], path
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
    full.add_file(1, run=7, project=name)
    page.goto("")
    expect(page.get_by_role("heading", name=name)).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    context.close()
    call(full.db, "remove_project", project=name)


def test_text_of_the_plots_is_as_large_in_a_narrow_window(browser: Browser, live: LiveShim) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 800}, base_url=f"{live.url}/")
    page = context.new_page()
    page.goto(f"project/{NAME}")
    heights = [
        box["height"]
        for tick in page.locator(".plot .tick").all()
        if tick.is_visible() and (box := tick.bounding_box())
    ]
    assert len(heights) > 8 and min(heights) > 9
    context.close()


def test_course_leads_from_the_begin_to_the_estimated_end(page: Page, full: World) -> None:
    page.goto(f"project/{NAME}")
    plot = page.get_by_role("img", name="since the production began")
    estimate = call(full.db, "estimate", project=NAME)[0]
    assert estimate["ends_early_at"] and plot.locator(".p-band").count() == 1
    past, ahead, goal = (plot.locator(f).bounding_box() for f in (".l-done", ".l-ahead", ".l-goal"))
    assert past and ahead and goal
    assert abs(past["x"] + past["width"] - ahead["x"]) < 8, "the estimate begins where the past ends"
    assert abs(past["y"] - ahead["y"] - ahead["height"]) < 8
    assert abs(ahead["y"] - goal["y"]) < 8 and ahead["x"] + ahead["width"] < goal["x"] + goal["width"] + 8


def test_command_is_copied_by_its_button(browser: Browser, live: LiveShim) -> None:
    context = browser.new_context(base_url=f"{live.url}/", permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(f"project/{NAME}/quarantine")
    command = f"osgprod slices recycle {NAME} --state quarantined"
    page.get_by_role("button", name=f"Copy {command}").click()
    expect(page.locator(".copy").first).to_have_text("copied")
    assert page.evaluate("navigator.clipboard.readText()") == command
    context.close()


def test_search_leads_to_what_was_looked_for(page: Page) -> None:
    page.goto(f"project/{NAME}")
    page.get_by_role("searchbox").fill("9001.1")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Find 9001.1")
    page.get_by_role("link", name="9001.1").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Job 9001.1")


def test_token_typed_into_the_form_opens_the_dashboard(browser: Browser, full: World, folder: Path) -> None:
    with LiveShim(full.dsn, folder / "www", OSGPROD_DASHBOARD_TOKEN="correct horse battery") as shim:
        context = browser.new_context(base_url=f"{shim.url}/")
        page = context.new_page()
        page.goto(f"project/{NAME}")
        page.get_by_label("Token of the dashboard").fill("wrong horse battery!")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_have_text("Wrong token.")
        page.get_by_label("Token of the dashboard").fill("correct horse battery")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("Productions")
        page.get_by_role("link", name=NAME, exact=True).click()
        expect(page.get_by_role("heading", level=1)).to_have_text(NAME)
        context.close()


def test_pictures_of_the_documents_are_kept(browser: Browser, live: LiveShim) -> None:
    """Written again by ``make screenshots``, which sets OSGPROD_SCREENSHOTS."""
    one, job = f"project/{NAME}", f"project/{NAME}/job/9001.1"
    wanted = {"overview": ("", "light", 620), "project": (one, "light", 1000), "dark": (one, "dark", 1000),
              "job": (job, "light", 520), "site": (f"{one}/site/SITE_G", "light", 480)}  # fmt: skip
    folder = IMAGES if os.environ.get("OSGPROD_SCREENSHOTS") else None
    for name, (path, scheme, height) in wanted.items():
        context = browser.new_context(
            color_scheme=scheme, viewport={"width": 1180, "height": height}, base_url=f"{live.url}/"  # type: ignore[arg-type]
        )  # fmt: skip
        page = context.new_page()
        page.goto(path)
        picture = page.screenshot(path=folder / f"dashboard-{name}.png" if folder else None)
        assert 10_000 < len(picture) < 300_000
        kept = IMAGES / f"dashboard-{name}.png"
        assert kept.exists() and kept.stat().st_size < 300_000, "run: make screenshots"
        context.close()
