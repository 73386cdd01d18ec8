"""Pictures in SVG, from rows of the database: bar and course of a project, plot of its rate, map of its files.

Colours are the style sheet's: everything here has a class. Lengths are px, per cent, or cells of the map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any

from shim.words import counted

Row = Mapping[str, Any]

PARTS = ("done", "leased", "ready", "quarantined", "unallocated")
# How a row of the map is drawn: a little air between rows when there is room for it.
ROW_PX, LEAST_ROW_PX, MAP_PX = 14, 3, 900
LABEL_PX = 16


def bar(row: Row) -> list[dict[str, Any]]:
    """Returns the parts of the bar of a project or file, left to right, as percentages.

    A part that is not empty is at least a hair wide, so that one quarantined block of millions is seen.

    Parameters
    ----------
    row : Row
        Has blocks and blocks_done, blocks_leased ...
    """
    total = max(row["blocks"], 1)
    shares = {
        name: max(100 * row[f"blocks_{name}"] / total, 0.4 if row[f"blocks_{name}"] else 0) for name in PARTS
    }
    scale = 100 / max(sum(shares.values()), 1e-9)
    parts, at = [], 0.0
    for name in PARTS:
        width = shares[name] * scale
        if width:
            parts.append(
                {"name": name, "x": round(at, 3), "width": round(width, 3), "blocks": row[f"blocks_{name}"]}
            )
        at += width
    return parts


def plot(rows: Sequence[Row], width: int = 1160, height: int = 170, marks: int = 8) -> dict[str, Any]:
    """Returns the bars of the rate plot, with its axes.

    Parameters
    ----------
    rows : Sequence[Row]
        Of osgprod.rate.
    width, height
        [px].
    marks
        Of the time axis, at most.

    Returns
    -------
    Bars with x, y, width, height, failures' height and a text; ticks of both axes.
    """
    per_hour = [row["blocks_done"] * 3600 / row["interval_s"] for row in rows]
    bad = [row["failed"] + row["node_faults"] + row["lost"] for row in rows]
    top, step = _nice(max(per_hour, default=0))
    base, bad_px = height - 34, 12
    column = width / max(len(rows), 1)
    bars = [
        {
            "x": round(n * column, 2),
            "width": round(max(column - (1 if column > 4 else 0.2), 0.5), 2),
            "y": round(base - base * rate / top, 2),
            "height": round(base * rate / top, 2),
            "bad_y": base + 2,
            "bad_height": round(bad_px * failures / max(*bad, 1), 2) if failures else 0,
            "text": f"{row['began_at'].astimezone(UTC):%d %b %H:%M} UTC: {rate:,.0f} blocks/h,"
            f" {counted(failures, 'bad end')}",
        }
        for n, (row, rate, failures) in enumerate(zip(rows, per_hour, bad, strict=True))
    ]
    levels = [
        {"y": round(base - base * n * step / top, 1), "text": f"{n * step:,g}"}
        for n in range(1, round(top / step) + 1)
    ]
    return {
        "bars": bars,
        "levels": levels,
        "times": _times(*_span(rows), width, marks),
        "width": width,
        "height": height,
        "base": base,
    }


def _nice(largest: float) -> tuple[float, float]:
    """A round end of an axis above the largest value, and the step between its two to five marks."""
    if largest <= 0:
        return 1.0, 1.0
    power = 10.0 ** math.floor(math.log10(largest))
    step = next(power * m for m in (0.2, 0.5, 1, 2, 5) if largest / (power * m) <= 5)
    return math.ceil(largest / step) * step, step


def _span(rows: Sequence[Row]) -> tuple[datetime, datetime]:
    """Begin and end of the rows of osgprod.rate."""
    if not rows:
        return datetime.now(UTC), datetime.now(UTC)
    return rows[0]["began_at"], rows[-1]["began_at"] + timedelta(seconds=rows[-1]["interval_s"])


STEPS_S = (60, 300, 600, 1800, 3600, 10800, 21600, 43200, 86400, 2 * 86400, 7 * 86400, 14 * 86400, 30 * 86400,
           90 * 86400, 365 * 86400)  # fmt: skip


def _times(begin: datetime, end: datetime, width: int, most: int) -> list[dict[str, Any]]:
    """Marks of a time axis, on round times in UTC, none of them so near to its ends that its text is cut."""
    span = (end - begin).total_seconds()
    if span <= 0:
        return []
    step = next((s for s in STEPS_S if span / s <= most), STEPS_S[-1])
    marks = []
    at = math.ceil(begin.timestamp() / step) * step
    while at < end.timestamp():
        x = width * (at - begin.timestamp()) / span
        moment = datetime.fromtimestamp(at, UTC)
        text = f"{moment:%H:%M}" if step < 86400 and (moment.hour or moment.minute) else f"{moment:%d %b}"
        if 20 <= x <= width - 40:
            marks.append({"x": round(x, 1), "text": text})
        at += step
    return marks


def course(
    rows: Sequence[Row], estimate: Row, now: datetime, width: int = 1160, height: int = 210, marks: int = 8
) -> dict[str, Any] | None:
    """Returns the plot of the blocks done since the production began, and of those to come.

    Parameters
    ----------
    rows : Sequence[Row]
        Of osgprod.done_over_time.
    estimate : Row
        Of osgprod.estimate.
    now : datetime
        Where the past ends.
    width, height
        [px].
    marks
        Of the time axis, at most.

    Returns
    -------
    A line of the past and the area below it, and, if there is an estimate, a line to the estimated end and the band
    of its uncertainty, as SVG paths; marks of both axes. None without a past.
    """
    if len(rows) < 2:
        return None
    begin, done = rows[0]["at"], rows[-1]["blocks_done"]
    goal = done + estimate["blocks_left"]
    ends_at, late = estimate["ends_at"], estimate["ends_late_at"]
    is_going_on = estimate["blocks_left"] > 0 and ends_at is not None
    end = now
    if is_going_on:
        # A band without an end, or with one that is far away, is cut: the past must stay visible.
        farthest = ends_at + max(0.5 * (ends_at - begin), timedelta(minutes=5))
        end = min(max(late or farthest, ends_at), farthest)
    span = max((end - begin).total_seconds(), 1)
    base = height - 22
    top, step = _nice(goal)

    def x(at: datetime) -> float:
        share: float = (at - begin).total_seconds() / span
        return round(width * min(max(share, 0), 1), 1)

    def y(blocks: float) -> float:
        return round(base - (base - 4) * blocks / max(top, 1), 1)

    line = "M" + "L".join(f"{x(row['at'])} {y(row['blocks_done'])}" for row in rows)
    drawn: dict[str, Any] = {
        "line": line,
        "area": f"{line}L{x(rows[-1]['at'])} {base}L0 {base}z",
        "now": x(now),
        "goal": y(goal),
        "levels": [{"y": y(n * step), "text": f"{n * step:,g}"} for n in range(1, round(top / step) + 1)],
        "times": _times(begin, end, width, marks),
        "width": width,
        "height": height,
        "base": base,
        "ahead": None,
        "band": None,
    }
    if is_going_on:
        here = f"{x(now)} {y(done)}"
        drawn["ahead"] = f"M{here}L{x(ends_at)} {y(goal)}"
        drawn["end"] = x(ends_at)
        if estimate["ends_early_at"] is not None:
            edge, at_edge = late, goal
            if late is None or late > end:
                edge = end
                at_edge = done + estimate["least_per_hour"] * (end - now).total_seconds() / 3600
            drawn["band"] = (
                f"M{here}L{x(estimate['ends_early_at'])} {y(goal)}L{x(edge)} {y(goal)}"
                f"L{x(edge)} {y(min(at_edge, goal))}z"
            )
    return drawn


def file_map(rows: Sequence[Row]) -> dict[str, Any]:
    """Returns the map of runs and files: one path for each degree of completeness, and the place of each row.

    Neighbours that are alike are one rectangle: a map of 100,000 files is a few kilobytes.

    Parameters
    ----------
    rows : Sequence[Row]
        Of osgprod.map_files.
    """
    columns = max((len(row["cells"]) for row in rows), default=1)
    row_px = max(LEAST_ROW_PX, min(ROW_PX, MAP_PX // max(len(rows), 1)))
    paths: dict[str, list[str]] = {}
    for y, row in enumerate(rows):
        x = 0
        for kind, group in groupby(row["cells"]):
            length = len(list(group))
            if kind != ".":
                paths.setdefault(kind, []).append(f"M{x} {y}h{length}v.86h-{length}z")
            x += length
    every = max(1, math.ceil(LABEL_PX / row_px))
    lines = [
        {
            "y": y,
            "run": row["first_run"],
            "last_run": row["last_run"],
            "name": runs_text(row),
            "text": f"{runs_text(row)}: {row['files_finished']} of {counted(row['files'], 'file')} finished,"
            f" {100 * row['blocks_done'] // max(row['blocks'], 1)} % of blocks done",
            "is_labelled": y % every == 0,
            "label_y": y * row_px + min(row_px, LABEL_PX) - 4,
        }
        for y, row in enumerate(rows)
    ]
    kinds = {"#": "all", "q": "q"}
    return {
        "columns": columns,
        "rows": len(rows),
        "height": max(len(rows) * row_px, 1),
        "row_px": row_px,
        "paths": [(kinds.get(kind, kind), "".join(path)) for kind, path in sorted(paths.items())],
        "lines": lines,
        "files": sum(row["files"] for row in rows),
        "files_finished": sum(row["files_finished"] for row in rows),
        "files_a_cell": rows[0]["files_a_cell"] if rows else 1,
    }


def runs_text(row: Row) -> str:
    """Returns 'run 71728', or 'runs 71728-71731' for a group."""
    first, last = row["first_run"], row["last_run"]
    return f"run {first}" if first == last else f"runs {first}–{last}"
