"""A real Chromium, and a running production for it to show."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from shim.database import call, connect
from tests import production
from tests.databases import Databases
from tests.support import PATIENCE_S, LiveShim, World

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync")  # fmt: skip
NAME, FINISHED, FAILING = "spring-2026", "calibration-2025", "skims-2026"
LOG_TAIL = """2026-11-24 08:59:58 hd_root: opened hd_rawdata_071040_031.evio
2026-11-24 08:59:59 hd_root: 1200 events processed, 96.1 Hz
terminate called after throwing an instance of 'JException'
what():  no BOR record for crate 12
hd_root ended with 6
"""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.fail("chromium is not installed: apt-get install chromium")
    expect.set_options(timeout=1000 * PATIENCE_S)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=list(FLAGS), timeout=1000 * PATIENCE_S
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def full(databases: Databases) -> Iterator[World]:
    """World with the running project NAME, one that is done, and one that fails: one database for all tests here.

    Real reports have quarantined three blocks of NAME. The history is not complete, so nothing is verified at the end.
    """
    with databases.copy("migrated") as dsn, connect(dsn) as connection:
        world = World(connection, dsn).with_project(NAME, max_failures=1)
        seed(world)
        yield world


def seed(world: World) -> None:
    production.fill(world.db, NAME, runs=24, files=40, blocks=60, a_slice=5, in_flight=14, attempts=6000)
    for n in range(3):
        call_as = {"cluster": 9001, "project": NAME}
        world.checkout(n, host=f"wn{n + 7}", site="SITE_F", **call_as)
        world.report(n, 6, reason="JException: no BOR record for crate 12",
                     output_url=f"https://store.example.org/logs/9001.{n}.gz?key=secret", log_tail=LOG_TAIL,
                     **call_as)  # fmt: skip
    call(world.db, "ban_worker", project=NAME, worker="wn17@10.0.3.2", seconds=3000,
         reason="5 of its last 6 attempts failed within 120 s")  # fmt: skip
    for n in range(8):  # hd_root is missing there: the server bans the site
        world.checkout(n, cluster=9002, project=NAME, host=f"gn{n}", site="SITE_G")
    for n in range(8):
        world.report(n, 127, cluster=9002, project=NAME, reason="hd_root: command not found")
    assert [ban["worker"] for ban in call(world.db, "blocked_workers")] == ["site:SITE_G", "wn17@10.0.3.2"]
    for name, project_runs in ((FINISHED, 1), (FAILING, 2)):
        world.with_project(name, max_fast_failures=1000, suspend_after=100)
        for run in range(project_runs):
            world.add_file(6, run=80_000 + 10 * project_runs + run, project=None)
            call(world.db, "load_slices", project=name, runs=[80_000 + 10 * project_runs + run])
        for process in range(12):
            answer = world.checkout(process, project=name, host=f"wn{process}", site="SITE_D")
            if answer["status"] == "assigned":
                world.report(process, 0 if name == FINISHED else 127, project=name)
    world.db.execute("UPDATE osgprod_data.pace_looks SET looked_at = now() - interval '2 h'")
    call(world.db, "tick")


@pytest.fixture(scope="session")
def live(full: World) -> Iterator[LiveShim]:
    folder = Path(tempfile.mkdtemp(prefix="osgprod-test-"))
    with LiveShim(full.dsn, folder / "www") as shim:
        yield shim
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def page(browser: Browser, live: LiveShim) -> Iterator[Page]:
    """A page of the running dashboard; every error in the browser fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, base_url=f"{live.url}/")
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "console",
        lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None,
    )
    page.on(
        "request", lambda request: None if request.url.startswith(live.url) else wrong.append(request.url)
    )
    yield page
    context.close()
    assert wrong == [], "the browser complains, or something foreign was asked for"
