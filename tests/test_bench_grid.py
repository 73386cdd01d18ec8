"""The simulation of a grid: it runs, its clock is its own, and production can't be given another clock."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import psycopg
import pytest

from bench import grid as bench_grid
from bench.grid_plot import plot
from bench.grid_run import Grid, Outcome, Simulation, Way, simulate

DAY_S = 86_400


def test_production_functions_have_no_other_clock_than_the_servers(
    db: psycopg.Connection[dict[str, Any]],
) -> None:
    """In a migrated database pg_catalog is searched first, so no schema can put a now() in front of the server's."""
    paths = db.execute(
        "SELECT p.proname, c.setting FROM pg_proc p CROSS JOIN LATERAL unnest(p.proconfig) c (setting)"
        " WHERE p.pronamespace = 'osgprod'::regnamespace AND c.setting LIKE 'search_path=%'"
    ).fetchall()
    assert len(paths) > 30
    assert [row for row in paths if not row["setting"].startswith("search_path=pg_catalog, ")] == []
    # What a role may call has a path: nobody's search_path reaches into a function.
    without = db.execute(
        "SELECT p.proname FROM pg_proc p WHERE p.pronamespace = 'osgprod'::regnamespace AND p.proname NOT LIKE '\\_%'"
        " AND NOT EXISTS (SELECT FROM unnest(p.proconfig) c (setting) WHERE c.setting LIKE 'search_path=%')"
    ).fetchall()
    assert without == []
    assert db.execute("SELECT to_regnamespace('sim') AS found").fetchone() == {"found": None}


def test_functions_live_in_simulated_time_alone(dsn: str) -> None:
    """A run writes everything at a simulated time, although it takes seconds."""
    grid = replace(bench_grid.small(), workers=5, files=1, blocks=20)
    simulation = Simulation(dsn, grid, Way("one", 2))
    outcome = simulation.run()
    assert simulation.check() == []
    simulation.close()
    with psycopg.connect(dsn) as found:
        columns = found.execute(
            "SELECT format('%I.%I', table_schema, table_name), column_name FROM information_schema.columns"
            " WHERE table_schema = 'osgprod_data' AND data_type = 'timestamp with time zone'"
        ).fetchall()
        seen = 0
        for relation, column in columns:
            for (at,) in found.execute(
                f"SELECT extract(epoch FROM {column}) FROM {relation} WHERE isfinite({column})"
            ).fetchall():
                seen += 1
                assert 0 <= float(at) - 1_893_456_000 <= outcome.makespan_s + DAY_S, (relation, column)
    assert seen > 25


@pytest.mark.slow
def test_small_grid_is_worked_off_and_measured(dsn: str) -> None:
    grid = bench_grid.small()
    outcome = simulate(dsn, grid, bench_grid.ways(grid)["ours"])
    assert outcome.is_complete
    assert outcome.makespan_s > outcome.ideal_s
    assert 0 < outcome.wasted_s < outcome.used_s
    assert outcome.attempts > outcome.done > 0
    assert outcome.used_s - outcome.wasted_s > 0


def test_nothing_is_lost_on_an_ideal_grid(dsn: str) -> None:
    """Without start-ups, faults and evictions, blocks of one core second take what they must."""
    grid = Grid(
        workers=9, sites=3, cores=1, spread=1.0001, start_s=0.001, vanish=0, evicted_s=1e12, poisoned=0,
        outage_s=0, files=1, blocks=270, block_s=60.0,
    )  # fmt: skip
    outcome = simulate(dsn, grid, Way("one", 1))
    # A third of the nodes are the black hole's; they fail a slice now and then until they are banned.
    assert 1 <= outcome.makespan_s / outcome.ideal_s < 1.05
    assert outcome.done == 270
    assert grid.least_s == pytest.approx(grid.ideal_s, rel=0.01)
    # The parts account for all of the makespan.
    assert sum(outcome.parts.values()) == pytest.approx(outcome.makespan_s / outcome.ideal_s, rel=1e-6)
    assert outcome.parts["work that counts"] == pytest.approx(1, rel=1e-6)


def test_least_makespan_counts_what_no_dispatcher_can_avoid() -> None:
    calm = Grid(start_s=0, vanish=0, evicted_s=1e8, outage_s=0)
    assert calm.least_s == pytest.approx(calm.ideal_s, rel=1e-3)
    assert replace(calm, outage_s=3600.0).least_s == pytest.approx(calm.ideal_s + 3600, rel=1e-3)
    # One attempt in ten vanishes, on average in its middle: 0.9 of 0.95 counts, for any length of a slice.
    assert replace(calm, vanish=0.1).efficiency(1.0) == pytest.approx(0.9 / 0.95, rel=1e-3)
    # Slices of the mean time between two evictions.
    assert replace(calm, evicted_s=3600.0).efficiency(3600.0) == pytest.approx(0.582, rel=1e-3)
    # A job starts 60 s after each of its vanished attempts.
    assert replace(calm, vanish=0.1, start_s=60.0).efficiency(600.0) == pytest.approx(0.9 / 0.96, rel=1e-3)


def test_results_go_into_the_page_and_the_plot() -> None:
    runs = [
        Outcome(
            "a <way>", 7200.0, 3600.0, 100.0, 4.0, 12, 10, 60.0, True, [(0.0, 0), (3600.0, 5), (7200.0, 10)]
        ),
        Outcome("never", 43200.0, 3600.0, 100.0, 90.0, 12, 10, 60.0, False, [(0.0, 0), (7200.0, 1)]),
    ]
    grid = Grid()
    lines = bench_grid.table(grid, runs)
    assert "| a <way> | 2.00 | 2.000 | 4.0 % | 12 | 1.20 | 0.02 |" in lines
    assert any(line.startswith("| never | > 12.00 ") for line in lines)
    runs[0].parts, runs[1].parts = {"work": 1.0, "idle": 0.5}, {"idle": 0.25, "faults": 2.0}
    assert bench_grid.parts(runs) == [
        "| part of the makespan, over the ideal | a <way> | never |",
        "| --- | --- | --- |",
        "| work | 1.000 | 0.000 |",
        "| idle | 0.500 | 0.250 |",
        "| faults | 0.000 | 2.000 |",
        "| makespan | 1.500 | 2.250 |",
    ]
    page = "before\n" + bench_grid.BEGIN + "old\n" + bench_grid.END + "\nafter\n"
    assert bench_grid.documented(page, lines).startswith("before\n")
    assert bench_grid.documented(page, lines).endswith("\nafter\n")
    assert "old" not in bench_grid.documented(page, lines)
    ElementTree.fromstring(plot(runs, 10))
