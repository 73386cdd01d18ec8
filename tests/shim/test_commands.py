"""The command ``osgprod``, as an operator types it."""

from __future__ import annotations

import ast
import contextlib
import csv
import fcntl
import hashlib
import io
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result

from shim import admin, config
from shim.cli import osgprod, terminal
from shim.cli.base import spare_of
from shim.database import call, connect
from shim.evio.writer import write_file
from shim.snapshot import function_files
from shim.words import for_csv
from tests.support import CHECKOUT, PATIENCE_S, WORKER_ROLE, Run, World, wait_until

# Why these have no --dry-run or no --json: there is nothing to foretell, or nothing to read.
NOT_CHANGING = {
    "attempts", "completion", "doctor", "estimate", "files", "health", "jobs list", "jobs needed", "project list",
    "project show", "quarantined", "rate", "rawdata check", "rawdata list", "slices list", "status", "verify", "watch",
    "workers", "workers list", "log", "find", "resources", "slices size", "notify list", "outputs list", "merges list",
}  # fmt: skip
WITHOUT_DRY_RUN = {
    "serve": "runs until it is stopped",
    "demo": "starts its own server",
    "project export": "changes nothing",
    "outputs manifest": "changes nothing",
    "outputs check": "changes nothing without --requeue",
    "notify test": "changes nothing",
    "notify run": "runs until it is stopped",
}
WITHOUT_JSON = {"completion": "prints a script", "serve": "writes a log", "demo": "tells a story"}


def all_commands(group: click.Group = osgprod, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            if command.invoke_without_command:
                yield f"{prefix}{name}", command
            yield from all_commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


COMMANDS = dict(all_commands())


def options(command: click.Command) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


def rows_of(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    rows: list[dict[str, Any]] = json.loads(result.stdout)
    return rows


@pytest.fixture
def busy(world: World) -> World:
    """Three files: one finished, one with a quarantined and a leased block, one untouched."""
    world.set(max_failures=1)
    for seqno in range(3):
        world.add_file(2, run=1, seqno=seqno)
    for process, code in ((0, 0), (1, 0), (2, 9)):
        world.checkout(process, host=f"wn{process}", site="A")
        world.report(process, code, reason="why" if code else None)
    world.checkout(3, host="wn3", site="B")
    call(world.db, "tick")
    return world


def test_each_changing_command_can_foretell_and_each_reading_one_speaks_json() -> None:
    for name, command in COMMANDS.items():
        if name in NOT_CHANGING:
            assert "--json" in options(command) or name in WITHOUT_JSON, name
        else:
            assert "--dry-run" in options(command) or name in WITHOUT_DRY_RUN, name
        assert "--magic" not in options(command), "a secret in an argument is one in the list of processes"


def test_exit_codes_are_in_the_help(run: Run) -> None:
    text = run("--help").output
    for code, meaning in ((0, "success"), (1, "refused"), (2, "wrong usage"), (3, "can't be reached")):
        assert re.search(rf"^ +{code}  .*{meaning}", text, re.MULTILINE)


READING = [
    ("status",), ("status", "p"), ("health",), ("estimate", "p"), ("rate", "p"), ("files", "p"), ("jobs", "p"),
    ("jobs", "p", "1.2"), ("attempts", "p"), ("attempts", "p", "--live"), ("attempts", "p", "--by", "exit"),
    ("attempts", "p", "--by", "site"), ("quarantined", "p"), ("workers", "list", "p"), ("rawdata", "list"),
    ("workers", "list", "p", "--order", "slow"), ("slices", "list", "p"), ("project", "show", "p"),
    ("slices", "list", "p", "--state", "leased"), ("project", "list"), ("log",), ("log", "p"), ("find", "1.2"),
    ("slices", "size", "p"),
]  # fmt: skip


@pytest.mark.parametrize("arguments", READING, ids=" ".join)
def test_reading_command_says_the_same_as_table_and_as_json(
    run: Run, busy: World, arguments: tuple[str, ...]
) -> None:
    rows = rows_of(run(*arguments, "--json"))
    assert rows
    table = run(*arguments)
    assert table.exit_code == 0
    lines = table.stdout.splitlines()
    assert len(lines) == len(rows) + 2, "a head, a rule, and a line a row"
    for name, value in rows[0].items():
        if isinstance(value, str) and not re.match(r"\d{4}-", value):
            assert value in table.output and name in lines[0]


LIMITED = [
    ("rawdata", "list"), ("files", "p"), ("slices", "list", "p"), ("jobs", "p"), ("attempts", "p"),
    ("attempts", "p", "--live"), ("workers", "list", "p"),
]  # fmt: skip


@pytest.mark.parametrize("arguments", LIMITED, ids=" ".join)
def test_list_that_may_go_on_says_so_and_its_help_names_the_limit(
    run: Run, busy: World, arguments: tuple[str, ...]
) -> None:
    for format_ in ([], ["--json"]):
        cut = run(*arguments, "--limit", 1, *format_)
        assert cut.exit_code == 0
        assert cut.stderr == "osgprod: 1 row shown, there may be more: --limit N\n"
        assert run(*arguments, *format_).stderr == "", "all there is needs no word"
    number = 20 if arguments[0] == "workers" else 100
    text = " ".join(run(*arguments, "--help").stdout.split())
    assert f"Rows at most. [default: {number}; 1<=x<=100000]" in text


def test_quarantined_blocks_end_at_the_limit_with_a_line_as_other_lists(run: Run, world: World) -> None:
    world.set(max_failures=1)
    world.add_file(2)
    for process in range(2):
        world.checkout(process)
        world.report(process, 1)
    assert len(rows_of(run("quarantined", "p", "--json"))) == 2
    cut = run("quarantined", "p", "--limit", "1")
    assert cut.stderr == "osgprod: 1 row shown, there may be more: --limit N\n"


def test_every_command_passes_its_limit_to_a_function_that_has_one() -> None:
    """Otherwise its list ends at the function's default, and nothing says so."""
    limited = {path.stem for path in function_files() if "p_limit int" in path.read_text()}
    silent = []
    for path in (CHECKOUT / "shim" / "cli").glob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef) or not any(
                ".command(" in ast.unparse(decorator) for decorator in function.decorator_list
            ):
                continue
            for node in ast.walk(function):
                if (
                    isinstance(node, ast.Call)
                    and ast.unparse(node.func) in ("look", "ask")
                    and isinstance(node.args[0], ast.Constant)
                    and node.args[0].value in limited
                    and "limit" not in {keyword.arg for keyword in node.keywords}
                ):
                    silent.append(f"{path.name}: {function.name} calls {node.args[0].value}")
    assert "quarantined" in limited and silent == []


def test_list_of_more_than_a_hundred_files_ends_there_and_says_so(run: Run, world: World) -> None:
    for seqno in range(101):
        world.add_file(1, seqno=seqno, project=None)
    result = run("rawdata", "list", "--json")
    assert len(rows_of(result)) == 100
    assert result.stderr == "osgprod: 100 rows shown, there may be more: --limit N\n"
    whole = run("rawdata", "list", "--json", "--limit", 200)
    assert len(rows_of(whole)) == 101 and whole.stderr == ""


def test_limit_of_sites_is_not_said_to_hide_any_since_one_row_is_for_all_others(
    run: Run, busy: World
) -> None:
    assert run("attempts", "p", "--by", "site", "--limit", 1).stderr == ""


def test_attempts_of_jobs_that_name_no_site_are_counted_in_a_row_with_that_name(
    run: Run, world: World
) -> None:
    world.add_file(1)
    world.checkout(0)
    world.report(0)
    lines = run("attempts", "p", "--by", "site").stdout.splitlines()
    assert lines[0].split()[0] == "site" and lines[-1].startswith("not named")
    assert rows_of(run("attempts", "p", "--by", "site", "--json"))[0]["site"] is None


def test_list_of_bans_ends_at_the_limit_with_a_line_as_other_lists(run: Run, world: World) -> None:
    for worker in ("wn1", "wn2"):
        call(world.db, "ban_worker", project="p", worker=worker, seconds=60)
    assert len(rows_of(run("workers", "--json"))) == 2
    cut = run("workers", "--limit", "1")
    assert cut.stderr == "osgprod: 1 row shown, there may be more: --limit N\n"


def test_limit_holds_for_outputs_in_each_form_where_it_is_given(run: Run, world: World) -> None:
    world.add_file(3)
    for process in range(3):
        world.checkout(process)
        world.report(process, output_url=f"https://s/{process}")
    for form, lines in (("--csv", 1), ("--urls", 0)):
        assert len(run("outputs", "list", "p", form).stdout.splitlines()) == lines + 3
        assert len(run("outputs", "list", "p", form, "--limit", "2").stdout.splitlines()) == lines + 2


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("jobs", "p", "1.2", "--limit", "5"), "--limit"),
        (("jobs", "p", "--cluster", "1", "--hours", "2"), "--hours"),
        (("attempts", "p", "--live", "--hours", "2"), "--hours"),
        (("attempts", "p", "--live", "--by", "exit"), "--by"),
        (("attempts", "p", "--by", "exit", "--limit", "2"), "--limit"),
        (("attempts", "p", "--by", "site", "--worker", "wn1"), "--worker"),
        (("rawdata", "list", "--next", "5", "--path", "x"), "--path"),
    ],
    ids=str,
)
def test_option_that_would_change_nothing_is_refused(
    run: Run, busy: World, arguments: tuple[str, ...], option: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and f"Error: {option} does not go with " in result.stderr


def test_attempts_of_a_site_are_listed_running_and_by_exit_too(run: Run, busy: World) -> None:
    of_a = {("--live",): 0, ("--by", "exit"): 2, ("--by", "site"): 1, (): 3}
    for form, count in of_a.items():
        assert len(rows_of(run("attempts", "p", *form, "--site", "A", "--json"))) == count, form
    assert len(rows_of(run("attempts", "p", "--live", "--site", "B", "--json"))) == 1


def test_each_number_has_bounds_and_the_error_names_its_option() -> None:
    for name, command in COMMANDS.items():
        for parameter in command.params:
            kind = parameter.type
            assert kind not in (click.INT, click.FLOAT), (name, parameter.name)
            if isinstance(kind, click.IntRange | click.FloatRange):
                assert kind.min is not None and kind.max is not None, (name, parameter.name)
                for text in (kind.min - 1, kind.max + 1, "nan", "inf", "-inf", "abc", "", "1_0", "9" * 5000):
                    with pytest.raises(click.BadParameter, match=r"is not a (whole )?number from ") as error:
                        kind.convert(str(text), parameter, None)
                    assert error.value.param is parameter
                assert kind.convert(str(kind.min), parameter, None) == kind.min


@pytest.mark.parametrize("width", [12, 40, 80, 400])
def test_table_fits_the_width_and_cuts_no_number(width: int) -> None:
    rows = [
        {"blocks_done": 1, "text": "x" * 300, "odd": "a\x1b[31mb\nc [bold]d", "none": None},
        {"blocks_done": 12345678, "text": "y", "odd": None, "none": None},
    ]
    lines = terminal.table(rows, width)
    whole = "\n".join(lines)
    assert width == 12 or all(len(line) <= width for line in lines)
    assert "12345678" in whole and "\x1b" not in whole and "none" not in whole
    assert ("…" in whole) == (width in (40, 80)), "nothing is cut where there is room, nor in records"
    said = "\n".join(terminal.table(rows, width, ("text",)))
    assert "x" * 300 in said, "a sentence is not cut"
    assert width < 80 or "a?[31mb?c [bold]d" in whole, "nothing that a job sends is taken for markup"
    assert width != 40 or len(lines) == 5, "the head of a narrow column has two lines"
    assert width != 12 or len(lines) == 7, "records, where no table fits"


@pytest.mark.parametrize("start", ["/cache/halld/", "root://server.example.org:1094//", "https://a.example/"])
@pytest.mark.parametrize("room", [0, 1, 5])
def test_path_or_url_keeps_its_end_and_its_file_as_long_as_others_can_be_cut(start: str, room: int) -> None:
    ends = [f"/hd_rawdata_000007_{seqno:03d}.evio" for seqno in range(3)]
    rows = [{"key": 1, "path": f"{start}{'x' * 60}{end}", "text": "why" + "y" * 90} for end in ends]
    width = len("…") + len(ends[0]) + terminal.SHORTEST_TEXT
    lines = terminal.table(rows, width + 2 + 3 + room)
    assert [re.search(r"…x*(/\S+)", line)[1] for line in lines[2:]] == ends  # type: ignore[index]
    assert "key" in lines[0] and re.search(r" why\w*…y+$", lines[2]), "a text keeps both ends"
    without_key = terminal.table(rows, width + 1, spare=("key",))
    assert [line.split()[0] for line in without_key[2:]] == [
        f"…{end}" for end in ends
    ] and "key" not in without_key[0]
    narrow = terminal.table(rows, 2 * terminal.SHORTEST_TEXT + 5)
    assert [line.split()[1] for line in narrow[2:]] == [f"…{end[-9:]}" for end in ends], (
        "a table before records"
    )


def test_path_with_wide_characters_is_cut_to_cells() -> None:
    lines = terminal.table([{"path": "/" + "日本語" * 20 + end} for end in ("/a", "/b")], 12)
    assert lines[2:] == ["…語日本語/a", "…語日本語/b"]


def in_terminal(*arguments: str, columns: int, environment: dict[str, str]) -> str:
    """Runs a command in this process, in a terminal: a process of its own would cost 0.2 s of CPU time more."""
    master, slave = pty.openpty()
    with (
        ThreadPoolExecutor(1) as reader,
        pytest.MonkeyPatch.context() as patch,
        os.fdopen(slave, "w", encoding="utf-8") as screen,
        contextlib.redirect_stdout(screen),
        contextlib.redirect_stderr(screen),
        contextlib.suppress(SystemExit),
    ):
        seen = reader.submit(read_to_the_end, master)
        for name, value in {"TERM": "xterm", "COLUMNS": str(columns), **environment}.items():
            patch.setenv(name, value)
        osgprod.main(arguments, "osgprod", standalone_mode=False)
    return seen.result()


def in_real_terminal(*arguments: str, columns: int, environment: dict[str, str]) -> str:
    """Runs the real command in a terminal of that width."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "shim", *arguments],
        cwd=CHECKOUT, env={**os.environ, "TERM": "xterm", "COLUMNS": "", **environment},
        stdout=slave, stderr=slave, stdin=slave,
    )  # fmt: skip
    os.close(slave)
    output = read_to_the_end(master)
    process.wait()
    return output


def read_to_the_end(master: int) -> str:
    output = b""
    with open(master, "rb", buffering=0) as end, contextlib.suppress(OSError):  # the other end is closed
        while chunk := end.read(65536):
            output += chunk
    return output.decode()


def test_status_fits_a_real_terminal_of_80_columns(busy: World) -> None:
    output = in_real_terminal("status", columns=80, environment={"OSGPROD_DSN": busy.dsn})
    lines = output.split("\r\n")
    assert all(len(line) <= 80 for line in lines) and "…" not in output, output
    assert "unallocated" in output and lines[-2].split() == [
        "p",
        "active",
        "3",
        "6",
        "2",
        "1",
        "0",
        "1",
        "2",
        "1",
    ]


@pytest.mark.parametrize(
    ("columns", "quarantined", "has_merges"), [(60, 1, True), (60, 0, False), (50, 1, False), (40, 0, True)]
)
def test_status_of_several_projects_is_a_table_also_in_a_narrow_terminal(
    run: Run, busy: World, columns: int, quarantined: int, has_merges: bool
) -> None:
    """Of quarantined blocks and of merges what is not 0 is shown."""
    (row,) = json.loads(run("status", "p", "--json").stdout)
    rows = [
        {**row, "project": name, "blocks_quarantined": quarantined, "merges_left": 7 * has_merges}
        for name in ("fall2025", "spring26")
    ]
    head, *lines = "\n".join(terminal.table(rows, columns, spare=spare_of(rows))).split("─" * 8)
    assert lines, "a table"
    assert "quarantined" in head or not quarantined, head
    assert "left" in head or not has_merges, head
    assert all(len(line) <= columns for line in head.splitlines()) and "spring26" in lines[-1]


LONG = "/cache/halld/RunPeriod-2026-01/rawdata/Run{run:06d}/{name}"  # 70 characters and more


@pytest.fixture
def far_below(busy: World) -> list[str]:
    """The files of the busy project with long paths and the size of real ones; the paths."""
    rows = busy.db.execute("SELECT rawdata_id, run, path FROM osgprod_data.rawdata ORDER BY path").fetchall()
    paths = [LONG.format(run=row["run"], name=Path(row["path"]).name) for row in rows]
    for row, path in zip(rows, paths, strict=True):
        assert len(path) >= 70
        busy.db.execute(
            "UPDATE osgprod_data.rawdata SET path = %s, size_bytes = 20000000000 WHERE rawdata_id = %s",
            [path, row["rawdata_id"]],
        )
    return paths


@pytest.mark.parametrize(
    ("command", "count", "columns"),
    [("files p", 3, 80), ("rawdata list", 3, 120), ("slices list p", 2, 80)]
    + [("rawdata list", 3, 80), ("attempts p", 2, 80), ("jobs p", 2, 80)]
    + [
        pytest.param(*which, marks=pytest.mark.slow)
        for which in (("files p", 3, 120), ("slices list p", 2, 120))
    ],
)
def test_names_of_files_are_whole_in_a_terminal(
    busy: World, far_below: list[str], command: str, count: int, columns: int
) -> None:
    output = in_terminal(*command.split(), columns=columns, environment={"OSGPROD_DSN": busy.dsn})
    paths = [word for word in output.split() if word.endswith(".evio")]
    names = {path.rpartition("/")[2] for path in paths}
    assert names <= {Path(path).name for path in far_below} and len(names) == count, output
    lines = output.splitlines()
    rule = next(n for n, line in enumerate(lines) if line.strip("─") == "")
    assert all(len(line) <= columns and "…" in line for line in lines[rule + 1 :]), output
    assert len(lines) - rule - 1 == len(paths), "a line a row"


@pytest.mark.parametrize("command", ["quarantined p", "attempts p --live", "jobs needed p"])
def test_nothing_of_a_single_row_is_cut_in_a_terminal(
    busy: World, far_below: list[str], command: str
) -> None:
    busy.set(state="draining")
    output = in_terminal(*command.split(), columns=80, environment={"OSGPROD_DSN": busy.dsn})
    (row,) = json.loads(
        in_terminal(*command.split(), "--json", columns=80, environment={"OSGPROD_DSN": busy.dsn})
    )
    assert all(str(row[name]) in output for name in ("path", "reason") if row.get(name)), output


@pytest.mark.parametrize(
    "command", ["project list", "merges list p", "workers list p --order busy", "outputs list p"]
)
def test_list_is_a_table_in_a_terminal_of_80_columns(busy: World, command: str) -> None:
    busy.set(merge_by="file")
    busy.tick()
    output = in_terminal(*command.split(), columns=80, environment={"OSGPROD_DSN": busy.dsn})
    lines = output.splitlines()
    assert any(line.strip("─") == "" for line in lines) and all(len(line) <= 80 for line in lines), output


@pytest.mark.parametrize("command", ["health p", "log p", "find p", "workers"])
def test_no_command_or_name_is_broken_or_cut_in_a_narrow_terminal(busy: World, command: str) -> None:
    """It is to be copied: the terminal itself breaks a line that is too long."""
    name = "merges:wn17.example.org@127.0.0.1"
    call(busy.db, "ban_worker", project="p", worker=name, seconds=3600, reason="full disk" * 9)
    wide, narrow = (
        in_terminal(*command.split(), columns=columns, environment={"OSGPROD_DSN": busy.dsn}).splitlines()
        for columns in (1000, 80)
    )
    cells = [re.split("  +", line.strip()) for line in wide[2:]]
    assert narrow and all(text in "\n".join(narrow) for row in cells for text in row), narrow
    if command == "health p":
        assert "p  attention  banned-workers: 1 ban is in force, 1 for merges only" in narrow
        assert "  see names and reasons: osgprod workers; lift a ban: osgprod workers unban p NAME" in narrow


def test_loading_files_shows_a_bar_with_rate_and_time_left(world: World, folder: Path) -> None:
    for seqno in range(30):
        write_file(folder / f"hd_rawdata_000007_{seqno:03d}.evio", 3, 2)
    environment = {"OSGPROD_DSN": world.dsn}
    output = in_real_terminal("rawdata", "load", str(folder), columns=100, environment=environment)
    assert "indexing files" in output and "files/s" in output and "left" in output
    assert re.search(r"new +same +renewed +differs +bad +without_bor\r\n.*\r\n +30 +0", output)


def test_rawdata_is_loaded_listed_and_checked_both_ways(run: Run, world: World, folder: Path) -> None:
    paths = [folder / f"hd_rawdata_000007_{seqno:03d}.evio" for seqno in range(4)]
    for path in paths[:3]:
        write_file(path, 3, 2)
    assert rows_of(run("rawdata", "load", folder, "--dry-run", "--json")) == [
        {"new": 3, "same": 0, "renewed": 0, "differs": 0, "bad": 0, "without_bor": 0}
    ]
    assert call(world.db, "list_rawdata") == [], "a dry run changes nothing"
    assert rows_of(run("rawdata", "load", folder, "--json"))[0]["new"] == 3
    assert rows_of(run("rawdata", "load", folder, "--json"))[0]["same"] == 3
    assert [row["path"] for row in rows_of(run("rawdata", "list", "--runs", "7", "--json"))] == list(
        map(str, paths[:3])
    )
    before = call(world.db, "list_rawdata")
    assert run("rawdata", "check", folder).exit_code == 0

    write_file(paths[0], 5, 2)
    paths[1].unlink()
    paths[2].write_bytes(b"no evio")
    write_file(paths[3], 3, 2)
    result = run("rawdata", "check", folder, "--json")
    assert result.exit_code == 1
    faults = {row["path"]: row["what"] for row in json.loads(result.stdout)}
    assert set(faults) == set(map(str, paths))
    assert "nblocks: known" in faults[str(paths[0])]
    assert faults[str(paths[1])] == "registered, but not there"
    assert faults[str(paths[3])] == "not registered"
    assert call(world.db, "list_rawdata") == before, "a check changes nothing"
    result = run("rawdata", "load", folder)
    assert result.exit_code == 1 and str(paths[0]) in result.stderr and str(paths[2]) in result.stderr


def test_folder_with_no_raw_data_is_refused_and_names_what_was_passed_over(run: Run, folder: Path) -> None:
    for name in ("d.evio", "c.evio", "b/hd_rawdata_7_0.evio", "b/a.evio", "notes.txt", "z.evio"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    result = run("rawdata", "load", folder, "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (
        1,
        [{"new": 0, "same": 0, "renewed": 0, "differs": 0, "bad": 0, "without_bor": 0}],
    )
    said, hint = result.stderr.splitlines()
    assert said == f"osgprod: no file hd_rawdata_RRRRRR_SSS.evio is below {folder}"
    names = (f"{folder}/b/a.evio", f"{folder}/b/hd_rawdata_7_0.evio", f"{folder}/c.evio")
    pattern = r"'run(?P<run>\d+)_(?P<seqno>\d+)\.evio'"
    assert hint == f"hint: describe names with --pattern, like {pattern}; skipped: {', '.join(names)}"


def test_check_calls_no_file_gone_that_is_there(run: Run, world: World, folder: Path) -> None:
    raw, elsewhere = folder / "raw", folder / "elsewhere"
    raw.mkdir()
    elsewhere.mkdir()
    (raw / "linked").symlink_to(elsewhere)
    write_file(raw / "run7_1.evio", 3, 2)
    write_file(elsewhere / "hd_rawdata_000007_002.evio", 3, 2)
    pattern = r"(?:run|hd_rawdata_)(?P<run>\d+)_(?P<seqno>\d+)\.evio"
    for source in (raw / "run7_1.evio", raw / "linked" / "hd_rawdata_000007_002.evio"):
        assert run("rawdata", "load", source, "--pattern", pattern).exit_code == 0
    assert run("rawdata", "check", raw, "--pattern", pattern).exit_code == 0
    without = json.loads(run("rawdata", "check", raw, "--json").stdout)
    assert [(row["path"], row["what"][:12]) for row in without] == [
        (str(raw / "run7_1.evio"), "not compared")
    ]
    (elsewhere / "hd_rawdata_000007_002.evio").write_bytes(b"no evio")
    (raw / "run7_1.evio").unlink()
    faults = json.loads(run("rawdata", "check", raw, "--pattern", pattern, "--json").stdout)
    assert [row["path"].rpartition("/")[2] for row in faults] == ["hd_rawdata_000007_002.evio", "run7_1.evio"]
    assert faults[1]["what"] == "registered, but not there"


def test_check_goes_through_all_that_is_registered_below_the_folder_and_no_more(
    run: Run, world: World, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "PAGE_FILES", 2)
    monkeypatch.chdir(folder)
    for name in (r"a_%\c", r"axy\c"):
        (folder / name).mkdir()
        for seqno in range(5):
            write_file(folder / name / f"hd_rawdata_000007_{seqno:03d}.evio", 3, 2)
        assert run("rawdata", "load", name).exit_code == 0
    assert run("rawdata", "check", r"a_%\c").exit_code == 0
    for path in folder.glob("*/*.evio"):
        path.unlink()
    faults = json.loads(run("rawdata", "check", r"a_%\c", "--json").stdout)
    assert [row["path"] for row in faults] == [
        str(folder / r"a_%\c" / f"hd_rawdata_000007_{seqno:03d}.evio") for seqno in range(5)
    ]


DRY = [
    ("project", "set", "p", "lease_s=9999"), ("project", "pause", "p"), ("project", "drain", "p"),
    ("project", "add", "q", "127.%", "w.bash", "", "3"), ("slices", "load", "p"), ("slices", "recycle", "p"),
    ("slices", "load", "p", "--reset", "--yes"), ("project", "stop", "p"),
    ("slices", "unload", "p", "--path", "%_001_002.evio"),
    ("workers", "ban", "p", "wn1"), ("workers", "unban", "p", "wn1"), ("slices", "resume", "p"),
    ("reclaim",), ("reclaim", "p", "--cluster", "1"), ("project", "set-magic", "p", "--magic-file", "-"),
]  # fmt: skip


@pytest.mark.parametrize("arguments", DRY, ids=" ".join)
def test_dry_run_changes_nothing_and_the_real_one_does(
    run: Run, busy: World, arguments: tuple[str, ...]
) -> None:
    busy.db.execute("INSERT INTO osgprod_data.worker_bans SELECT project_id, 'wn1', now() + '1 h', 'x' FROM"
                    " osgprod_data.projects")  # fmt: skip
    call(busy.db, "ban_worker", project="p", worker="wn1", seconds=600)
    busy.db.execute("UPDATE osgprod_data.loaded_files SET suspended_at = now(), suspend_reason = 'x', retest_s = 60,"
                    " retest_at = now() + interval '1 h'")  # fmt: skip
    busy.add_file(1, run=9, project=None)
    busy.let_leases_run_out()

    def everything() -> list[Any]:
        return [
            busy.db.execute(f"SELECT t::text FROM osgprod_data.{table} t ORDER BY 1").fetchall()
            for table in ("projects", "loaded_files", "slices", "worker_bans", "reports")
        ]

    before = everything()
    result = run(*arguments, "--dry-run", input="a new magic\n")
    assert result.exit_code == 0, result.output
    assert everything() == before
    assert run(*arguments, input="a new magic\n").exit_code == 0
    assert everything() != before


def test_settings_are_taken_as_they_are_shown_and_an_empty_value_means_none(run: Run, world: World) -> None:
    def shown(*settings: str) -> dict[str, str]:
        assert run("project", "set", "p", *settings).exit_code == 0
        rows = json.loads(run("project", "show", "p", "--json").stdout)
        return {row["setting"]: row["value"] for row in rows}

    before = shown("max_failures=3")["node_fault_codes"]
    for written in ("[90, 91]", "{90,91}", "90,91"):
        assert shown(f"node_fault_codes={written}")["node_fault_codes"] == "[90, 91]"
    assert shown(f"node_fault_codes={before}")["node_fault_codes"] == before
    after = shown("strip_prefix=", "xrootd_prefix=", "node_fault_codes=")
    assert (after["strip_prefix"], after["xrootd_prefix"], after["node_fault_codes"]) == ("", "", "[]")


def test_time_is_read_as_it_is_shown_wherever_the_server_stands(run: Run, busy: World) -> None:
    (last,) = busy.db.execute("SELECT max(reported_at) AT TIME ZONE 'UTC' AS at FROM osgprod_data.reports")
    busy.db.execute(f"ALTER DATABASE {busy.db.info.dbname} SET TimeZone = 'America/New_York'".encode())
    for minutes, found in ((-1, True), (1, False)):
        since = (last["at"] + timedelta(minutes=minutes)).isoformat(" ", "seconds")
        result = run("slices", "recycle", "p", "--state", "done", "--since", since, "--dry-run", "--json")
        assert bool(json.loads(result.stdout)) == found


def test_file_at_a_second_path_is_told_and_can_be_forgotten(run: Run, world: World, folder: Path) -> None:
    for name in ("first", "second"):
        (folder / name).mkdir()
        write_file(folder / name / "hd_rawdata_000009_000.evio", 4, 2)
        assert run("rawdata", "load", str(folder / name)).exit_code == 0
    result = run("slices", "load", "p", "--json")
    assert rows_of(result)[0]["files"] == rows_of(result)[0]["files_double"] == 1
    assert "from another path" in result.stderr
    second = str(folder / "second" / "hd_rawdata_000009_000.evio")
    assert rows_of(run("rawdata", "forget", second, "--dry-run", "--json")) == [{"path": second}]
    assert run("rawdata", "forget", second).exit_code == 0
    result = run("rawdata", "forget", str(folder / "first" / "%"))
    assert result.exit_code == 1 and "is work of project p" in result.stderr


def test_worker_is_banned_and_unbanned_in_plain_words(run: Run, world: World) -> None:
    assert run("workers", "ban", "p", "wn1", "--seconds", "60").output.startswith("wn1 is banned until ")
    assert call(world.db, "blocked_workers")[0]["reason"] == "by the operator"
    assert run("workers", "unban", "p", "wn1", "--dry-run").output == "wn1 would be no longer banned\n"
    assert run("workers", "unban", "p", "wn1").output == "wn1 is no longer banned\n"
    assert call(world.db, "blocked_workers") == []
    world.add_file(1)
    world.checkout(0, host="wn1", site="SITE_A")
    run("workers", "ban", "p", "--site", "SITE_A", "--seconds", "60")
    for lift in (("unban", "p", "wn1"), ("ban", "p", "wn1", "--seconds", "0")):
        still = run("workers", *lift).stderr
        assert still.startswith("osgprod: wn1@127.0.0.1 is banned until ")
        assert still.endswith(" by the ban of site:SITE_A\n")
    assert run("workers", "unban", "p", "--site", "SITE_A").stderr == ""
    never = run("workers", "unban", "p", "wm1")
    assert never.stdout == "wm1 was not banned\n"
    assert never.stderr.startswith("osgprod: no job of project p was on wm1 within seven days")
    assert run("workers", "ban", "p", "wn1", "--seconds", "0").output == (
        "wn1 was not banned; its failures until now count against it no longer\n"
    )
    assert call(world.db, "blocked_workers") == []
    world.report(0)
    for name in ("merges:wn1", "merges:site:SITE_A", "merges:all", "all"):
        assert run("workers", "ban", "p", name).stderr == "", "such jobs are known"
        assert run("workers", "unban", "p", name).stderr == ""


def test_command_that_changes_nothing_does_not_say_that_it_did(run: Run, world: World) -> None:
    def logged() -> list[dict[str, object]]:
        return call(world.db, "list_operations", project="p")

    run("project", "set-magic", "p", "--magic-file", "-", input="new\n")
    run("notify", "add", "me", "env:ME", "--project", "p")
    run("project", "stop", "p")
    before = logged()
    again = run("project", "set-magic", "p", "--magic-file", "-", input="new\n").stdout
    assert again.endswith(
        "project p has this magic already; nothing is changed, nor the end of the former one\n"
    )
    run("notify", "add", "me", "env:ME", "--project", "p")
    for state, said in (("stop", "is stopped; 0 jobs still run"), ("pause", "is paused")):
        assert said in run("project", state, "p").stdout
    assert "has these values already" in run("project", "set", "p", "probe_jobs=0", "max_live=none").stdout
    for command, said in (
        (("merges", "retry", "p"), "no such merge"),
        (("slices", "recycle", "p"), "no slice of project p is quarantined, or waits after failures"),
        (("slices", "recycle", "p", "--exit-code", "7"), "no such slice"),
        (("slices", "resume", "p"), "no such file of project p is suspended"),
        (("reclaim", "p"), "no lease has expired"),
        (("reclaim", "p", "--cluster", "7"), "no such slice is leased"),
        (("workers", "stop", "p", "all"), "0 attempts are stopped"),
    ):
        assert said in run(*command).output, command
    assert run("notify", "remove", "you").exit_code == 1
    assert logged() == before
    assert run("notify", "add", "me", "env:YOU", "--project", "p").exit_code == 0
    assert len(logged()) == len(before) + 1


def test_test_by_the_first_jobs_begins_again_only_with_another_script_or_number(world: World) -> None:
    row = "SELECT unproven, tested_since FROM osgprod_data.projects"
    world.set(workscript="work.bash", probe_jobs=5)
    world.db.execute("UPDATE osgprod_data.projects SET unproven = 0")
    before = world.db.execute(row).fetchone()
    world.set(workscript="work.bash", probe_jobs=5)
    assert world.db.execute(row).fetchone() == before
    world.set(workscript="other.bash")
    after = world.db.execute(row).fetchone()
    assert after and before and after["unproven"] == 5 and after["tested_since"] > before["tested_since"]


def test_project_is_removed_only_without_live_attempts_and_by_force_when_work_was_done(
    run: Run, world: World, folder: Path
) -> None:
    world.add_file(2)
    world.checkout(0)
    live = run("project", "remove", "p", "--force")
    assert live.exit_code == 1 and "project p has 1 live attempt" in live.stderr
    world.report(0)
    done = run("project", "remove", "p")
    assert done.exit_code == 1 and "project p has 1 block done" in done.stderr
    assert "osgprod project export p DIR" in done.stderr
    counts = {"files": 1, "slices": 1, "blocks_done": 1, "attempts": 1, "reports": 1}
    foretold = run("project", "remove", "p", "--dry-run", "--json")
    assert (json.loads(foretold.stdout), foretold.stderr) == (
        [counts],
        "osgprod: project p would be removed\n",
    )
    assert world.progress()["blocks_done"] == 1, "a dry run changes nothing"
    removed = run("project", "remove", "p", "--force", "--json")
    assert (json.loads(removed.stdout), removed.stderr) == ([counts], "osgprod: project p is removed\n")
    assert call(world.db, "progress") == []
    assert len(call(world.db, "list_rawdata")) == 1, "registered files stay"
    world.with_project("p")
    assert call(world.db, "load_slices", project="p")[0]["blocks"] == 2, "and can be loaded again"


def test_export_removes_no_folder_that_it_has_not_made(run: Run, world: World, folder: Path) -> None:
    world.add_file(1)
    part = folder / "spring.part"
    part.mkdir()
    (part / "thesis.tex").write_text("years of work")
    result = run("project", "export", "p", folder / "spring")
    assert result.exit_code == 1
    assert f"{part} is there already" in result.stderr and "remove it" not in result.stderr
    assert (part / "thesis.tex").read_text() == "years of work"
    assert not (folder / "spring").exists()
    (folder / "file").write_text("")
    assert run("project", "export", "p", folder / "file" / "spring").exit_code == 1
    assert run("project", "export", "nope", folder / "autumn").exit_code == 1
    assert not (folder / "autumn.part").exists(), "its own is removed"


def test_export_holds_every_row_and_no_secret_and_is_whole_or_not_there(
    run: Run, world: World, folder: Path
) -> None:
    world.add_file(3)
    for process, code in enumerate((0, 1)):
        world.checkout(process)
        world.report(process, code)
    result = run("project", "export", "p", folder / "kept")
    assert result.exit_code == 0, result.output
    manifest = json.loads((folder / "kept" / "manifest.json").read_text())
    rows = {}
    for name, table in manifest["files"].items():
        text = (folder / "kept" / f"{name}.csv").read_bytes()
        assert hashlib.sha256(text).hexdigest() == table["sha256"]
        rows[name] = list(csv.DictReader(io.StringIO(text.decode())))
        assert len(rows[name]) == table["rows"]
        assert not any("digest" in column or "token" in column for row in rows[name] for column in row)
    assert {name: len(found) for name, found in rows.items()} == {
        "files": 1, "slices": 2, "attempts": 2, "reports": 2,
        "merges": 0, "outputs": 0, "lost_outputs": 0, "versions": 0,
    }  # fmt: skip
    assert [(row["block1"], row["state"]) for row in rows["slices"]] == [("1", "done"), ("2", "ready")]
    assert rows["files"][0]["path"] == "/dcache/hd_rawdata_000001_001.evio"
    assert manifest["settings"]["lease_s"] == "21600"
    again = run("project", "export", "p", folder / "kept")
    assert again.exit_code == 1 and "is there already" in again.stderr
    unknown = run("project", "export", "q", folder / "other")
    assert unknown.exit_code == 1 and "there is no project 'q'" in unknown.stderr
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(("kept", "other"))) == [
        "kept"
    ]


def test_magic_comes_from_a_file_the_standard_input_or_the_environment(
    run: Run, world: World, folder: Path
) -> None:
    (folder / "magic").write_text("from a file\n")
    for arguments, more in (
        (["--magic-file", folder / "magic"], {}),
        (["--magic-file", "-"], {"input": "from a file\n"}),
        ([], {"env": {"OSGPROD_MAGIC": "from a file"}}),
    ):
        call(world.db, "set_magic", project="p", magic="other")
        world.add_file(1)
        result = run("project", "set-magic", "p", *arguments, **more)
        assert result.exit_code == 0 and "from a file" not in result.output
        assert world.checkout(1, magic="from a file")["status"] in ("assigned", "no-work", "wait")


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        (("status", "nope"), 1, "osgprod: there is no project 'nope'", "hint: osgprod project list"),
        (("project", "set", "p", "wait_s=9", "lease_s=soon"), 2,
         "p: lease_s can't be 'soon'", "hint: osgprod project set --help"),
        (("project", "set", "p", "wait_s=0"), 2, "p: wait_s must be from 1 to 86400", "hint: osgprod"),
        (("project", "set", "p", "lease_s=1000"), 2, "p: lease_s must be at least twice heartbeat_s", "hint: osgprod"),
        (("project", "add", "q", "127.%", "../w", "", "1"), 2, "q: workscript must be a file name",
         "hint: osgprod project add --help"),
        (("project", "set", "p", "state=on"), 2, "p: state can't be 'on'", "hint: osgprod"),
        (("project", "set", "p", "maxblockspercore="), 2, "p: maxblockspercore needs a value", "hint: osgprod"),
        (("project", "set", "p", "lease=9000"), 2, "there is no setting 'lease'", "hint: is lease_s meant?"),
        (("project", "set", "p", "zzz=1"), 2, "there is no setting 'zzz'", "hint: osgprod project"),
        (("project", "set", "p", "lease"), 2, "'lease' is not NAME=VALUE", ""),
        *((("slices", "load", "p", "--runs", runs), 2, "not a run list like 1001,1005-1010", "")
          for runs in ("1-x", "5-3", "7-", "1,,2", "1-999999999")),
        *((("slices", "list", "p", "--limit", number), 2, f"'--limit': '{number}' is not a whole number", "")
          for number in ("0", "-5", "3000000000", "9" * 40)),
        (("jobs", "p", "12"), 2, "'12' is not a job like 4711.0", "hint: --cluster"),
        (("project", "set-magic", "p"), 2, "no magic was given", "hint: --magic-file FILE"),
        (("serve", "--port", "99999"), 2, "'99999' is not a whole number from 0 to 65535", ""),
        (("rawdata", "load", str(CHECKOUT / "sql")), 1, "osgprod: no file hd_rawdata_RRRRRR_SSS.evio", "hint: name"),
        (("jobs", "p", "1.77"), 1, "osgprod: job 1.77 has no attempt", "hint: osgprod jobs"),
        (("attempts", "p", "--outcome", "good"), 2, "an outcome is done, failed", "hint: leave it out"),
        (("attempts", "p", "--hours", "99999999999"), 2, "'--hours': '99999999999' is not a whole number", ""),
        *((("slices", "recycle", "p", "--since", time), 2, f"'--since': '{time}' is not a time like 2026-05-01", "")
          for time in ("someday", "", "2026-02-30", "infinity", "0001-01-01T00:00+14:00")),
        (("rawdata", "load", "/", "--since", "yesterday"), 2, "'--since': 'yesterday' is not a time like", ""),
        *((("slices", "recycle", "p", "--client", client), 2, f"'--client': '{client}' is not an address or", "")
          for client in ("foo", "", "10.1", "10.0.0.0/33")),
        *((("jobs", "p", job), 2, f"'{job}' is not a job like 4711.0", "hint: --cluster")
          for job in ("", "1", "1.2.3", "\u0661.\u0662", "99999999999.1", "1.-1")),
        (("reclaim", "p", "--process", "4"), 2, "without its cluster", "hint: add the cluster"),
        (("workers", "ban", "p", "wn1", "--seconds", "-1"), 2, "'--seconds': '-1' is not a whole number", ""),
        (("rawdata", "load", str(CHECKOUT), "--pattern", "x("), 2, "missing ), unterminated subpattern", ""),
        (("rawdata", "check", str(CHECKOUT), "--pattern", "x"), 2, "it needs groups named run and seqno", ""),
        (("watch", "--count", "0"), 2, "'0' is not a whole number from 1", ""),
        (("nonsense",), 2, "No such command 'nonsense'", ""),
        (("rawdata", "load", "/nonexistent"), 2, "/nonexistent does not exist", ""),
        (("rawdata", "load", "s3://x/hd_rawdata_000001_000.evio"), 2, "no such scheme; use dav://, davs://", ""),
        (("project", "set", "p", "lease_s=7200", "lease-s =7300"), 2, "lease_s is given twice", ""),
        (("notify", "add", "a b", "env:X"), 2, "the name of a target can't be 'a b'", "hint: a name has 1 to 63"),
        (("notify", "add", "me", "X"), 2, "not 'X...'", "hint: put the address into"),
    ],
)  # fmt: skip
def test_error_is_one_line_with_a_hint_and_no_traceback(
    run: Run, arguments: tuple[str, ...], code: int, message: str, hint: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == code and isinstance(result.exception, SystemExit | None)
    assert message in result.stderr and hint in result.stderr and "Traceback" not in result.output
    assert not hint or len(result.stderr.splitlines()) == 2


def test_list_without_jobs_says_for_which_jobs_it_looked(world: World, run: Run) -> None:
    assert "no job started in that time" in run("jobs", "p").stdout
    assert "no job of cluster 7 has started" in run("jobs", "p", "--cluster", "7").stdout


def in_shell(command: str, dsn: str = "host=/nonexistent", **environment: str) -> tuple[int, str]:
    """Runs ``osgprod`` with what a shell does to its outputs; the exit code, and what it says on the error output."""
    ended = subprocess.run(
        ["bash", "-c", f'"$PYTHON" -m shim {command}'],
        cwd=CHECKOUT, env={**os.environ, "PYTHON": sys.executable, "OSGPROD_DSN": dsn, **environment},
        capture_output=True, text=True,
    )  # fmt: skip
    return ended.returncode, ended.stderr


def test_terminal_without_a_character_shows_a_question_mark(busy: World) -> None:
    assert in_shell("attempts p | grep -c '^?*$' >/dev/null", busy.dsn, PYTHONIOENCODING="latin-1") == (0, "")


def test_set_magic_asks_on_a_terminal_for_the_magic(world: World) -> None:
    world.add_file(1)
    master, slave = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", sys.executable, "-m", "shim", "project", "set-magic", "p"],
        cwd=CHECKOUT, env={**os.environ, "OSGPROD_DSN": world.dsn}, stdin=slave, stdout=slave, stderr=slave,
    )  # fmt: skip
    os.close(slave)
    shown = b""
    for question in (b"magic: ", b"confirmation: "):
        while not shown.lower().endswith(question):
            shown += os.read(master, 1000)
        os.write(master, b"typed-by-hand\n")
    with contextlib.suppress(OSError):  # the end of the terminal
        while more := os.read(master, 1000):
            shown += more
    os.close(master)
    assert process.wait() == 0, shown
    assert b"project p has a new magic" in shown and b"typed-by-hand" not in shown
    assert world.checkout(1, magic="typed-by-hand")["status"] == "assigned"


@pytest.mark.parametrize(
    ("key", "code", "said"), [("\x03", 128 + signal.SIGINT, ""), ("\x04", 1, "the input ended")]
)
def test_question_that_is_answered_by_ctrl_c_or_ctrl_d_changes_nothing(
    world: World, key: str, code: int, said: str
) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", sys.executable, "-m", "shim", "project", "set-magic", "p"],
        cwd=CHECKOUT, env={**os.environ, "OSGPROD_DSN": world.dsn}, stdin=slave, stdout=slave, stderr=slave,
    )  # fmt: skip
    os.close(slave)
    shown = b""
    while not shown.endswith(b"magic: "):
        shown += os.read(master, 1000)
    os.write(master, key.encode())
    shown = read_to_the_end(master).encode()
    assert (process.wait(), b"Abort" in shown) == (code, False), shown
    assert said.encode() in shown and (said or shown.strip() == b""), shown
    world.add_file(1)
    assert world.checkout(1)["status"] == "assigned"


@pytest.mark.parametrize(
    "command",
    ["status --json", "--help"]
    + [pytest.param(command, marks=pytest.mark.slow) for command in ("--version", "completion bash")],
)
def test_output_that_takes_nothing_is_one_line_with_a_hint(world: World, command: str) -> None:
    full = "osgprod: the output can't be written: No space left on device\nhint: make room on the disk\n"
    assert in_shell(f"{command} >/dev/full", world.dsn) == (1, full)
    code, said = in_shell(f"{command} >&-", world.dsn)
    assert (code, said.splitlines()[0]) == (
        1,
        "osgprod: the standard output is closed",
    ) and "\nhint: " in said


@pytest.mark.parametrize("command", ["status", pytest.param("--help", marks=pytest.mark.slow)])
def test_command_whose_reader_has_enough_ends_as_others_do_without_a_word(world: World, command: str) -> None:
    """Like ``osgprod ... | head``; bash calls 128 + SIGPIPE what SIGPIPE kills."""
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-m", "shim", command],
        stdout=writer, stderr=subprocess.PIPE, env=os.environ | {"OSGPROD_DSN": world.dsn},
    )  # fmt: skip
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_help_of_a_group_has_the_first_sentence_of_each_command_whole(run: Run) -> None:
    for name in (
        "",
        *(name for name, command in osgprod.commands.items() if isinstance(command, click.Group)),
    ):
        assert "..." not in run(*name.split(), "--help").output.partition("Commands:")[2], name


@pytest.mark.parametrize("group", ["", "project", "jobs", "outputs"])
def test_group_without_a_command_prints_its_help(run: Run, group: str) -> None:
    bare = run(*group.split())
    assert (bare.exit_code, bare.output) == (2, run(*group.split(), "--help").output)


def test_what_is_not_utf8_is_one_line_with_a_hint(world: World, folder: Path) -> None:
    magic = folder / "magic"
    magic.write_bytes(b"\xff\xfesecret")
    for command, expected, message in (
        (f"project set-magic p --magic-file {magic}", 1, f"the magic in {magic} is not UTF-8 text"),
        (f"project set-magic p --magic-file - <{magic}", 1, "the magic in - is not UTF-8 text"),
        ("project set-magic p --magic-file - <&-", 1, "the standard input is closed"),
        ("status $'\\xff'", 2, "an argument or a variable is not UTF-8 text"),
    ):
        code, said = in_shell(command, world.dsn, PYTHONUTF8="0", LC_ALL="C.UTF-8")
        lines = said.splitlines()
        assert (code, lines[0], len(lines)) == (expected, f"osgprod: {message}", 2), said
        assert lines[1].startswith("hint: ") and "secret" not in said


@pytest.mark.parametrize(
    "command, without",
    [
        ("--version", "psycopg asyncio ssl"),
        ("status --help", "psycopg asyncio ssl"),
        ("status --json", ""),
        ("slices load p --dry-run", "rich.console"),
    ],
)
def test_a_command_loads_only_what_it_needs(command: str, without: str) -> None:
    """Each start of a command, and each completion of a shell, would wait for it."""
    never = "rich.progress rich.table yoyo sqlparse jwt uvicorn starlette jinja2 psycopg_pool difflib"
    program = (
        "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr));"
        "from shim.cli import run; run()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, *command.split()],
        cwd=CHECKOUT, env={**os.environ, "OSGPROD_DSN": "host=/nonexistent"}, capture_output=True, text=True,
    )  # fmt: skip
    loaded = ended.stderr.splitlines()[-1].split()
    assert "click" in loaded and ended.returncode == (3 if "p" in command.split() or not without else 0)
    assert [module for module in f"{never} {without}".split() if module in loaded] == []


def test_ctrl_c_while_modules_load_is_no_traceback() -> None:
    program = """if True:
        import os, signal, sys
        from importlib.abc import MetaPathFinder

        class Interrupted(MetaPathFinder):
            def find_spec(self, name, path, target=None):
                if name == "click":
                    os.kill(os.getpid(), signal.SIGINT)

        sys.meta_path.insert(0, Interrupted())
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from shim.__main__ import main
        main()
    """
    ended = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (128 + signal.SIGINT, "", "")


def test_only_a_database_that_is_away_is_exit_code_3(run: Run, world: World) -> None:
    world.db.execute("ALTER FUNCTION osgprod.progress RENAME TO away")
    for sqlstate, code in (("57014", 1), ("40P01", 1), ("53100", 1), ("57P01", 3), ("08006", 3)):
        world.db.execute(
            "CREATE OR REPLACE FUNCTION osgprod.progress(p_project text DEFAULT NULL) RETURNS void LANGUAGE plpgsql"
            f" AS $$ BEGIN RAISE EXCEPTION 'some fault' USING ERRCODE = '{sqlstate}'; END $$"
        )
        result = run("project", "list")
        assert (result.exit_code, "osgprod: some fault" in result.stderr) == (code, True), result.output


def test_unreachable_database_is_exit_code_3_and_a_missing_role_is_named(run: Run, world: World) -> None:
    result = run("status", env={"OSGPROD_DSN": "host=/nonexistent connect_timeout=1"})
    assert result.exit_code == 3 and "hint: start the server" in result.stderr
    result = run("status", env={"OSGPROD_DSN": f"{world.dsn} dbname=nowhere"})
    assert result.exit_code == 3 and "hint: correct login and database in OSGPROD_DSN" in result.stderr
    result = run("verify", "p", env={"OSGPROD_DSN": world.dsn + WORKER_ROLE})
    assert result.exit_code == 1 and "member of osgprod_operator" in result.stderr
    result = run("doctor", env={"OSGPROD_DSN": world.dsn + WORKER_ROLE})
    assert result.exit_code == 1 and "GRANT osgprod_operator TO" in result.stdout


def test_role_in_the_dsn_of_which_the_login_is_no_member_is_named(run: Run, world: World) -> None:
    world.db.execute("CREATE ROLE stranger LOGIN")
    try:
        result = run("status", env={"OSGPROD_DSN": f"{world.dsn} user=stranger{WORKER_ROLE}"})
    finally:
        world.db.execute("DROP ROLE stranger")
    assert result.exit_code == 3 and 'permission denied to set role "osgprod_worker"' in result.stderr
    assert "hint: make the login a member of that role (GRANT)" in result.stderr


@pytest.mark.parametrize("text", ["osgprod", "dbname=osgprod password=top secret", "dbname=osgprod nosuch=1"])
@pytest.mark.parametrize(
    ("variable", "command"),
    [
        ("OSGPROD_DSN", ("status",)),
        ("OSGPROD_DSN", ("serve", "--port", "0")),
        ("OSGPROD_READ_DSN", ("status",)),
        ("OSGPROD_OPERATOR_DSN", ("serve", "--port", "0")),
        ("OSGPROD_ORIGINAL_DSN", ("import-original", "p")),
    ],
)
def test_malformed_dsn_is_wrong_usage_and_is_not_repeated(
    run: Run, variable: str, command: tuple[str, ...], text: str
) -> None:
    result = run(*command, env={variable: text})
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        f"osgprod: {variable} must be a connection string of libpq, like: host=db.example.org dbname=osgprod user=me",
        "hint: docs/operations.md lists the settings of the shim with default and unit",
    ]


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("PGPORT", "abc", 'invalid integer value "abc" for connection option "port"'),
        ("PGSSLMODE", "odd", 'invalid sslmode value: "odd"'),
        ("OSGPROD_DSN", "host=localhost sslrootcert=system sslmode=prefer", 'weak sslmode "prefer"'),
        ("PGSSLMINPROTOCOLVERSION", "odd", 'invalid "ssl_min_protocol_version" value: "odd"'),
        ("PGSERVICE", "odd", 'definition of service "odd" not found'),
    ],
)
def test_odd_variable_of_libpq_is_wrong_usage(run: Run, variable: str, value: str, message: str) -> None:
    quiet = {"OSGPROD_DSN": "", "PGHOST": "/nonexistent", "PGSERVICEFILE": "/dev/null"}
    result = run("status", env={**quiet, variable: value})
    assert result.exit_code == 2 and message in result.stderr
    assert "hint: correct OSGPROD_DSN, or PGPORT, PGSSLMODE ... of libpq" in result.stderr


@pytest.mark.parametrize(
    ("variable", "rule"),
    [
        ("OSGPROD_DATA_FOLDER", "a folder that is there or can be made (Not a directory)"),
        ("OSGPROD_PG_BINDIR", "a folder with initdb and postgres"),
        ("PROMETHEUS_MULTIPROC_DIR", "a folder in which files can be made"),
    ],
)
def test_folder_that_can_not_be_is_named_with_its_variable(
    run: Run, folder: Path, variable: str, rule: str
) -> None:
    ours = {
        "OSGPROD_DSN": "",
        "OSGPROD_DATA_FOLDER": str(folder / "data"),
        **dict.fromkeys(config.LIBPQ_SERVER, ""),
    }
    result = run("serve", "--port", "0", env={**ours, variable: "/dev/null/x"})
    assert result.exit_code == 2
    assert result.stderr.startswith(f"osgprod: {variable} is '/dev/null/x', but must be {rule}\nhint: ")


def test_workers_of_a_project_need_no_list(run: Run, busy: World) -> None:
    assert (
        run("workers", "p", "--order", "busy").output == run("workers", "list", "p", "--order", "busy").output
    )
    assert run("workers", "--json").output == "[]\n"


def test_missing_password_of_the_database_is_named(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def ask_for_a_password() -> None:
            with server.accept()[0] as client:
                client.recv(1000)
                client.sendall(b"R" + struct.pack("!ii", 8, 3))  # AuthenticationCleartextPassword
                client.recv(1000)

        thread = threading.Thread(target=ask_for_a_password)
        thread.start()
        where = f"host=127.0.0.1 port={server.getsockname()[1]} user=me dbname=d"
        quiet = "sslmode=disable gssencmode=disable passfile=/nonexistent connect_timeout=120"
        result = run("status", env={"OSGPROD_DSN": f"{where} {quiet}"})
        thread.join()
    assert result.exit_code == 3 and "hint: put the password into ~/.pgpass" in result.stderr


def test_verify_and_doctor_end_with_1_when_something_is_wrong(run: Run, busy: World, folder: Path) -> None:
    assert run("verify", "p").exit_code == 0
    busy.db.execute("UPDATE osgprod_data.loaded_files SET state = 'complete' WHERE seqno = 1")
    result = run("verify", "p", "--json")
    assert result.exit_code == 1 and json.loads(result.stdout)
    busy.db.execute("UPDATE osgprod_data.loaded_files SET state = 'allocated' WHERE seqno = 1")

    result = run("doctor", "--json", env={"OSGPROD_DOCUMENT_ROOT": str(folder)})
    found = {row["what"]: row for row in json.loads(result.stdout)}
    assert result.exit_code == 1
    assert (
        "No such file" in found["work script of p"]["found"]
        and "put the project's" in found["work script of p"]["advice"]
    )
    assert (
        found["clock"]["is_well"]
        and found["version of the database"]["is_well"]
        and found["files of p"]["is_well"]
    )
    assert not found["work of p"]["is_well"], "a block is in quarantine"

    (folder / "p").mkdir()
    (folder / "p" / "osgprod_work.bash").write_bytes((CHECKOUT / "worker" / "osgprod_work.bash").read_bytes())
    call(busy.db, "set_project", project="p", settings='{"xrootd_prefix": "root://127.0.0.1:1/"}')
    result = run("doctor", "--json", env={"OSGPROD_DOCUMENT_ROOT": str(folder)})
    found = {row["what"]: row for row in json.loads(result.stdout)}
    assert found["work script of p"]["is_well"] and "merge script of p" not in found
    assert not found["files of p"]["is_well"] and "refused" in found["files of p"]["found"]
    assert "what to do" in run("doctor", env={"OSGPROD_DOCUMENT_ROOT": str(folder)}).output
    as_csv = run("doctor", "--csv", env={"OSGPROD_DOCUMENT_ROOT": str(folder)}).stdout
    assert as_csv.startswith("what,is_well,found,advice\n")
    for wrong in ("xrootd.example.org", "https:/xrootd.example.org"):
        # As an older release took it.
        busy.db.execute("UPDATE osgprod_data.projects SET xrootd_prefix = %s", (wrong,))
        result = run("doctor", "--json", env={"OSGPROD_DOCUMENT_ROOT": str(folder)})
        found = {row["what"]: row for row in json.loads(result.stdout)}
        assert found["files of p"]["found"] == f"{wrong} is neither a URL nor an absolute folder"
    call(busy.db, "set_project", project="p", settings='{"xrootd_prefix": null, "merge_by": "file"}')
    result = run("doctor", "--json", env={"OSGPROD_DOCUMENT_ROOT": str(folder)})
    found = {row["what"]: row for row in json.loads(result.stdout)}
    assert found["files of p"]["is_well"]
    assert "No such file" in found["merge script of p"]["found"]
    assert "put the project's merge script" in found["merge script of p"]["advice"]


def test_doctor_and_migrate_foretell_what_a_migration_would_do(run: Run, world: World) -> None:
    assert run("migrate", "--dry-run").output == "up to date, nothing to do\n"
    world.db.execute("COMMENT ON FUNCTION osgprod.alive() IS 'changed by hand'")
    shown = run("migrate", "--dry-run").output
    assert shown.endswith("renewed: somebody had changed them\n")
    assert run("migrate", "--dry-run").output == shown, "nothing was changed"
    result = run("doctor", "--json")
    assert result.exit_code == 1 and json.loads(result.stdout)[-1]["advice"].startswith("osgprod migrate")
    assert run("migrate").output == shown
    world.db.execute("CREATE DATABASE empty")
    empty = world.dsn.replace(f"dbname={world.db.info.dbname}", "dbname=empty")
    for more in ((), ("--dry-run",)):
        refused = run("migrate", *more, env={"OSGPROD_DSN": world.dsn + WORKER_ROLE}).stderr
        assert "\nhint: migrate as a superuser, or as who owns the database" in refused, more
    try:
        lines = run("migrate", "--dry-run", env={"OSGPROD_DSN": empty}).output.splitlines()
        doctor = json.loads(run("doctor", "--json", env={"OSGPROD_DSN": empty}).stdout)
    finally:
        world.db.execute("DROP DATABASE empty")
    migrations = sorted(path.stem for path in (CHECKOUT / "sql" / "migrations").glob("[0-9]*[!k].sql"))
    assert lines == [f"apply {name}" for name in migrations if not name.endswith(".rollback")]
    assert doctor[-1]["found"] == f"older than this program: {lines[0]}, and {len(lines) - 1} more"


def test_watch_prints_what_happens_and_nothing_that_could_fool_a_terminal(world: World) -> None:
    watching = subprocess.Popen(
        [sys.executable, "-m", "shim", "watch", "--count", "3"],
        cwd=CHECKOUT, env={**os.environ, "OSGPROD_DSN": world.dsn}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert watching.stderr is not None
    assert watching.stderr.readline() == "listening\n"
    call(world.db, "ban_worker", project="p", worker="wn1", seconds=60, reason="too hot\x1b[2J")
    world.db.execute("SELECT pg_notify('osgprod', 'no JSON' || chr(27) || '[2J')")
    world.db.execute("NOTIFY osgprod, '[1]'")
    output, errors = watching.communicate(timeout=PATIENCE_S)
    assert watching.returncode == 0 and errors == ""
    lines = output.splitlines()
    assert re.fullmatch(r"\S+ p worker-banned until=\S+ reason=too hot \[2J worker=wn1", lines[0])
    assert lines[1:] == ["- - unknown text=no JSON?[2J", "- - unknown text=[1]"]


def test_watch_without_rights_says_so_and_does_not_listen(run: Run, world: World) -> None:
    world.db.execute("CREATE ROLE nobody_of_ours")
    try:
        result = run("watch", env={"OSGPROD_DSN": f"{world.dsn} options='-c role=nobody_of_ours'"})
    finally:
        world.db.execute("DROP ROLE nobody_of_ours")
    assert result.exit_code == 1 and "listening" not in result.output
    assert (
        "permission denied" in result.stderr and "hint: this takes a login that is a member" in result.stderr
    )


def test_watch_ends_well_with_ctrl_c(world: World) -> None:
    watching = subprocess.Popen(
        [sys.executable, "-m", "shim", "watch"],
        cwd=CHECKOUT, env={**os.environ, "OSGPROD_DSN": world.dsn}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert watching.stderr is not None
    assert watching.stderr.readline() == "listening\n"
    watching.send_signal(signal.SIGINT)
    _, errors = watching.communicate(timeout=PATIENCE_S)
    assert (watching.returncode, errors) == (0, "")


def test_ctrl_c_ends_a_command_that_waits_without_a_word(world: World) -> None:
    with world.db.transaction():
        world.db.execute("LOCK TABLE osgprod_data.projects IN ACCESS EXCLUSIVE MODE")
        waiting = subprocess.Popen(
            [sys.executable, "-m", "shim", "status"],
            cwd=CHECKOUT, env={**os.environ, "OSGPROD_DSN": world.dsn}, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        wait_until(
            lambda: (
                world.db.execute(
                    "SELECT FROM pg_locks WHERE NOT granted AND relation = 'osgprod_data.projects'::regclass"
                ).fetchone()
                is not None
            ),
            "the command waits for the lock",
        )
        waiting.send_signal(signal.SIGINT)
        said = waiting.communicate(timeout=PATIENCE_S)
    assert (waiting.returncode, *said) == (128 + signal.SIGINT, b"", b"")


@pytest.mark.parametrize(
    ("module", "does", "command", "code"),
    [
        ("notify", "_deliver_to_all", ("notify", "run"), 0),
        ("jobs", "_keep_once", ("jobs", "keep", "p", "--most", "1"), 128 + signal.SIGINT),
        ("production", "_progress", ("status", "--watch"), 0),
    ],
)
def test_ctrl_c_that_gets_lost_in_a_library_ends_a_command_that_repeats_something(
    world: World, tmp_path: Path, module: str, does: str, command: tuple[str, ...], code: int
) -> None:
    """asyncio.run, which Apprise calls, may take it for a reason to end its own task alone."""
    for name in ("condor_submit", "condor_q"):
        (tmp_path / name).symlink_to("/bin/true")
    program = (
        "import contextlib, signal\nfrom shim.cli import run, jobs, notify, production\ncalls = []\n"
        "def lose(*arguments):\n"
        "    calls.append(1)\n"
        "    with contextlib.suppress(KeyboardInterrupt):\n"
        "        len(calls) == 2 and signal.raise_signal(signal.SIGINT)\n"
        "    return [] if len(calls) < 3 else print('again')\n"
        f"{module}.{does} = lose\nrun()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, *command, "--interval", "1"],
        cwd=CHECKOUT, env={**os.environ, "OSGPROD_DSN": world.dsn, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert ended.returncode == code, ended.stderr
    assert "again" not in ended.stdout


def test_ctrl_c_that_gets_lost_in_a_library_ends_watch(world: World) -> None:
    program = (
        "import contextlib, signal, psycopg\nfrom shim.cli import run, watch\nwatch.CHECK_S = 1e6\n"
        "receive = psycopg.Connection.notifies\n"
        "def lose(self, **arguments):\n"
        "    with contextlib.suppress(KeyboardInterrupt):\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "    return receive(self, **arguments)\n"
        "psycopg.Connection.notifies = lose\nrun()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, "watch"],
        cwd=CHECKOUT, env={**os.environ, "OSGPROD_DSN": world.dsn}, capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "listening\n")


def test_versions_that_took_part_are_shown_with_the_project(run: Run, world: World) -> None:
    assert "versions" not in run("project", "show", "p").stdout
    world.add_file(1)
    world.checkout(
        0, templates=json.dumps({"osgprod_work.bash": "ab" * 32}), exec_version="2.1", image="i.sif"
    )
    shown = run("project", "show", "p").stdout.partition("versions that took part:\n")[2]
    assert "osgprod_work.bash" in shown and "2.1" in shown and "i.sif" in shown
    assert "versions" not in run("project", "show", "p", "--csv").stdout


def test_estimate_of_nothing_says_so(run: Run, world: World) -> None:
    world.with_project("new").add_file(3)
    for project, reason in (("new", "nothing is left"), ("p", "no block was done in the last 6 hours")):
        result = run("estimate", project)
        assert result.exit_code == 0 and reason in result.stdout


def test_watch_listens_again_when_the_connection_was_cut(world: World) -> None:
    watching = subprocess.Popen(
        [sys.executable, "-c", "from shim.cli import run, watch; watch.RETRY_S = 0.01; run()",
         "watch", "--json", "--count", "1"],
        cwd=CHECKOUT, env={**os.environ, "OSGPROD_DSN": world.dsn}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert watching.stderr is not None
    assert watching.stderr.readline() == "listening\n"
    world.db.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    assert "connection is lost" in watching.stderr.readline()
    assert watching.stderr.readline() == "listening\n"
    call(world.db, "ban_worker", project="p", worker="wn1", seconds=60)
    output, _ = watching.communicate(timeout=PATIENCE_S)
    assert json.loads(output)["event"] == "worker-banned"


def test_status_watch_looks_again_until_it_is_stopped(busy: World) -> None:
    watching = subprocess.Popen(
        [sys.executable, "-m", "shim", "status", "--watch", "--json", "--interval", "0.02"],
        cwd=CHECKOUT, env={**os.environ, "OSGPROD_DSN": busy.dsn}, stdout=subprocess.PIPE, text=True, bufsize=1,
    )  # fmt: skip
    assert watching.stdout is not None
    seen = 0
    for line in watching.stdout:
        seen += line == "]\n"
        if seen == 3:
            break
    watching.send_signal(signal.SIGINT)
    try:
        watching.communicate(timeout=PATIENCE_S)
    finally:
        watching.kill()
    assert watching.returncode == 0 and seen == 3


def test_shell_completes_commands_and_names_of_projects(world: World) -> None:
    environment = {**os.environ, "OSGPROD_DSN": world.with_project("production-2026").dsn}
    command = Path(sys.executable).parent / "osgprod"
    script = subprocess.run(
        [command, "completion", "bash"], env=environment, capture_output=True, text=True, check=True
    )
    assert "complete -o nosort -F" in script.stdout

    def complete(words: str) -> set[str]:
        result = subprocess.run(
            [command],
            env={**environment, "_OSGPROD_COMPLETE": "bash_complete", "COMP_WORDS": words,
                 "COMP_CWORD": str(words.count(" "))},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return {line.partition(",")[2] for line in result.stdout.splitlines() if line}

    assert complete("osgprod qua") == {"quarantined"}
    assert complete("osgprod status pro") == {"production-2026"}
    environment["OSGPROD_DSN"] = "host=/nonexistent"
    assert complete("osgprod status pro") == set(), "and says nothing where there is no database"


def test_the_calls_of_the_original_are_still_python_calls(operator: World, folder: Path) -> None:
    write_file(folder / "hd_rawdata_000009_000.evio", 4, 2)
    assert admin.add_project("original", "127.0.%", "osgprod_work.bash", "root://x/", 10, "m") > 0
    assert admin.load_rawdata_files(folder)["new"] == 1
    loaded = admin.load_slices(runs=[9], projectname="original")
    assert loaded["files"] == 1 and loaded["blocks"] > 0


@pytest.mark.parametrize(("command", "function"), [
    ("estimate", "estimate"), ("rate", "rate"), ("jobs list", "list_jobs"), ("attempts", "list_attempts"),
    ("workers list", "attempts_by_worker"), ("resources", "resources"),
])  # fmt: skip
def test_defaults_that_the_help_names_are_those_of_the_functions(
    run: Run, world: World, command: str, function: str
) -> None:
    row = world.db.execute(
        "SELECT pg_get_function_arguments(p.oid) AS text FROM pg_proc p WHERE p.proname = %s"
        " AND p.pronamespace = 'osgprod'::regnamespace", [function]
    ).fetchone()  # fmt: skip
    assert row is not None
    text = " ".join(run(*command.split(), "--help").output.split())
    for name in re.findall(r"p_(hours|limit|order)\b", row["text"]):
        default = re.search(rf"p_{name} \w+ DEFAULT '?(\w+)", row["text"])
        assert default and re.search(rf"--{name} .*?\[default: {default[1]}[;\]]", text), (name, text)


def test_each_option_of_each_command_has_a_help_text() -> None:
    def below(group: click.Group) -> Iterator[click.Command]:
        for command in group.commands.values():
            yield command
            if isinstance(command, click.Group):
                yield from below(command)

    for command in below(osgprod):
        assert command.help, command.name
        for parameter in command.params:
            assert not isinstance(parameter, click.Option) or parameter.help, (command.name, parameter.name)


def test_csv_without_rows_has_the_head_of_csv_with_rows(run: Run, busy: World, folder: Path) -> None:
    busy.with_project("q")
    call(busy.db, "ban_worker", project="p", worker="wn9", seconds=60)
    lists = {
        arguments for arguments in READING if arguments[1:2] == ("p",) or arguments[1:3] == ("list", "p")
    }
    lists |= {
        ("merges", "list", "p"),
        ("outputs", "list", "p"),
        ("verify", "p"),
        ("slices", "recycle", "p", "--dry-run"),
    }
    empty = 0
    for arguments in lists - {("jobs", "p", "1.2")}:
        of_none = run(*("q" if word == "p" else word for word in arguments), "--csv").stdout.splitlines()
        of_some = run(*arguments, "--csv").stdout.splitlines()
        assert of_none[0] == of_some[0] and "," in of_none[0], arguments
        empty += len(of_none) == 1
    assert empty > 9
    for arguments in (("notify", "list"), ("rawdata", "list", "--runs", "9"), ("reclaim", "q"),
                      ("rawdata", "list", "--next", "1", "--project", "q"), ("find", "nobody"),
                      ("project", "set", "q", "maxblockspercore=1"), ("rawdata", "check-online", "q"),
                      ("log", "q")):  # fmt: skip
        busy.db.execute("DELETE FROM osgprod_data.operations")
        lines = run(*arguments, "--csv").stdout.splitlines()
        assert len(lines) == 1 and "," in lines[0], arguments
    (folder / "none").mkdir()
    assert run("rawdata", "check", folder / "none", "--csv").stdout == "path,what\n"


@pytest.mark.parametrize(
    "arguments", [*READING, ("workers",), ("slices", "recycle", "p", "--dry-run")], ids=" ".join
)
def test_every_list_is_csv_too_with_all_columns(run: Run, busy: World, arguments: tuple[str, ...]) -> None:
    result = run(*arguments, "--csv")
    assert result.exit_code == 0, result.output
    rows = json.loads(run(*arguments, "--json").stdout)
    read = list(csv.DictReader(io.StringIO(result.stdout)))
    assert len(read) == len(rows)
    for line, row in zip(read, rows, strict=True):
        assert set(line) >= set(row) - {"log_tail"}
        for name, value in row.items():
            if (
                isinstance(value, str | int)
                and not isinstance(value, bool)
                and not re.search(r"_s$|\d{2}:\d{2}", name)
            ):
                assert line[name] == str(value) or "T" in str(value) or ":" in str(value), name


def test_csv_holds_no_formula_of_a_job(run: Run, world: World) -> None:
    formulas = ("=HYPERLINK(1)", "+1", "-1+1", "@SUM(1)")
    world.set(backoff_s=0)
    world.add_file(4)
    for process, formula in enumerate(formulas):
        world.checkout(process)
        world.report(process, 1, reason=formula)
    rows = list(csv.DictReader(io.StringIO(run("attempts", "p", "--csv").stdout)))
    assert {row["reason"] for row in rows} == {f"'{formula}" for formula in formulas}
    assert {row["exit_code"] for row in rows} == {"1"}
    plain = [for_csv(value) for value in ("-", "", "a=b", "/=", -1, None, "no-work")]
    assert plain == ["-", "", "a=b", "/=", -1, None, "no-work"], "nothing else is changed"


def test_times_of_a_table_are_local_when_asked(
    run: Run, busy: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "EST5EDT")
    time.tzset()
    try:
        assert re.search(r"\d\d:\d\d:\d\d E[SD]T", run("attempts", "p", "--local").stdout)
        assert re.search(r"\d\d:\d\d:\d\dZ", run("attempts", "p").stdout), "only for that command"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_set_shows_what_it_changed_and_nothing_else(run: Run, world: World) -> None:
    assert json.loads(run("project", "set", "p", "lease_s=7200", "wait_s=60", "--json").stdout) == [
        {"setting": "lease_s", "before": "21600", "now": "7200"}
    ]
    assert run("project", "set", "p", "lease_s=7200").stdout == "project p has these values already\n"


def test_bare_file_name_means_the_file_and_no_other(run: Run, world: World) -> None:
    paths = [world.add_file(1, run=1, seqno=seqno) for seqno in (1, 11)]
    for name in ("hd_rawdata_000001_001", "hd_rawdata_000001_001.evio", paths[0]):
        assert [row["path"] for row in rows_of(run("files", "p", "--path", name, "--json"))] == paths[:1]
    assert rows_of(run("files", "p", "--path", "hd_rawdata_000001_00", "--json")) == []
    assert rows_of(run("files", "p", "--path", "hdxrawdata_000001_001", "--json")) == [], (
        "_ is not a wildcard"
    )
    assert len(rows_of(run("files", "p", "--path", "%_0_1.evio", "--json"))) == 2


def test_files_of_several_run_periods_are_loaded_only_when_it_is_said(run: Run, world: World) -> None:
    for number in (30301, 30302, 71350):
        world.add_file(1, run=number, project=None)
    refused = run("slices", "load", "p")
    assert refused.exit_code == 1
    assert "files of 2 run periods: 30301-30302 (2 files), 71350-71350 (1 file)" in refused.stderr
    assert "--runs" in refused.stderr and "--all" in refused.stderr
    assert world.progress()["files"] == 0
    assert rows_of(run("slices", "load", "p", "--runs", "30301-30302", "--json"))[0]["files"] == 2
    assert rows_of(run("slices", "load", "p", "--all", "--json"))[0]["files"] == 1
    assert rows_of(run("slices", "unload", "p", "--runs", "71350", "--json"))[0]["files"] == 1
    assert world.progress()["files"] == 2


def test_one_run_period_is_loaded_without_a_word(run: Run, world: World) -> None:
    world.add_file(1, run=71350, project=None)
    world.add_file(1, run=71351, project=None)
    assert rows_of(run("slices", "load", "p", "--json"))[0]["files"] == 2


def test_done_slices_are_recycled_only_when_chosen_or_confirmed(run: Run, busy: World) -> None:
    refused = run("slices", "recycle", "p", "--state", "done")
    assert refused.exit_code == 1 and "that are done would be processed again: 2" in refused.stderr
    assert busy.progress()["blocks_done"] == 2
    said = run("slices", "recycle", "p", "--state", "done", "--runs", "1")
    assert said.exit_code == 0 and "2 slices with 2 blocks are requeued" in said.stderr
    assert busy.progress()["blocks_done"] == 0


def test_slice_of_one_job_is_recycled_as_the_job_says_whose_tarball_is_lost(run: Run, world: World) -> None:
    world.set(maxblockspercore=1)
    world.add_file(4)
    for process in range(3):
        world.checkout(process, cluster=7)
        assert world.report(process, cluster=7)["status"] == "done"
    job = ("slices", "recycle", "p", "--state", "done", "--cluster", "7")
    assert "1 slice with 1 block" in run(*job, "--process", "1").stderr
    assert world.progress()["blocks_done"] == 2
    assert "2 slices with 2 blocks" in run(*job, "--dry-run").stderr
    alone = run("slices", "recycle", "p", "--process", "1")
    assert alone.exit_code == 2 and "process 1 is given without its cluster" in alone.stderr


def test_done_slices_are_recycled_with_all(run: Run, busy: World) -> None:
    assert run("slices", "recycle", "p", "--state", "done", "--all").exit_code == 0
    assert busy.progress()["blocks_done"] == 0


def test_stop_counts_the_jobs_that_still_run_down_to_none(run: Run, world: World) -> None:
    world.add_file(2)
    world.checkout(0)
    world.checkout(1)
    assert run("project", "stop", "p").stdout == "project p is stopped; 2 jobs still run\n"
    with ThreadPoolExecutor(1) as other:
        wait = other.submit(run, "project", "stop", "p", "--wait", "--interval", "0.1")
        for process in (0, 1):
            with connect(world.dsn) as db:
                World(db, world.dsn).heartbeat(process)
        lines = wait.result(60).stdout.splitlines()
    assert lines[-1].endswith("0 jobs still run")
    assert "0 jobs" in lines[-1]


def test_outputs_without_url_are_counted_with_what_to_do(run: Run, busy: World) -> None:
    assert run("outputs", "check", "p").stderr == (
        "osgprod: 2 files: URL not known\nhint: osgprod project set p output_home=URL names the folder\n"
    )


def test_status_says_how_many_jobs_run(run: Run, busy: World) -> None:
    assert rows_of(run("status", "p", "--json"))[0]["running"] == 1


def test_status_says_events_bytes_and_core_hours_beside_blocks(run: Run, busy: World) -> None:
    row, amounts = rows_of(run("status", "p", "--json"))[0], call(busy.db, "amounts", project="p")[0]
    for name in ("events_done", "events", "bytes_done", "bytes", "core_hours_done", "core_hours_left"):
        assert row[name] == amounts[name]
    assert row["bytes"] > row["bytes_done"] > 0


def test_ban_of_an_unknown_name_warns(run: Run, busy: World) -> None:
    assert run("workers", "ban", "p", "wn99").stderr == (
        "osgprod: no job of project p was on wn99 within seven days;"
        " osgprod workers list p --order busy --hours 168 lists the names\n"
    )
    assert run("workers", "ban", "p", "--site", "SITE_A").output.startswith("site:SITE_A is banned until ")
    assert run("workers", "unban", "p", "--site", "SITE_A").output == "site:SITE_A is no longer banned\n"
    for meant in ((), ("wn1", "--site", "SITE_A"), ("--site", ""), ("",)):
        assert "name a worker, or a site with --site" in run("workers", "ban", "p", *meant).output
    assert run("workers", "ban", "p", "wn1").stderr == ""


def test_list_without_a_match_says_what_does_not_match(run: Run, busy: World) -> None:
    assert (
        run("files", "p", "--state", "pending").stdout != run("files", "p", "--state", "in_progress").stdout
    )
    assert run("files", "p", "--state", "in_progress").stdout == "no file of project p is in_progress\n"


def test_list_of_failing_workers_does_not_deny_that_others_worked(run: Run, world: World) -> None:
    world.add_file(1)
    world.checkout(0)
    world.report(0)
    assert run("workers", "list", "p").stdout == "no worker failed in that time; --order busy lists all\n"
    assert len(rows_of(run("workers", "list", "p", "--order", "busy", "--json"))) == 1


def test_rate_begins_with_the_first_attempt_that_ended(run: Run, busy: World) -> None:
    rows = rows_of(run("rate", "p", "--json"))
    assert 1 <= len(rows) <= 2 and rows[0]["done"] + rows[0]["failed"] > 0


def test_find_names_the_command_that_shows_more_and_log_who_did_what(run: Run, busy: World) -> None:
    (row,) = rows_of(run("find", "wn1", "--json"))
    assert row["kind"] == "worker" and row["command"].startswith("osgprod attempts p --worker wn1@")
    assert rows_of(result_of(run, row["command"]))
    nothing = run("find", "wn99")
    assert nothing.exit_code == 1 and nothing.stdout == "nothing is known of wn99\n"
    run("project", "pause", "p")
    last = rows_of(run("log", "p", "--json"))[0]
    assert (last["operation"], last["details"], last["times"]) == (
        "set_project",
        {"state": "active -> paused"},
        1,
    )
    assert re.fullmatch(r"\S+ \(\S+@\S+\)", last["who"])


def result_of(run: Run, command: str) -> Result:
    """The answer, as JSON, to a command that another one advises."""
    return run(*command.split()[1:], "--json")


def test_job_is_shown_with_the_end_of_its_log(run: Run, busy: World) -> None:
    busy.add_file(1, run=7)
    busy.checkout(77, host="wn7")
    busy.report(77, 9, log_tail="event 4\nbank 3 is broken")
    text = run("jobs", "p", "1.77").stdout
    assert text.endswith("\nEnd of the log of start 1:\nevent 4\nbank 3 is broken\n")
    assert rows_of(run("jobs", "p", "1.77", "--json"))[0]["log_tail"] == "event 4\nbank 3 is broken"


def test_doctor_looks_at_the_database_server_too(run: Run, busy: World, folder: Path) -> None:
    found = {row["what"]: row for row in json.loads(run("doctor", "--json").stdout)}
    for what in (
        "writes",
        "transaction numbers",
        "replication slots",
        "autovacuum of the tables",
    ):
        assert found[what]["is_well"], found[what]
    assert found["logins of the shim"]["is_well"], "the README's first slice needs none"
    assert "GB free" in found["disk of the database"]["found"]
    busy.db.execute("ALTER TABLE osgprod_data.slices SET (autovacuum_enabled = off)")
    found = {row["what"]: row for row in json.loads(run("doctor", "--json").stdout)}
    assert not found["autovacuum of the tables"]["is_well"]
    assert found["autovacuum of the tables"]["found"] == "slices"


def test_slices_load_asks_before_it_forgets_work_that_is_done(world: World, run: Run) -> None:
    world.add_file(2)
    world.checkout(0)
    world.report(0)
    world.checkout(1)
    done = run("slices", "load", "p", "--reset")
    assert done.exit_code == 1
    assert "blocks of project p would be processed again: 1 that are done, 1 that are leased" in done.stderr
    assert "--yes" in done.stderr
    assert world.progress()["blocks_done"] == 1
    assert run("slices", "load", "p", "--reset", "--runs", "1").exit_code == 1
    assert run("slices", "load", "p", "--reset", "--dry-run").exit_code == 0
    assert world.progress()["blocks_done"] == 1
    assert run("slices", "load", "p", "--reset", "--runs", "1", "--yes").exit_code == 0
    assert world.progress()["blocks_done"] == 0
    assert run("slices", "load", "p", "--reset").exit_code == 0, "nothing is done that could be forgotten"


@pytest.mark.parametrize(
    "command", [("project", "export", "p"), ("rawdata", "load"), ("outputs", "manifest", "p", "-o")]
)
def test_name_that_no_file_can_have_is_refused_in_one_line_with_a_hint(
    run: Run, command: tuple[str, ...]
) -> None:
    name = "x" * 300
    result = run(*command, name)
    assert result.exit_code in (1, 2)
    assert name in result.stderr
    assert "File name too long" in result.stderr


def test_message_repeats_what_was_typed_in_one_line_that_a_terminal_only_shows(run: Run) -> None:
    result = run("verify", "a\nb\x1b[31m\u202ec")
    assert result.exit_code == 1
    assert result.stderr == (
        "osgprod: there is no project 'a b [31m c'\nhint: osgprod project list shows the projects\n"
    )
    for arguments in (("jobs", "p"), ("rawdata", "check"), ("outputs", "manifest", "p", "-o")):
        said = run(*arguments, "\n\u202e" + "x" * 9999).stderr
        assert "\u202e" not in said and "xx…xx" in said and len(said) < 1300


@pytest.mark.parametrize("text", ["", " ", "\u200b"])
def test_text_without_a_visible_character_is_quoted_not_called_by_a_word(run: Run, text: str) -> None:
    """A project may have the name empty."""
    assert run("verify", text).stderr.startswith(f"osgprod: there is no project '{' ' if text else ''}'\n")


@pytest.mark.parametrize("option", ["--uds", "--host"])
def test_socket_or_address_without_a_name_is_refused_not_replaced_by_a_port_of_all(
    run: Run, option: str
) -> None:
    result = run("serve", option, "")
    assert result.exit_code == 2
    assert f"{option} ''" in result.stderr


@pytest.mark.parametrize(
    "command",
    [("rawdata", "load"), ("outputs", "check", "p", "--orphans"), ("outputs", "manifest", "p", "-o")],
)
def test_empty_name_of_a_file_or_folder_is_seen_in_the_error(run: Run, command: tuple[str, ...]) -> None:
    result = run(*command, "")
    assert result.exit_code == 1
    assert result.stderr.startswith("osgprod: '': No such file or directory\nhint: name ")


def test_list_of_the_next_files_without_a_project_says_so(run: Run, world: World) -> None:
    world.with_project("q")
    result = run("rawdata", "list", "--next", "3")
    assert result.exit_code == 1 and result.stderr == (
        "osgprod: no project is named\nhint: name one; osgprod project list shows the projects\n"
    )
