"""``python -m bench.live``: what many live attempts cost the database, beside few; the numbers of docs/scale.md.

Two projects, one with LIVE live attempts, one with FEW. Batches of heartbeats and of checkout and report pairs go to
both in alternation, on one connection, with durable commits. So the ratio tells what the number of live attempts costs,
under any load of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import time
from typing import Any

import psycopg

from shim.database import call, connect
from shim.local.embedded import temporary_server
from shim.migrate import migrate
from tests.support import World

FILE_BLOCKS = 2000
BATCH = 64  # the most calls that the shim puts into a batch
ROUNDS = 15

Database = psycopg.Connection[dict[str, Any]]


def ask(db: Database, function: str, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls a function with a list of calls, as the shim does."""
    numbered = [{**one, "n": n, "magic": "m", "client": "127.0.0.1"} for n, one in enumerate(calls)]
    return db.execute(f"SELECT * FROM osgprod.{function}(%s)".encode(), [json.dumps(numbered)]).fetchall()


class Jobs:
    """A project and its live attempts."""

    def __init__(self, db: Database, project: str, live: int, run: int) -> None:
        self._db, self._project, self._next = db, project, 0
        world = World(db, "").with_project(project, token_required=True, lease_s=21600)
        for seqno in range((live + 4 * ROUNDS * BATCH) // FILE_BLOCKS + 1):
            world.add_file(FILE_BLOCKS, run=run, seqno=seqno, project=None)
        call(db, "load_slices", project=project, runs=f"{{{run}}}")
        self.tokens: dict[int, str] = {}
        while len(self.tokens) < live:
            self.tokens |= self._check_out(min(BATCH, live - len(self.tokens)))

    def _check_out(self, number: int) -> dict[int, str]:
        processes = range(self._next, self._next + number)
        self._next += number
        calls = [{"project": self._project, "cluster": 1, "process": n, "cpus": 1} for n in processes]
        answers = ask(self._db, "checkout_slices", calls)
        assert {answer["status"] for answer in answers} == {"assigned"}, answers[0]
        return {processes[answer["n"]]: str(answer["token"]) for answer in answers}

    def _calls(self, tokens: dict[int, str], **more: object) -> list[dict[str, Any]]:
        return [
            {"project": self._project, "cluster": 1, "process": process, "token": token, **more}
            for process, token in tokens.items()
        ]

    def heartbeats(self) -> float:
        """One batch; returns heartbeats a second."""
        chosen = dict(random.sample(sorted(self.tokens.items()), BATCH))
        began = time.perf_counter()
        answers = ask(self._db, "heartbeats", self._calls(chosen))
        took = time.perf_counter() - began
        assert {answer["status"] for answer in answers} == {"alive"}, answers[0]
        return BATCH / took

    def pairs(self) -> float:
        """One batch of checkouts and one of their reports; returns pairs a second."""
        began = time.perf_counter()
        tokens = self._check_out(BATCH)
        answers = ask(self._db, "report_exits", self._calls(tokens, exitcode=0))
        took = time.perf_counter() - began
        assert {answer["status"] for answer in answers} == {"done"}, answers[0]
        return BATCH / took


def main() -> None:
    """Measures, and prints a row for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--live", type=int, default=50_000, help="live attempts [64 ..]")
    parser.add_argument("--few", type=int, default=1_000, help="to compare with [64 ..]")
    chosen = parser.parse_args()
    with temporary_server(fsync="on", synchronous_commit="on", full_page_writes="on") as dsn:
        migrate(dsn, say=lambda line: None)
        with connect(dsn) as db:
            many, few = Jobs(db, "many", chosen.live, 1), Jobs(db, "few", chosen.few, 2)
            db.execute("VACUUM ANALYZE")
            print(
                f"{platform.machine()}, {os.cpu_count()} cores, PostgreSQL {db.info.server_version // 10000}"
            )
            print(f"| | {chosen.few:,} live | {chosen.live:,} live | ratio |\n|---|---|---|---|")
            for name in ("heartbeats", "pairs"):
                rates: dict[Jobs, list[float]] = {few: [], many: []}
                for _ in range(ROUNDS):
                    for jobs in (few, many):
                        rates[jobs].append(getattr(jobs, name)())
                a, b = (statistics.median(rates[jobs]) for jobs in (few, many))
                print(f"| {name} a second | {a:,.0f} | {b:,.0f} | {b / a:.2f} |")
            for name, function, arguments in (
                ("tick", "tick", {}),
                ("progress", "progress", {"project": "many"}),
                ("live_attempts, 100 rows", "live_attempts", {"project": "many"}),
                ("verify", "verify", {"project": "many"}),
            ):
                began = time.perf_counter()
                call(db, function, **arguments)
                print(f"| {name} | | {1000 * (time.perf_counter() - began):,.0f} ms | |")
            row = db.execute("SELECT pg_database_size(current_database()) AS n").fetchone()
            assert row
            print(f"| size of the database | | {row['n'] / 1e6:,.0f} MB | |")


if __name__ == "__main__":
    main()
