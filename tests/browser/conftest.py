"""A real Chromium, and a running production for it to show."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from shim.database import call, connect
from tests import production
from tests.support import LiveShim, World

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync")  # fmt: skip
NAME = "spring-2026"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.fail("there is no chromium here: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def full(world: World) -> World:
    """World with the running project NAME; real reports have quarantined three of its blocks."""
    world.with_project(NAME, max_failures=1)
    production.fill(world.db, NAME, runs=24, files=40, blocks=60, a_slice=5, in_flight=14, attempts=2500)
    for n in range(3):
        call_as = {"cluster": 9001, "project": NAME}
        world.checkout(n, host=f"wn{n + 7}", site="MWT2", **call_as)
        world.report(n, 6, reason="JException: no BOR record for crate 12",
                     output_url=f"https://store.example.org/logs/9001.{n}.gz?key=secret", **call_as)  # fmt: skip
    call(world.db, "ban_worker", project=NAME, worker="wn17@10.0.3.2", seconds=3000,
         reason="5 of its last 6 attempts failed within 120 s")  # fmt: skip
    call(world.db, "tick")
    return world


@pytest.fixture
def live(full: World, folder: Path) -> Iterator[LiveShim]:
    with LiveShim(full.dsn, folder / "www") as shim:
        yield shim


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


@pytest.fixture
def db(dsn: str) -> Iterator[psycopg.Connection[dict[str, Any]]]:
    """Like the connection "db" of other tests, but without verify: the history of this production is not complete."""
    with connect(dsn) as connection:
        yield connection
