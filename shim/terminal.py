"""What a person sees in a terminal: tables that fit, bars that tell how long it will take; or JSON for programs."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import click
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import Task as ProgressTask
from rich.table import Table
from rich.text import Text

Row = Mapping[str, Any]

# Wide enough for any table: what is piped into another program is not cut.
_ENDLESS = 10_000
SHORTEST_TEXT = 10


def show(
    rows: Sequence[Row],
    as_json: bool = False,
    empty: str = "none",
    wrapped: Collection[str] = (),
    limit: int | None = None,
) -> None:
    """Prints rows as a table that fits the terminal, or as one JSON array.

    Parameters: rows     all with the same names;  as_json  JSON it is, also when there are none
                empty    what is said in place of a table without rows
                wrapped  columns whose texts go on in the next line instead of being cut
                limit    rows that were asked for at most; None = all. Where so many came, a line on the standard error
                         output says that it may not be all
    """
    if as_json:
        click.echo(json.dumps(rows, default=str, indent=1))
    elif not rows:
        click.echo(empty)
    else:
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else _ENDLESS
        for line in table(rows, columns, wrapped):
            click.echo(line)
    if len(rows) == limit:
        click.echo(f"osgprod: {limit} rows shown, there may be more: --limit N", err=True)


def table(rows: Sequence[Row], columns: int, wrapped: Collection[str] = ()) -> list[str]:
    """Returns the lines of a table no wider than it may be, or of a list of records where no table would fit.

    Numbers are flush right; they and times are never cut. A text that doesn't fit ends in '…', a column without any
    value is left out.

    Parameters: rows  at least one;  columns  that a line may have;  wrapped  see show()
    """
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    cells = [[cell(row[name]) for name in names] for row in rows]
    is_number = [all(isinstance(row[name], int | float | None) for row in rows) for name in names]
    is_whole = [all(isinstance(row[name], int | float | datetime | None) for row in rows) for name in names]
    heads, gap = names, 2
    widths = _widths(heads, cells)
    if _total(widths, gap) > columns:  # 'blocks_done' on two lines
        heads = [name.replace("_", "\n") for name in names]
        widths = _widths(heads, cells)
        gap = 2 if _total(widths, 2) <= columns else 1
        widths = _fitted(widths, gap, is_whole, columns)
    if _total(widths, gap) > columns:
        return records(rows, columns, wrapped)
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, gap - 1, 0, 0), pad_edge=False, show_edge=False)
    for name, head, width, flush in zip(names, heads, widths, is_number, strict=True):
        justify: Literal["right", "left"] = "right" if flush else "left"
        overflow: Literal["fold", "ellipsis"] = "fold" if name in wrapped else "ellipsis"
        grid.add_column(
            Text(head), justify=justify, width=width, no_wrap=name not in wrapped, overflow=overflow,
            vertical="top" if wrapped else "bottom",
        )  # fmt: skip
    for line in cells:
        grid.add_row(*map(Text, line))  # Text: nothing in a value is markup
    output = io.StringIO()
    Console(file=output, width=columns, no_color=True, highlight=False).print(grid)
    return [line.rstrip() for line in output.getvalue().splitlines()]


def _widths(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> list[int]:
    return [
        max(*(cell_len(part) for part in head.split("\n")), *map(cell_len, column))
        for head, *column in zip(heads, *cells, strict=True)
    ]


def _total(widths: Sequence[int], gap: int) -> int:
    return sum(widths) + gap * (len(widths) - 1)


def _fitted(widths: Sequence[int], gap: int, is_whole: Sequence[bool], columns: int) -> list[int]:
    """The widths with the widest texts cut down, none to less than a few characters."""
    widths = list(widths)
    while _total(widths, gap) > columns:
        widest = max(
            (width, n) for n, width in enumerate([*widths, 0]) if n == len(widths) or not is_whole[n]
        )
        if widest[0] <= SHORTEST_TEXT:
            break
        widths[widest[1]] -= 1
    return widths


def records(rows: Sequence[Row], columns: int, wrapped: Collection[str] = ()) -> list[str]:
    """Returns each row as lines of name and value, for where there are too many columns for a table.

    Parameters: see table()
    """
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    indent = max(map(len, names)) + 2
    room = max(columns - indent, SHORTEST_TEXT)
    lines: list[str] = []
    for row in rows:
        lines += [""] if lines else []
        for name in names:
            value = cell(row[name])
            is_whole = len(value) <= room or name in wrapped
            lines.append(f"{name:{indent}}{value if is_whole else value[: room - 1] + '…'}".rstrip())
    return lines


def cell(value: object) -> str:
    """Returns a value as it stands in a table; control characters, which a job may have sent, become '?'."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
    if isinstance(value, float):
        return f"{value:.1f}"
    return "".join(character if character.isprintable() else "?" for character in str(value))


class _Rate(TextColumn):
    """Files a second so far, and the time that the rest will take at that rate."""

    def __init__(self, unit: str) -> None:
        super().__init__("")
        self._unit = unit

    def render(self, task: ProgressTask) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text(f"- {self._unit}/s")
        left = (task.remaining or 0) / speed
        return Text(f"{speed:.1f} {self._unit}/s, {_duration(left)} left")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Bar:
    """A progress bar on the standard error output, with rate and ETA; silent where that is no terminal."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            _Rate(unit),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task(label, total=total)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        self._progress.advance(self._task, count)

    def say(self, line: str) -> None:
        """Prints a line on the standard error output, above the bar."""
        if self._progress.disable:
            click.echo(line, err=True)
        else:
            self._progress.console.print(Text(line))


@contextlib.contextmanager
def working(label: str) -> Iterator[None]:
    """Shows on the standard error output, if that is a terminal, that one long call is at work, and since when."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        progress.add_task(label, total=None)
        yield
