"""The dashboard and the metrics with markup in the texts of jobs, and with odd URLs."""

from __future__ import annotations

import random
import urllib.parse
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support import LiveShim, World

PAGES = ["", "/", "/project/p", "/project/p/files", "/project/p/file/1", "/project/p/job/1.1", "/project/p/attempts",
         "/project/p/live", "/project/p/quarantine", "/project/p/workers", "/project/p/jobs", "/project/p/site/1",
         "/find", "/metrics", "/login"]  # fmt: skip
PARAMETERS = [
    "text",
    "path",
    "cluster",
    "run",
    "last_run",
    "state",
    "hours",
    "outcome",
    "worker",
    "site",
    "exit_code",
    "token",
]
ODD = [
    "",
    "0",
    "-1",
    "2147483648",
    "9223372036854775808",
    "1" * 400,
    "x",
    "\0",
    "' OR true",
    "%",
    "١",
    "NaN",
    "done",
    "\u202e",
]
MARKUP = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{7*7}}"


def test_texts_of_jobs_are_text_on_every_page_and_odd_addresses_give_no_internal_error(
    world: World, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world.set(max_fast_failures=100)
    world.add_file(30)
    for process in range(12):
        world.checkout(process, host=MARKUP, site=MARKUP)
    for process in range(9):
        says = {"reason": MARKUP, "output_url": f"javascript:alert(1)//{MARKUP}"}
        world.report(process, process % 3, **says)
    number = random.randrange(1 << 32)
    print(f"seed {number}")
    chance = random.Random(number)
    with LiveShim(world.dsn, folder / "www", OSGPROD_CLIENT_RATE="0") as live:
        for turn in range(len(PAGES) + 60):
            page = PAGES[turn] if turn < len(PAGES) else chance.choice(PAGES)
            query = {}
            if turn >= len(PAGES):
                query = {chance.choice(PARAMETERS): chance.choice(ODD) for _ in range(chance.randrange(3))}
                odd = urllib.parse.quote(chance.choice(ODD), safe="")
                page = chance.choice((page, page, page.replace("/p", f"/{odd}"), page.replace("1", odd)))
            answer = live.client.get(live.url + page, params=query, follow_redirects=True)
            assert answer.status_code < 500, (page, query, answer.text)
            for piece in ("<script>alert", "<img src=x", 'href="javascript:', ">49"):
                assert piece not in answer.text, (page, query)
            if answer.headers["content-type"].startswith("text/html"):
                assert "script-src 'self'" in answer.headers["content-security-policy"]
        assert list(text_string_to_metric_families(live.raw("metrics").text)), "and the metrics can be read"
    assert not [record for record in caplog.records if record.exc_info]
