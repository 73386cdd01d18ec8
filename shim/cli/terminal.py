"""What a person sees in a terminal: tables that fit, progress bars; or JSON for programs."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from types import UnionType
from typing import TYPE_CHECKING, Any

import click
from rich.cells import cell_len

from shim.words import counted, for_csv

if TYPE_CHECKING:
    from rich.progress import Progress

Row = Mapping[str, Any]

# Wide enough for any table: output that is piped into another program is not cut.
_ENDLESS = 10_000
SHORTEST_TEXT = 10
_PATH = re.compile(r"(\w[\w+.-]*:/)?/")  # or a URL: what tells two of them apart is their end


def show(
    rows: Sequence[Row],
    as_json: bool = False,
    empty: str = "none",
    sentences: Collection[str] = (),
    limit: int | None = None,
    spare: Sequence[str] = (),
    columns: Sequence[str] = (),
) -> None:
    """Prints rows as a table that fits the terminal, or as one JSON array.

    Parameters
    ----------
    rows : Sequence[Row]
        All with the same names.
    as_json : bool
        JSON it is, also when there are none.
    empty : str
        Message in place of a table without rows.
    sentences : Collection[str]
        Columns of sentences and commands. Of a table with such nothing is cut: see table().
    limit : int | None
        Rows that were asked for at most; None = all. Where so many came, a line on the standard error
        output says that it may not be all.
    spare : Sequence[str]
        Columns that may be left out one after the other where room is short.
    columns : Sequence[str]
        Names of the columns, for the head of CSV without rows; rows of a call know them.
    """
    if as_json:
        click.echo(json.dumps(rows, default=str, indent=1))
    elif wants("csv"):
        _show_csv(rows, columns)
    elif not rows:
        click.echo(cell(empty))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _ENDLESS
        for line in table(rows, width, sentences, spare):
            click.echo(line)
    if len(rows) == limit:
        click.echo(f"osgprod: {counted(limit, 'row')} shown, there may be more: --limit N", err=True)


def wants(option: str) -> bool:
    """Return whether the running command was given --csv or --local.

    Parameters
    ----------
    option : str
        csv or local.
    """
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(f"osgprod.{option}"))


def _show_csv(rows: Sequence[Row], columns: Sequence[str]) -> None:
    """All columns, with a head, also without rows; times as in JSON, nothing for NULL."""
    output = io.StringIO()
    names = list(rows[0]) if rows else columns or getattr(rows, "columns", ())
    writer = csv.DictWriter(output, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: for_csv(value) for name, value in row.items()} for row in rows)
    click.echo(output.getvalue(), nl=False)


def table(
    rows: Sequence[Row], columns: int, sentences: Collection[str] = (), spare: Sequence[str] = ()
) -> list[str]:
    """Returns the lines of a table no wider than it may be, or of a list of records where no table would fit.

    Numbers are flush right; they and times are never cut. A text that doesn't fit has '…' in its middle; a path or
    URL begins with it, and keeps the name of the file as long as room can be made otherwise. A column without any
    value is left out. A single row in which a text would be cut becomes a record. Where a table with sentences doesn't
    fit as it is, each row is a line of its own, with the first sentence behind the other values, and a line for each
    further sentence: the terminal breaks them where it ends, so that a command can be copied.

    Parameters
    ----------
    rows : Sequence[Row]
        At least one.
    columns : int
        That a line may have.
    sentences, spare
        See show().
    """
    names = _names(rows)
    left = [[name for name in names if name not in spare[:count]] for count in range(len(spare) + 1)]
    for some, keeps_files in [*((some, True) for some in left), (left[-1], False)]:
        values = {name: [cell(row[name]) for row in rows] for name in some}
        layout = _layout(rows, values, columns, keeps_files, may_cut=len(rows) > 1 and not sentences)
        if layout:
            return _drawn(rows, values, columns, *layout)
    return _lines(rows, sentences) if sentences else records(rows)


def _names(rows: Sequence[Row]) -> list[str]:
    return [name for name in rows[0] if any(row[name] is not None for row in rows)]


def _are(kind: type | UnionType, rows: Sequence[Row], name: str) -> bool:
    return all(isinstance(row[name], kind | None) for row in rows)


def _are_paths(values: Sequence[str]) -> bool:
    return all(_PATH.match(value) for value in values if value)


def _layout(
    rows: Sequence[Row], values: Mapping[str, Sequence[str]], columns: int, keeps_files: bool, may_cut: bool
) -> tuple[list[str], list[int], int] | None:
    """Heads, widths and the gap between two columns; None = the table would be too wide."""
    heads, gap = list(values), 2
    widths = _widths(heads, values)
    if _total(widths, gap) > columns:  # 'blocks_done' on two lines
        heads = [name.replace("_", "\n") for name in values]
        widths = _widths(heads, values)
        gap = 2 if _total(widths, 2) <= columns else 1
        least = [
            width
            if not may_cut or _are(int | float | datetime, rows, name)
            else min(width, _least(values[name], keeps_files))
            for name, width in zip(values, widths, strict=True)
        ]
        widths = _fitted(widths, gap, least, columns)
    return (heads, widths, gap) if _total(widths, gap) <= columns else None


def _drawn(
    rows: Sequence[Row],
    values: Mapping[str, Sequence[str]],
    columns: int,
    heads: Sequence[str],
    widths: Sequence[int],
    gap: int,
) -> list[str]:
    from shim.cli.drawing import grid

    numbers = [name for name in values if _are(int | float, rows, name)]
    cut = {
        name: [(_end if _are_paths(column) else _both_ends)(value, width) for value in column]
        for (name, column), width in zip(values.items(), widths, strict=True)
    }
    return grid(cut, heads, widths, gap, columns, numbers)


def _end(text: str, width: int) -> str:
    """As much of the end of a text as fits, behind '…' where something is missing."""
    if cell_len(text) <= width:
        return text
    while cell_len(text) > width - 1:
        text = text[1:]
    return f"…{text}"


def _both_ends(text: str, width: int) -> str:
    """As much of both ends of a text as fits, around '…' where something is missing: an error's cause is at the end."""
    if cell_len(text) <= width:
        return text
    return text[: (width - 1) // 2] + _end(text, width - cell_len(text[: (width - 1) // 2]))


def _widths(heads: Sequence[str], values: Mapping[str, Sequence[str]]) -> list[int]:
    return [
        max(*(cell_len(part) for part in head.split("\n")), *map(cell_len, column))
        for head, column in zip(heads, values.values(), strict=True)
    ]


def _total(widths: Sequence[int], gap: int) -> int:
    return sum(widths) + gap * (len(widths) - 1)


def _least(values: Sequence[str], keeps_files: bool) -> int:
    """How far a column of texts may be cut: to a few characters, or to '…/' and the longest file name."""
    if not (keeps_files and _are_paths(values)):
        return SHORTEST_TEXT
    return max(SHORTEST_TEXT, *(2 + cell_len(value.rpartition("/")[2]) for value in values))


def _fitted(widths: Sequence[int], gap: int, least: Sequence[int], columns: int) -> list[int]:
    """The widths with the widest cut down as long as it helps, none to less than its least."""
    widths = list(widths)
    while _total(widths, gap) > columns:
        widest = max(((width, n) for n, width in enumerate(widths) if width > least[n]), default=None)
        if widest is None:
            break
        widths[widest[1]] -= 1
    return widths


def records(rows: Sequence[Row]) -> list[str]:
    """Returns each row as lines of name and value, for where there are too many columns for a table; nothing is cut."""
    names = _names(rows)
    indent = max(map(len, names)) + 2
    lines: list[str] = []
    for row in rows:
        lines += [""] if lines else []
        lines += [f"{name:{indent}}{cell(row[name])}".rstrip() for name in names]
    return lines


def _lines(rows: Sequence[Row], sentences: Collection[str]) -> list[str]:
    lines: list[str] = []
    for row in rows:
        texts = {name: cell(row[name]) for name in _names(rows) if cell(row[name]).strip()}
        said = [texts.pop(name) for name in sentences if name in texts]
        lines += [": ".join(["  ".join(texts.values()), *said[:1]]), *(f"  {text}" for text in said[1:])]
    return lines


def cell(value: object) -> str:
    """Returns a value as text for a table. Control characters, which a job may have sent, become '?'."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        if wants("local"):
            return f"{value.astimezone():%Y-%m-%d %H:%M:%S %Z}"
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
    if isinstance(value, float):
        return f"{value:.1f}"
    return "".join(character if character.isprintable() else "?" for character in str(value))


class Bar:
    """A progress bar on the standard error output, with rate and ETA; silent where that is not a terminal."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        self._progress: Progress | None = None
        if _is_watched():
            from shim.cli.drawing import files_bar

            self._progress = files_bar(label, total, unit)

    def __enter__(self) -> Bar:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._progress.stop()

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        if self._progress:
            self._progress.advance(self._progress.task_ids[0], count)

    def say(self, line: str) -> None:
        """Prints a line on the standard error output, above the bar."""
        if self._progress:
            from rich.text import Text

            self._progress.console.print(Text(line))
        else:
            click.echo(line, err=True)


@contextlib.contextmanager
def working(label: str) -> Iterator[None]:
    """Shows on the standard error output, if that is a terminal, that one long call is running, and since when."""
    if not _is_watched():
        yield
        return
    from shim.cli.drawing import spinner

    with spinner(label):
        yield


def _is_watched() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()
