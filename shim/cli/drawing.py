"""What rich draws: the grid of a table, progress bars. Loaded by shim.cli.terminal when there is something to draw."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text


def grid(
    values: Mapping[str, Sequence[str]],
    heads: Sequence[str],
    widths: Sequence[int],
    gap: int,
    columns: int,
    numbers: Collection[str],
) -> list[str]:
    """Return the lines of a table.

    Parameters
    ----------
    values : mapping
        The texts of each column, by its name. They fit.
    heads, widths : sequence
        What is above each column, and its width [characters].
    gap : int
        Between two columns [characters].
    columns : int
        That a line may have [characters].
    numbers : collection of str
        Columns that are flush right.
    """
    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, gap - 1, 0, 0), pad_edge=False, show_edge=False)
    for name, head, width in zip(values, heads, widths, strict=True):
        justify: Literal["right", "left"] = "right" if name in numbers else "left"
        drawn.add_column(
            Text(head), justify=justify, width=width, no_wrap=True, overflow="ellipsis", vertical="bottom"
        )
    for line in zip(*values.values(), strict=True):
        drawn.add_row(*map(Text, line))  # Text: nothing in a value is markup
    output = io.StringIO()
    Console(file=output, width=columns, no_color=True, highlight=False).print(drawn)
    return [line.rstrip() for line in output.getvalue().splitlines()]


class _Rate(TextColumn):
    """Files a second so far, and the time that the more will take at that rate."""

    def __init__(self, unit: str) -> None:
        super().__init__("")
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text(f"- {self._unit}/s")
        left = (task.remaining or 0) / speed
        return Text(f"{speed:.1f} {self._unit}/s, {_duration(left)} left")


def _duration(seconds: float) -> str:
    minutes, more = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{more:02}" if hours else f"{minutes}:{more:02}"


def files_bar(label: str, total: int, unit: str) -> Progress:
    """Return a progress bar with one task, on the standard error output.

    Parameters
    ----------
    label, unit : str
        What is done, and with what.
    total : int
        Units.
    """
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(), _Rate(unit))
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    progress.add_task(label, total=total)
    return progress


@contextlib.contextmanager
def spinner(label: str) -> Iterator[None]:
    """Show on the standard error output that something is running, and since when.

    Parameters
    ----------
    label : str
        What is running.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(label, total=None)
        yield
